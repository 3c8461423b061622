"""Training students: the Ray Train shell around `worker`. No maths in it.

Checkpoints, resuming and the finished model are this project's own, under the run's output; Ray starts the workers,
connects them, and starts them again when one dies, or on more or fewer machines.
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from student_train.config import StudentSpec
from student_train.console import Console, say
from student_train.loop import DivergedError, Trainer
from student_train.order import NUM_LANES
from student_train.rank import Rank
from student_train.run_folder import TrainSummary
from student_train.sources import idle_workers
from student_train.worker import run_worker
from teacher_cache.errors import UserError
from teacher_cache.shell.ray_session import gpus_each, ray_session, takes_gpu, tell_room
from teacher_cache.shell.settings import parse, to_dict
from teacher_cache.storage.store import Store, normal_url
from teacher_cache.storage.urls import refuse_secrets

SQLITE = "sqlite:///"
"""Of MLflow: a database in a file."""

RESIZED_START_S = 20
"""How long Ray Train waits for room for an elastic group: after a node's death it first asks for as many workers as
before, and only then for as many as there is room for."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What is known of a run before it starts."""

    num_views: int
    """To read: all workers must agree on it while more are being sealed."""
    num_steps: int


def train(spec: StudentSpec) -> TrainSummary:
    """Trains a student, or goes on with the run that `spec.output` holds.

    Raises:
        UserError: bad input, found before any worker starts; or training that diverged.
    """
    spec = with_absolute_paths(spec)
    execution = spec.execution
    if execution.num_workers == 0:
        torch.set_num_threads(max(execution.cpus_per_worker, torch.get_num_threads()))
        device = torch.device("cuda" if takes_gpu(execution.gpus_per_worker) else "cpu")
        with console(spec) as watcher:
            return run_worker(spec, device=device, show=watcher.show)
    num_views = check(spec).num_views
    num_cpus = execution.max_workers * execution.cpus_per_worker + 1
    with ray_session(address=execution.address, num_cpus=num_cpus, log_to_driver=False), console(spec) as watcher:
        return _fit(spec, num_views, watcher)


@contextlib.contextmanager
def console(spec: StudentSpec) -> Iterator[Console]:
    """Shows a run's progress to who waits for it."""
    watcher = Console(every_steps=spec.execution.log_steps)
    try:
        yield watcher
    finally:
        watcher.close()


def with_absolute_paths(spec: StudentSpec) -> StudentSpec:
    """The same, whatever folder a worker runs in: Ray Train gives each a folder of its own."""
    student, execution = spec.student, spec.execution
    if student.initial_folder:
        student = replace(student, initial_weights=normal_url(student.initial_folder))
    if execution.disk_cache is not None:
        execution = replace(execution, disk_cache=normal_url(execution.disk_cache))
    if execution.mlflow is not None:
        _check_mlflow(execution.mlflow)
    if execution.mlflow is not None and execution.mlflow.startswith(SQLITE):
        path = os.path.abspath(execution.mlflow.removeprefix(SQLITE))
        execution = replace(execution, mlflow=f"{SQLITE}{path}")
    caches = tuple(normal_url(url) for url in spec.caches)
    return replace(spec, caches=caches, output=normal_url(spec.output), student=student, execution=execution)


def _check_mlflow(uri: str) -> None:
    try:
        refuse_secrets(uri)
    except UserError as error:
        raise UserError(
            f"execution.mlflow: {error}: MLflow reads MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        ) from None


def check(spec: StudentSpec) -> Checked:
    """Builds all that a worker builds, before any worker is asked for, and looks for another run in the output.

    Raises:
        UserError: what a worker would fail of.
    """
    trainer = Trainer(spec, device=torch.device("cpu"), rank=Rank())
    progress = trainer.check_output(Store(spec.output))
    if num_idle := idle_workers(trainer.caches, spec.execution.max_workers):
        most = spec.execution.max_workers
        why = (
            f"a run reads in {NUM_LANES} lanes; lower execution.num_workers to {NUM_LANES}"
            if num_idle == most - NUM_LANES
            else "a view has too few shards; lower execution.num_workers, or build with smaller units (unit_sequences)"
        )
        say(f"{num_idle} of {most} workers will have nothing to read: {why}")
    return Checked(num_views=progress.num_views if progress else trainer.num_views, num_steps=trainer.num_steps)


def _fit(spec: StudentSpec, num_views: int, watcher: Console) -> TrainSummary:
    import ray
    from pyarrow.fs import FSSpecHandler, PyFileSystem
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError
    from ray.util.queue import Queue

    execution = spec.execution
    num_gpus = gpus_each(execution.gpus_per_worker, execution.min_workers)
    tell_room(execution.min_workers, num_cpus=execution.cpus_per_worker, num_gpus=num_gpus)
    if execution.min_workers < execution.max_workers:
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(RESIZED_START_S))
    resources = {"CPU": execution.cpus_per_worker} | ({"GPU": num_gpus} if num_gpus else {})
    store = Store(spec.output)
    run_config = RunConfig(
        # A name of its own for each attempt: going on is the work of our checkpoints, and Ray's snapshot of a killed
        # attempt may be torn.
        name=f"attempt-{time.time_ns()}",
        storage_path=f"{store.root}/ray",
        storage_filesystem=None if store.is_local else PyFileSystem(FSSpecHandler(store.fs)),
        failure_config=FailureConfig(max_failures=execution.max_failures),
        logging_config=LoggingConfig(log_level="ERROR"),  # type: ignore[call-arg]  # V2's RunConfig has it
    )
    # On the driver's machine: it must not die with a worker's.
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    shown = Queue(actor_options={"num_cpus": 0, "label_selector": here})
    trainer = TorchTrainer(
        _train_loop,  # type: ignore[arg-type]  # Ray Train V2 hands back rank 0's return value, its types say None
        train_loop_config={"spec": to_dict(spec), "on_gpu": num_gpus > 0, "shown": shown, "num_views": num_views},
        scaling_config=ScalingConfig(
            num_workers=execution.num_workers,  # type: ignore[arg-type]  # V2 takes (min, max)
            elastic_resize_monitor_interval_s=execution.resize_check_s,  # type: ignore[call-arg]  # V2's has it
            use_gpu=num_gpus > 0,
            resources_per_worker=resources,
        ),
        run_config=run_config,
    )
    # Ctrl-C stays ours: Ray Train's own handler ends this process with status 1 and without a word.
    trainer._register_sigint_handler = lambda controller: None  # type: ignore[attr-defined]  # V2's has it, and no option
    try:
        with _followed(shown, watcher):
            result = trainer.fit()
    except TrainingFailedError as error:
        causes = [
            str(cause) for cause in getattr(error, "worker_failures", {}).values() if isinstance(cause, UserError)
        ]
        cause = causes[0] if causes else f"training failed\n{error}"
        raise UserError(f"{cause}\nrun it again to go on from its newest checkpoint") from None
    outcome: dict[str, Any] = result.return_value  # type: ignore[attr-defined]  # V2's Result has it
    if "error" in outcome:
        raise UserError(outcome["error"])
    return TrainSummary(**outcome)


@contextlib.contextmanager
def _followed(shown: Any, watcher: Console) -> Iterator[None]:
    """Shows what workers put into a Ray queue; their own output is full of Ray's."""

    def follow() -> None:
        for item in iter(shown.get, None):
            watcher.show(item)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        shown.put(None)
        thread.join()
        shown.shutdown()


def _train_loop(config: dict[str, Any]) -> dict[str, Any]:
    """A Ray Train worker. What ends all workers alike is an outcome; what one fails of, Ray restarts them all for."""
    import ray.train
    import ray.train.torch

    spec = parse(StudentSpec, config["spec"])
    device = ray.train.torch.get_device() if config["on_gpu"] else torch.device("cpu")
    if not config["on_gpu"]:
        torch.set_num_threads(spec.execution.cpus_per_worker)
    try:
        summary = run_worker(
            spec,
            device=device,
            show=config["shown"].put,
            on_checkpoint=lambda report: ray.train.report(asdict(report)),
            num_views=config["num_views"],
        )
        return asdict(summary)
    except DivergedError as error:
        return {"error": str(error)}
