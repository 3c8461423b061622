"""One way to get a Ray: the caller's, a cluster's, or a local one of this process's own."""

import contextlib
import functools
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping

from tqdm import tqdm

from teacher_cache.errors import UserError

LOCAL_OBJECT_STORE_BYTES = 200 * 2**20
"""Receipts and small arguments only: tensors never cross the object store."""


@contextlib.contextmanager
def ray_session(*, address: str | None, num_cpus: int, log_to_driver: bool) -> Iterator[None]:
    """Connects to Ray, and leaves it as it was found.

    Args:
        address: of a running cluster; None takes RAY_ADDRESS, otherwise starts a local Ray.
        num_cpus: logical CPUs that the work needs; a local Ray gets at least these.

    Raises:
        UserError: no cluster answers at the address, or a local Ray does not start in time.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    cluster = address or os.environ.get("RAY_ADDRESS")
    if cluster and cluster.startswith(("http://", "https://")):
        raise UserError(
            f"{cluster} is a job server's address, which `submit` takes; "
            + ("set execution.address to a cluster" if address else "unset RAY_ADDRESS for work on this machine")
        )
    on_sigterm = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL
    try:
        if cluster:
            ray.init(address=cluster, log_to_driver=log_to_driver, logging_level=logging.WARNING)
        else:
            # Ray Train polls its workers; a laptop should not wait 2 s for each answer.
            os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
            os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # it prints each line of a worker twice
            ray.init(
                address="local",  # without it Ray joins whatever cluster was last seen on this machine
                num_cpus=max(num_cpus, os.cpu_count() or 1),
                object_store_memory=LOCAL_OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=log_to_driver,
                logging_level=logging.WARNING,
            )
    except ConnectionError as error:
        raise UserError(f"no Ray cluster answers at {cluster}: {error}") from None
    except Exception as error:  # Ray has no type for it
        if "timed out during startup" not in str(error):
            raise
        raise UserError(
            "a local Ray did not start within 30 s, as where other work takes all cores; run the same command again"
        ) from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own handler aborts the process
    try:
        yield
    finally:
        ray.shutdown()


def takes_gpu(wanted: float | None) -> bool:
    """Whether work in this process, without Ray, is for a GPU: as wanted, or where there is one.

    Raises:
        UserError: one is wanted, and torch finds none.
    """
    import torch

    if wanted and not torch.cuda.is_available():
        raise UserError(
            f"execution.gpus_per_worker is {wanted:g}, but torch {torch.__version__} finds no GPU here; set it to 0, or"
            " install the driver and a torch for it"
        )
    return wanted != 0 and torch.cuda.is_available()


def gpus_each(wanted: float | None, num_workers: int) -> float:
    """GPUs of a worker: as wanted, or one each where the connected cluster has any.

    Raises:
        UserError: one machine is all there is, and it has fewer than wanted: Ray would wait for ever.
    """
    import ray

    available = ray.cluster_resources().get("GPU", 0)
    if wanted is None:
        return 1.0 if available >= 1 else 0.0
    # A head without CPUs is no machine for work: it is part of a cluster whose machines come and go.
    if wanted * num_workers > available and len(ray.nodes()) == 1 and ray.cluster_resources().get("CPU"):
        raise UserError(
            f"execution asks for {num_workers} worker(s) of {wanted:g} GPU(s), this machine has {available:g}; "
            "lower execution.gpus_per_worker or num_workers, or set execution.address to a cluster"
        )
    return wanted


@functools.cache
def tell_room(num_workers: int, *, num_cpus: float, num_gpus: float) -> None:
    """Tells, once, of workers that the cluster has no room for: Ray waits for machines without a word."""
    import ray

    needed = {"CPU": num_cpus, "GPU": num_gpus}
    room = sum(num_fitting(node["Resources"], needed) for node in ray.nodes() if node["Alive"])
    if room < num_workers:
        tqdm.write(
            f"the cluster has room for {room} of {num_workers} workers of {num_cpus:g} CPU(s) and {num_gpus:g} GPU(s); "
            "the others wait for more machines: where none will come, lower execution.num_workers or what each takes",
            file=sys.stderr,
        )


def num_fitting(machine: Mapping[str, float], needed: Mapping[str, float]) -> int:
    """How many workers a machine has room for, by resource."""
    return min(int(machine.get(name, 0) / amount) for name, amount in needed.items() if amount)
