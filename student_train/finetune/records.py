"""What fine-tuning leaves in its output, and reading it back.

| key | what it holds |
|---|---|
| `finetune.json` | `Recipe`, of the newest command |
| `models/<model>.json` | `ModelRecord` |
| `tasks/<task>.json` | `TaskRecord` |
| `runs/<model>/<task>/<lr>-<seed>.json` | `RunRecord`, written when the run has ended |
| `runs/<model>/<task>/<lr>-<seed>/model/` | the fine-tuned model as a Hugging Face folder, where it is kept |

All are JSON documents with digests, see `teacher_cache.format.documents`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from student_train.finetune.config import FinetuneConfig, safe_name
from teacher_cache.errors import UserError
from teacher_cache.format import documents
from teacher_cache.format.spec import differences
from teacher_cache.shell.settings import to_dict
from teacher_cache.storage.store import Store
from teacher_cache.tasks.record import Task, TaskFile

RECIPE_KEY = "finetune.json"
MODEL_FOLDER = "model"
NO_CONTENT = ("folder", "train", "dev", "averaged")
"""Of a task's configuration, as no run depends on them."""

Record = TypeVar("Record")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the newest command asked for. Runs of earlier ones with the same `training` stay, and count again when a
    command names their model, task, learning rate and seed."""

    training: dict[str, Any]
    """What must not change in an output, or its runs could not be compared."""
    models: list[str]
    reference: str
    tasks: list[str]
    lrs: list[float]
    seeds: list[int]


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """How a model learns a task from a cache, see `DistillationConfig`."""

    fingerprint: str
    """Of the cache."""
    temperature: float
    soft_weight: float


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """A model as it was before fine-tuning."""

    name: str
    path: str
    model_type: str
    num_layers: int
    width: int
    """Size of the hidden states."""
    num_parameters: int
    """Of the encoder: without a masked-LM head."""
    num_bytes: int
    """Of these parameters in float32."""
    content_sha256: str
    """Of the encoder's tensors, the settings and the tokenizer: another model under this name is told apart."""


@dataclass(frozen=True, kw_only=True)
class TaskRecord:
    """A task as its files held it."""

    name: str
    kind: str
    labels: list[str]
    metrics: list[str]
    """The first is its score."""
    num_train: int
    num_dev: int
    files: list[TaskFile]
    """None of a hub data set."""
    content_sha256: str
    """Of its examples."""
    config: dict[str, Any]
    """As `FinetuneTask` takes it."""

    @property
    def averaged(self) -> bool:
        return bool(self.config.get("averaged", True))


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One model fine-tuned on one task, as it was after the last epoch."""

    model: str
    task: str
    lr: float
    seed: int
    state: Literal["finished", "diverged"]
    score: float | None
    """The task's first metric, in per cent; None: diverged."""
    metrics: dict[str, float]
    """On dev, in per cent; empty: diverged."""
    seconds: float
    """Of training alone."""
    num_steps: int
    """Optimiser steps that were made."""
    folder: str | None
    """Where the fine-tuned model lies; None: it was not kept."""
    taught: Teaching | None = None
    """None: it learned from labels alone."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """All that the newest command asked for, as far as it is done."""

    reference: str
    models: list[ModelRecord]
    tasks: list[TaskRecord]
    lrs: list[float]
    seeds: list[int]
    """The first tried each learning rate."""
    runs: list[RunRecord]


def run_key(model: str, task: str, lr: float, seed: int) -> str:
    """Where a run's record lies, less `.json`; its model lies below."""
    return f"runs/{safe_name(model)}/{safe_name(task)}/{lr!r}-{seed}"


def key_of(record: ModelRecord | TaskRecord | RunRecord) -> str:
    if isinstance(record, RunRecord):
        return f"{run_key(record.model, record.task, record.lr, record.seed)}.json"
    return f"{'models' if isinstance(record, ModelRecord) else 'tasks'}/{safe_name(record.name)}.json"


def write(store: Store, record: ModelRecord | TaskRecord | RunRecord) -> None:
    store.replace(key_of(record), documents.dump(asdict(record)))


def read(store: Store, key: str, kind: type[Record]) -> Record | None:
    """The record under a key; None: there is none.

    Raises:
        UserError: it is damaged, or of another version.
    """
    name = f"{store.url}/{key}"
    try:
        return TypeAdapter(kind).validate_python(documents.read(store, key))
    except FileNotFoundError:
        return None
    except ValidationError:
        raise UserError(f"{name} is of another version; choose another output") from None


def read_model(store: Store, name: str) -> ModelRecord | None:
    """See `read`."""
    return read(store, f"models/{safe_name(name)}.json", ModelRecord)


def read_task(store: Store, name: str) -> TaskRecord | None:
    """See `read`."""
    return read(store, f"tasks/{safe_name(name)}.json", TaskRecord)


def read_runs(store: Store, models: Iterable[str], tasks: Iterable[str]) -> list[RunRecord]:
    """All runs of the given models and tasks.

    Raises:
        UserError: a record is damaged.
    """
    tasks = list(tasks)
    folders = [f"runs/{safe_name(model)}/{safe_name(task)}" for model in models for task in tasks]
    keys = [key for folder in folders for key in store.list(folder) if key.endswith(".json")]
    return [run for key in keys if (run := read(store, key, RunRecord))]


def read_results(store: Store) -> Results:
    """What the newest command asked for, as far as it is done.

    Raises:
        UserError: nothing was fine-tuned there, or a record is damaged.
    """
    recipe = read(store, RECIPE_KEY, Recipe)
    if recipe is None:
        raise UserError(f"{store.url} holds nothing of `student-train finetune`: there is no {RECIPE_KEY}")
    models = [read_model(store, name) for name in recipe.models]
    tasks = [read_task(store, name) for name in recipe.tasks]
    runs = read_runs(store, recipe.models, recipe.tasks)
    return Results(
        reference=recipe.reference,
        models=[model for model in models if model],
        tasks=[task for task in tasks if task],
        lrs=recipe.lrs,
        seeds=recipe.seeds,
        runs=[run for run in runs if run.lr in recipe.lrs and run.seed in recipe.seeds],
    )


def recipe_of(config: FinetuneConfig) -> Recipe:
    values = to_dict(config)
    return Recipe(
        training={key: values[key] for key in ("epochs", "batch_size", "weight_decay", "warmup_share", "dtype")},
        models=list(config.models),
        reference=config.reference_model,
        tasks=list(config.tasks),
        lrs=list(config.lrs),
        seeds=list(config.seeds),
    )


def task_record(task: Task) -> TaskRecord:
    return TaskRecord(
        name=task.name,
        kind=task.kind,
        labels=list(task.labels),
        metrics=list(task.metrics),
        num_train=len(task.train),
        num_dev=len(task.dev),
        files=list(task.files),
        content_sha256=task.content_sha256,
        config=to_dict(task.config),
    )


def begin(
    store: Store,
    recipe: Recipe,
    models: list[ModelRecord],
    tasks: list[TaskRecord],
    teachings: Mapping[tuple[str, str], Teaching],
) -> None:
    """Writes what a command asks for, before its first run.

    Args:
        teachings: by model and task.

    Raises:
        UserError: the output holds runs that could not be compared with it; or a record is damaged.
    """
    named: list[tuple[str, ModelRecord | TaskRecord]] = [(f"models.{model.name}", model) for model in models]
    named += [(f"tasks.{task.name}", task) for task in tasks]
    before = read(store, RECIPE_KEY, Recipe)
    found = differences(before.training, recipe.training) if before else []
    for name, record in named:
        old = read(store, key_of(record), type(record))
        found += differences(_content(old), _content(record), name) if old else []
    taught = {(run.model, run.task): run.taught for run in read_runs(store, recipe.models, recipe.tasks)}
    for (model, task), then in taught.items():
        now = teachings.get((model, task))
        found += differences(then and asdict(then), now and asdict(now), f"distillation.{model}.{task}")
    if found:
        told = "; ".join(f"{path} is {_short(old)} there and {_short(new)} here" for path, old, new in found)
        raise UserError(
            f"{store.url} holds runs that cannot be compared with these: {told}; "
            "choose another `output`, or another name for what is new"
        )
    store.replace(RECIPE_KEY, documents.dump(asdict(recipe)))
    for _, record in named:
        write(store, record)


def _content(record: ModelRecord | TaskRecord) -> dict[str, Any]:
    """What two records of one name must share: neither where a model or a file lies, nor what averages count."""
    values = asdict(record)
    if isinstance(record, ModelRecord):
        return {key: value for key, value in values.items() if key != "path"}
    config = {key: value for key, value in record.config.items() if key not in NO_CONTENT}
    return {key: value for key, value in values.items() if key != "files"} | {"config": config}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 32 else "another"
