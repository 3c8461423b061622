"""Where the work of a build runs: on Ray Data, or in this process one item after the other.

Items and results are small dictionaries; results come in any order.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

from teacher_cache.config import ExecutionConfig
from teacher_cache.errors import UserError
from teacher_cache.shell.ray_session import gpus_each, ray_session, takes_gpu, tell_room

Item = dict[str, Any]
WAVE_ITEMS = 10_000
"""Items given to Ray at once: each costs the driver an object."""
CALLS_PER_ACTOR = 2
"""At once: one that asks the teacher, one that writes what it said."""


class Executor(Protocol):
    def tasks(self, items: Sequence[Item], work: Callable[[Item], Item]) -> Iterator[Item]:
        """Calls a function once an item."""

    def actors(self, items: Iterable[Item], worker: type, arguments: dict[str, Any]) -> Iterator[Item]:
        """Makes workers as `worker(on_gpu=…, num_threads=…, **arguments)`, and calls one of them once an item. One that
        dies is made anew and called again, without end: it must see to that itself."""


class InProcess:
    """One item after the other, without Ray: for debugging, and where there is none."""

    def __init__(self, execution: ExecutionConfig) -> None:
        self._on_gpu = takes_gpu(execution.gpus_per_worker)
        self._num_threads = cpus_each(execution)

    def tasks(self, items: Sequence[Item], work: Callable[[Item], Item]) -> Iterator[Item]:
        yield from map(work, items)

    def actors(self, items: Iterable[Item], worker: type, arguments: dict[str, Any]) -> Iterator[Item]:
        work = None
        for item in items:
            work = work or worker(on_gpu=self._on_gpu, num_threads=self._num_threads, **arguments)
            yield work(item)


class OnRay:
    """Ray Data: tasks of one CPU each, and a pool of actors."""

    def __init__(self, execution: ExecutionConfig, cpus_each: int) -> None:
        workers = execution.num_workers
        self._least, self._most = workers if isinstance(workers, tuple) else (workers, workers)
        self._cpus_each, self._num_gpus = cpus_each, gpus_each(execution.gpus_per_worker, self._least)

    def tasks(self, items: Sequence[Item], work: Callable[[Item], Item]) -> Iterator[Item]:
        yield from self._map(items, work, num_cpus=1)

    def actors(self, items: Iterable[Item], worker: type, arguments: dict[str, Any]) -> Iterator[Item]:
        import ray

        tell_room(self._least, num_cpus=self._cpus_each, num_gpus=self._num_gpus)
        left = iter(items)
        while wave := list(islice(left, WAVE_ITEMS)):
            pool = ray.data.ActorPoolStrategy(
                min_size=min(self._least, len(wave)),
                max_size=min(self._most, len(wave)),
                max_concurrent_calls_per_actor=CALLS_PER_ACTOR,
                enable_true_multi_threading=True,
            )
            yield from self._map(
                wave,
                worker,
                compute=pool,
                num_cpus=self._cpus_each,
                num_gpus=self._num_gpus or None,
                fn_constructor_kwargs={"on_gpu": self._num_gpus > 0, "num_threads": self._cpus_each, **arguments},
            )

    def _map(self, items: Sequence[Item], work: Any, **resources: Any) -> Iterator[Item]:
        import ray

        if not items:
            return
        # One block an item: one call, one receipt.
        dataset = ray.data.from_items(list(items), override_num_blocks=len(items))
        try:
            yield from dataset.map(work, **resources).iter_rows()
        except ray.exceptions.RayTaskError:  # ours
            raise
        except ray.exceptions.RayError as error:
            if getattr(error, "actor_init_failed", False):
                raise UserError(f"a worker cannot start: {str(error).strip().splitlines()[-1]}") from None
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"the Ray cluster failed ({type(error).__name__}: {reason}); what is committed stays, run the same "
                "command again to go on"
            ) from None


def checked(results: Iterator[Item]) -> Iterator[Item]:
    """Stops at the first error.

    Raises:
        UserError: its message.
    """
    for result in results:
        if result["error"]:
            raise UserError(result["error"])
        yield result


@contextlib.contextmanager
def executor(execution: ExecutionConfig) -> Iterator[Executor]:
    """The executor that a configuration asks for; leaves Ray as it was found."""
    if execution.num_workers == 0:
        import torch

        num_threads = torch.get_num_threads()  # a worker takes its own number
        try:
            yield InProcess(execution)
        finally:
            torch.set_num_threads(num_threads)
        return
    cpus = cpus_each(execution)
    # Of a local Ray: the actors', and one for each operator beside them, or Ray Data stalls.
    num_cpus = execution.max_workers * cpus + 2
    with ray_session(address=execution.address, num_cpus=num_cpus, log_to_driver=False):
        with _quiet_ray_data():
            yield OnRay(execution, cpus)


def cpus_each(execution: ExecutionConfig) -> int:
    """CPUs of each worker; where none are asked for, this machine's, shared, or one on a cluster that runs already."""
    if execution.cpus_per_worker:
        return execution.cpus_per_worker
    if execution.num_workers and _is_running(execution):
        return 1
    return max(1, (os.cpu_count() or 1) // execution.max_workers)


def _is_running(execution: ExecutionConfig) -> bool:
    import ray

    return bool(ray.is_initialized() or execution.address or os.environ.get("RAY_ADDRESS"))


@contextlib.contextmanager
def _quiet_ray_data() -> Iterator[None]:
    import ray

    logger, context = logging.getLogger("ray.data"), ray.data.DataContext.get_current()
    before = logger.level, context.enable_progress_bars
    logger.setLevel(logging.ERROR)
    context.enable_progress_bars = False
    try:
        yield
    finally:
        logger.setLevel(before[0])
        context.enable_progress_bars = before[1]
