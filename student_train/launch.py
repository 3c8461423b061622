"""Training students: the Ray Train shell around `loop`. No maths in it.

Checkpoints, resuming and the finished model are this project's own, under the run's output; Ray starts the workers,
connects them, and starts them again when one dies.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from student_train.config import StudentSpec
from student_train.export import MODEL_PREFIX, export
from student_train.loop import DivergedError, Rank, StepReport, Trainer
from student_train.run_log import RunLog
from teacher_cache.errors import UserError
from teacher_cache.shell.ray_session import gpus_each, ray_session
from teacher_cache.shell.settings import parse, to_dict
from teacher_cache.storage.store import Store, normal_url


@dataclass(frozen=True, kw_only=True)
class TrainSummary:
    """What a run learned and what it took."""

    output: str
    model: str
    """Where the Hugging Face folder lies."""
    fingerprints: list[str]
    """Of the caches that it learned from."""
    num_parameters: int
    num_steps: int
    num_workers: int
    losses: dict[str, float]
    """Of the last step; empty if the run was already finished."""
    sequences_per_s: float
    """Over this attempt's steps, reading included."""
    seconds: float
    """Training time, over all attempts."""


def train(spec: StudentSpec) -> TrainSummary:
    """Trains a student, or goes on with the run that `spec.output` holds.

    Raises:
        UserError: bad input, found before any worker starts; or training that diverged.
    """
    spec = with_absolute_paths(spec)
    execution = spec.execution
    if execution.num_workers == 0:
        torch.set_num_threads(max(execution.cpus_per_worker, torch.get_num_threads()))
        device = torch.device("cuda" if execution.gpus_per_worker != 0 and torch.cuda.is_available() else "cpu")
        return TrainSummary(**run_worker(spec, device=device, say=say, on_checkpoint=lambda report: None))
    num_views = check(spec)
    num_cpus = execution.num_workers * execution.cpus_per_worker + 1
    with ray_session(address=execution.address, num_cpus=num_cpus, log_to_driver=False):
        return TrainSummary(**_fit(spec, num_views))


def with_absolute_paths(spec: StudentSpec) -> StudentSpec:
    """The same, whatever folder a worker runs in: Ray Train gives each a folder of its own."""
    student, execution = spec.student, spec.execution
    if student.initial_weights not in ("teacher", "random"):
        student = replace(student, initial_weights=normal_url(student.initial_weights))
    if execution.disk_cache is not None:
        execution = replace(execution, disk_cache=normal_url(execution.disk_cache))
    caches = tuple(normal_url(url) for url in spec.caches)
    return replace(spec, caches=caches, output=normal_url(spec.output), student=student, execution=execution)


def check(spec: StudentSpec) -> int:
    """Builds all that a worker builds, before any worker is asked for, and looks for another run in the output.

    Returns the number of views to read, which all workers must agree on while more are being sealed.

    Raises:
        UserError: what a worker would fail of.
    """
    trainer = Trainer(spec, device=torch.device("cpu"), rank=Rank())
    progress = trainer.check_output(Store(spec.output))
    return progress.num_views if progress else trainer.num_views


def run_worker(
    spec: StudentSpec,
    *,
    device: torch.device,
    say: Callable[[str], None],
    on_checkpoint: Callable[[StepReport], None],
    num_views: int | None = None,
) -> dict[str, Any]:
    """One worker's whole run: resume, train, checkpoint, export; plain torch, with or without Ray around it."""
    rank = Rank.of_process()
    trainer = Trainer(spec, device=device, rank=rank, num_views=num_views)
    store = Store(spec.output)
    trainer.resume(store)
    resumed = trainer.progress
    log = None
    if rank.index == 0:
        log = RunLog(store, after_step=resumed.step, every_steps=spec.execution.log_steps, say=say)
    last: StepReport | None = None

    def on_step(report: StepReport) -> None:
        nonlocal last
        last = report
        if log:
            log.step(report)
        if report.step % spec.execution.checkpoint_steps == 0 or report.step == report.num_steps:
            if log:  # first: a restart drops what lies behind its checkpoint, but cannot make up what is missing
                log.flush()
            trainer.save(store)
            on_checkpoint(report)

    start = time.perf_counter()
    trainer.train(on_step)
    elapsed = time.perf_counter() - start
    if log:
        log.close()
        export(trainer.model, store, spec=spec, caches=trainer.caches, views=trainer.views_read, last=log.last)
    num_sequences = trainer.num_consumed(trainer.progress) - trainer.num_consumed(resumed)
    return asdict(
        TrainSummary(
            output=store.url,
            model=f"{store.url}/{MODEL_PREFIX}",
            fingerprints=[cache.fingerprint for cache in trainer.caches],
            num_parameters=sum(parameter.numel() for parameter in trainer.model.parameters()),
            num_steps=trainer.num_steps,
            num_workers=rank.size,
            losses=last.losses if last else {},
            sequences_per_s=num_sequences / elapsed,
            seconds=trainer.progress.seconds,
        )
    )


def say(line: str) -> None:
    """Progress goes to standard error, so that results stand alone."""
    print(line, file=sys.stderr, flush=True)


def _fit(spec: StudentSpec, num_views: int) -> dict[str, Any]:
    from pyarrow.fs import FSSpecHandler, PyFileSystem
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError
    from ray.util.queue import Queue

    num_gpus = gpus_each(spec.execution.gpus_per_worker, spec.execution.num_workers)
    resources = {"CPU": spec.execution.cpus_per_worker} | ({"GPU": num_gpus} if num_gpus else {})
    store = Store(spec.output)
    run_config = RunConfig(
        # A name of its own for each attempt: going on is the work of our checkpoints, and Ray's snapshot of a killed
        # attempt may be torn.
        name=f"attempt-{time.time_ns()}",
        storage_path=f"{store.root}/ray",
        storage_filesystem=None if store.is_local else PyFileSystem(FSSpecHandler(store.fs)),
        failure_config=FailureConfig(max_failures=spec.execution.max_failures),
        logging_config=LoggingConfig(log_level="ERROR"),  # type: ignore[call-arg]  # V2's RunConfig has it
    )
    lines = Queue(actor_options={"num_cpus": 0})
    trainer = TorchTrainer(
        _train_loop,  # type: ignore[arg-type]  # Ray Train V2 hands back rank 0's return value, its types say None
        train_loop_config={"spec": to_dict(spec), "on_gpu": num_gpus > 0, "lines": lines, "num_views": num_views},
        scaling_config=ScalingConfig(
            num_workers=spec.execution.num_workers, use_gpu=num_gpus > 0, resources_per_worker=resources
        ),
        run_config=run_config,
    )
    try:
        with _printed(lines):
            result = trainer.fit()
    except TrainingFailedError as error:
        causes = [
            str(cause) for cause in getattr(error, "worker_failures", {}).values() if isinstance(cause, UserError)
        ]
        cause = causes[0] if causes else str(error)
        raise UserError(f"training failed; run it again to go on from its newest checkpoint\n{cause}") from None
    outcome: dict[str, Any] = result.return_value  # type: ignore[attr-defined]  # V2's Result has it
    if "error" in outcome:
        raise UserError(outcome["error"])
    return outcome


@contextlib.contextmanager
def _printed(lines: Any) -> Iterator[None]:
    """Prints what workers put into a Ray queue; their own output is full of Ray's."""

    def follow() -> None:
        for line in iter(lines.get, None):
            say(line)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        lines.put(None)
        thread.join()
        lines.shutdown()


def _train_loop(config: dict[str, Any]) -> dict[str, Any]:
    """A Ray Train worker. What ends all workers alike is an outcome; what one fails of, Ray restarts them all for."""
    import ray.train
    import ray.train.torch

    spec = parse(StudentSpec, config["spec"])
    device = ray.train.torch.get_device() if config["on_gpu"] else torch.device("cpu")
    if not config["on_gpu"]:
        torch.set_num_threads(spec.execution.cpus_per_worker)
    try:
        return run_worker(
            spec,
            device=device,
            say=config["lines"].put,
            on_checkpoint=lambda report: ray.train.report(asdict(report)),
            num_views=config["num_views"],
        )
    except DivergedError as error:
        return {"error": str(error)}
