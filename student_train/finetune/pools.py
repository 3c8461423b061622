"""Where runs are made: on Ray, several at a time, or in this process one after the other."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from student_train.finetune.config import FinetuneConfig
from student_train.finetune.plan import Run
from student_train.finetune.records import RunRecord, run_key, write
from teacher_cache.errors import UserError
from teacher_cache.shell.ray_session import gpus_each, ray_session, takes_gpu, tell_room
from teacher_cache.shell.settings import parse, to_dict
from teacher_cache.storage.store import Store

MAX_RETRIES = 3
"""Of a run whose worker died."""

Outcome = tuple[Run, RunRecord | str]
"""A run, and what came of it or why it failed."""


class Pool(Protocol):
    size: int
    """Runs at a time."""

    def start(self, run: Run) -> None: ...

    def next(self) -> Outcome:
        """The next run that has ended, of those that were started."""


@contextlib.contextmanager
def pool(config: FinetuneConfig) -> Iterator[Pool]:
    """The pool that a configuration asks for; leaves Ray as it was found."""
    execution = config.execution
    if execution.num_workers == 0:
        yield InProcess(config)
        return
    num_cpus = execution.num_workers * execution.cpus_per_worker
    with ray_session(address=execution.address, num_cpus=num_cpus, log_to_driver=False):
        yield OnRay(config)


class InProcess:
    size = 1

    def __init__(self, config: FinetuneConfig) -> None:
        import torch

        self._config = config
        self._on_gpu = takes_gpu(config.execution.gpus_per_worker)
        self._num_threads = max(config.execution.cpus_per_worker, torch.get_num_threads())
        self._waiting: list[Run] = []

    def start(self, run: Run) -> None:
        self._waiting.append(run)

    def next(self) -> Outcome:
        run = self._waiting.pop()
        return run, _tried(lambda: make_run(self._config, run, on_gpu=self._on_gpu, num_threads=self._num_threads))


class OnRay:
    def __init__(self, config: FinetuneConfig) -> None:
        import ray

        execution = config.execution
        self.size = execution.num_workers
        num_gpus = gpus_each(execution.gpus_per_worker, self.size)
        tell_room(self.size, num_cpus=execution.cpus_per_worker, num_gpus=num_gpus)
        work: Any = _work
        remote = ray.remote(num_cpus=execution.cpus_per_worker, num_gpus=num_gpus, max_retries=MAX_RETRIES)
        self._work = remote(work)
        self._config, self._on_gpu = to_dict(config), num_gpus > 0
        self._running: dict[Any, Run] = {}

    def start(self, run: Run) -> None:
        work = self._work.options(name=run_key(**vars(run)))  # in Ray's lists and of its process
        self._running[work.remote(self._config, run, on_gpu=self._on_gpu)] = run

    def next(self) -> Outcome:
        import ray

        (ended,), _ = ray.wait(list(self._running))
        return self._running.pop(ended), _tried(lambda: ray.get(ended))


def make_run(config: FinetuneConfig, run: Run, *, on_gpu: bool, num_threads: int) -> RunRecord:
    """Makes a run and writes its record."""
    import torch

    from student_train.finetune.training import finetune_once

    if not on_gpu:
        torch.set_num_threads(num_threads)
    record = finetune_once(config, run, on_gpu=on_gpu)
    write(Store(config.output), record)
    return record


def _work(values: dict[str, Any], run: Run, *, on_gpu: bool) -> RunRecord:
    """A Ray task."""
    config = parse(FinetuneConfig, values)
    return make_run(config, run, on_gpu=on_gpu, num_threads=config.execution.cpus_per_worker)


def _tried(make: Callable[[], RunRecord]) -> RunRecord | str:
    """A run's record, or in a line why it failed: the others go on."""
    try:
        return make()
    except Exception as error:
        cause = getattr(error, "cause", None) or error  # Ray's own error wraps a worker's
        lines = str(cause).strip().splitlines() or [""]
        return lines[0] if isinstance(cause, UserError) else f"{type(cause).__name__}: {lines[0]}"
