"""Fine-tuning all models on all tasks: what is checked before, which run comes when, and what is told of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from student_train.console import say
from student_train.finetune import records
from student_train.finetune.config import FinetuneConfig, FinetuneTask
from student_train.finetune.fit import check_fit
from student_train.finetune.models import describe, normal_path
from student_train.finetune.plan import Done, Plan, Run, done_of
from student_train.finetune.pools import Outcome, pool
from student_train.finetune.records import Results, RunRecord
from student_train.finetune.teacher_logits import teachings
from student_train.finetune.text import line
from teacher_cache.errors import UserError
from teacher_cache.shell.ray_session import takes_gpu
from teacher_cache.storage.store import Store
from teacher_cache.storage.urls import normal_url
from teacher_cache.tasks.task import load_task


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """What fine-tuning gave."""

    ok: bool
    """Whether no run failed; one that diverged has not."""
    output: str
    results: Results
    errors: dict[str, str]
    """Why runs failed, by where their records would lie."""


def finetune(config: FinetuneConfig) -> FinetuneResult:
    """Makes all runs, or those that are missing in `config.output`.

    Raises:
        UserError: bad input, found before a run starts; or the output holds runs that cannot be compared with these.
    """
    if find_spec("accelerate") is None:
        raise UserError("fine-tuning needs accelerate: pip install 'teacher-cache[tasks]'")
    if config.execution.num_workers == 0:
        takes_gpu(config.execution.gpus_per_worker)  # raises
    config = with_absolute_paths(config)
    store, recipe = Store(config.output), records.recipe_of(config)
    tasks = [records.task_record(load_task(name, task)) for name, task in config.tasks.items()]
    lengths = {name: task.max_length for name, task in config.tasks.items()}
    models = [describe(name, path, max_lengths=lengths) for name, path in config.models.items()]
    records.begin(store, recipe, models, tasks, teachings(config.distillation, tasks))
    plan = Plan(models=recipe.models, tasks=recipe.tasks, lrs=recipe.lrs, seeds=recipe.seeds)
    errors = _make_all(config, plan, store, {task.name: task.metrics[0] for task in tasks})
    return FinetuneResult(ok=not errors, output=store.url, results=records.read_results(store), errors=errors)


def with_absolute_paths(config: FinetuneConfig) -> FinetuneConfig:
    """The same, whatever folder a worker runs in."""
    models = {name: normal_path(path) for name, path in config.models.items()}
    tasks = {name: _with_absolute_paths(task) for name, task in config.tasks.items()}
    caches = {
        model: {task: normal_url(url) for task, url in urls.items()}
        for model, urls in config.distillation.caches.items()
    }
    distillation = replace(config.distillation, caches=caches)
    return replace(config, output=normal_url(config.output), models=models, tasks=tasks, distillation=distillation)


def _with_absolute_paths(task: FinetuneTask) -> FinetuneTask:
    places = {key: getattr(task, key) for key in ("folder", "train", "dev")}
    absolute: dict[str, Any] = {key: normal_url(url) for key, url in places.items() if url is not None}
    return replace(task, hub=task.hub and normal_path(task.hub), **absolute)


def _make_all(config: FinetuneConfig, plan: Plan, store: Store, metrics: Mapping[str, str]) -> dict[str, str]:
    """Makes what is missing of a plan; why runs failed, by key.

    Args:
        metrics: the one that is each task's score.
    """
    done = done_of(records.read_runs(store, plan.models, plan.tasks))
    _forget_losers(config, plan, store, done)
    missing = plan.missing(done, keep_models=config.keep_models)
    check_fit(config, missing)
    num_done = len(plan.known(done)) - len(missing)
    say(f"{plan.num_runs} runs, {num_done} of them done before")
    errors: dict[str, str] = {}
    for run, outcome in _outcomes(config, plan, done):
        num_done += 1
        if isinstance(outcome, str):
            errors[records.run_key(**vars(run))] = outcome
        else:
            done[run] = outcome
            _forget_losers(config, plan, store, done)
        say(f"{line(run, outcome, metrics[run.task])}  ({num_done}/{plan.num_runs})")
    return errors


def _outcomes(config: FinetuneConfig, plan: Plan, done: Done) -> Iterator[Outcome]:
    """What comes of runs, as they end. Which ones are next depends on what the caller puts into `done` meanwhile."""
    started: set[Run] = set()
    num_running = 0

    def waiting() -> list[Run]:
        return [run for run in plan.missing(done, keep_models=config.keep_models) if run not in started]

    if not waiting():
        return
    with pool(config) as workers:
        while True:
            for run in waiting()[: workers.size - num_running]:
                workers.start(run)
                started.add(run)
                num_running += 1
            if not num_running:
                return
            yield workers.next()
            num_running -= 1


def _forget_losers(config: FinetuneConfig, plan: Plan, store: Store, done: dict[Run, RunRecord]) -> None:
    """Deletes fine-tuned models of learning rates that turned out not to be the best. The record changes last: after a
    kill in between it is done again."""
    if config.keep_models:
        return
    for run, record in [(run, done[run]) for run in plan.losers(done)]:
        if record.folder:
            store.delete_folder(records.run_key(**vars(run)))
            done[run] = replace(record, folder=None)
            records.write(store, done[run])
