"""Tiny real caches of tasks, made by random teachers with a task's head."""

from pathlib import Path
from typing import Any

from teacher_cache.config import TaskCacheSpec
from teacher_cache.format.cache import Cache, open_cache
from teacher_cache.pipeline import build
from teacher_cache.pretrained import AUTO_CLASSES
from teacher_cache.shell.settings import parse
from teacher_cache.tasks.config import TaskConfig
from teacher_cache.tasks.record import Task
from teacher_cache.tasks.task import load_task
from tests import families
from tests.student_train.finetune import tiny

KINDS = ("single", "pair", "regression", "tagging", "question_answering")
NUM_TRAIN, UNIT_SEQUENCES = 20, 8


def make_task(folder: Path, kind: str, **overrides: Any) -> Task:
    values = tiny.make_task(folder, kind, num_train=NUM_TRAIN, num_dev=4) | overrides
    return load_task(kind, parse(TaskConfig, values))


def save_teacher(folder: Path, task: Task, family: str = "bert", **overrides: Any) -> Path:
    names = task.labels or range(task.num_outputs)
    options = {"id2label": {place: str(name) for place, name in enumerate(names)}} | overrides
    return families.save_pretrained(folder, family, auto_class=AUTO_CLASSES[task.kind], **options)


def make_spec(folder: Path, task: Task, *, teacher: Path | None = None, **overrides: Any) -> TaskCacheSpec:
    """The specification of the cache `folder`; its teacher is made beside it, unless one is named."""
    teacher = teacher or save_teacher(folder.with_name(f"{folder.name}-teacher"), task)
    values: dict[str, Any] = {
        "cache": str(folder),
        "task": task.config,
        "teacher": {"model": str(teacher)},
        "unit_sequences": UNIT_SEQUENCES,
        "execution": {"num_workers": 0, "gpus_per_worker": 0, "cpus_per_worker": 1},
    }
    return parse(TaskCacheSpec, values | overrides)


def build_cache(folder: Path, task: Task, **options: Any) -> Cache:
    """Builds and opens the cache `folder`; see `make_spec`."""
    build(make_spec(folder, task, **options), progress=False)
    return open_cache(str(folder))
