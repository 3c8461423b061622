"""A task from its files or the hub, its features for a tokenizer, and the score of predictions."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from teacher_cache.errors import UserError
from teacher_cache.tasks import classification, tagging
from teacher_cache.tasks.config import TaskConfig
from teacher_cache.tasks.conll import read_conll
from teacher_cache.tasks.files import describe, task_urls
from teacher_cache.tasks.glue import GLUE, MNLI_METRICS, read_glue
from teacher_cache.tasks.record import Kind, Split, Task
from teacher_cache.tasks.table import read_table

if TYPE_CHECKING:
    from datasets import Dataset

LIBRARIES = ("datasets", "scipy", "seqeval", "sklearn")
BATCH_EXAMPLES = 1000
"""Tokenised at once: while offsets are there, a token takes some hundred bytes."""

_ENCODERS = {
    "classification": classification.encode,
    "regression": classification.encode,
    "tagging": tagging.encode,
}
_SCORES = {
    "classification": classification.score,
    "regression": classification.score,
    "tagging": tagging.score,
}


@dataclass(frozen=True, kw_only=True)
class _Read:
    """What a layout's files hold: columns of `Task.train` and `Task.dev`."""

    kind: Kind
    labels: tuple[str, ...] = ()
    metrics: tuple[str, ...]
    train: dict[str, list[Any]]
    dev: dict[str, list[Any]]


def load_task(name: str, config: TaskConfig) -> Task:
    """Reads a task whole and checks every example.

    Raises:
        UserError: a file or the hub cannot be read, or something in it is wrong: the task, the file and the line are
            named; or the libraries for tasks are not installed.
    """
    check_libraries()
    from datasets import Dataset

    try:
        urls = task_urls(config)
        files = describe(urls)
        read = _read(config, urls)
    except UserError as error:
        raise UserError(f"task {name}: {error}") from None
    return Task(
        name=name,
        kind=read.kind,
        labels=read.labels,
        metrics=read.metrics,
        train=_some(Dataset.from_dict(read.train), config.max_train_rows),
        dev=Dataset.from_dict(read.dev),
        files=files,
        config=config,
    )


def check_libraries() -> None:
    """Raises:
    UserError: a library that tasks need is not installed.
    """
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        raise UserError(f"tasks need {', '.join(missing)}: pip install 'teacher-cache[tasks]'")


def features(task: Task, split: Split, tokenizer: Any) -> "Dataset":
    """What a model reads: `input_ids`, `attention_mask`, `token_type_ids` where the tokenizer makes them; what it
    learns: `labels`, or `start_positions` and `end_positions`; `example`, the row in the split; and what `score` needs.
    In the examples' order, one feature an example, of question answering one or more.

    Raises:
        UserError: the tokenizer is slow, or takes fewer tokens than the task's `max_length`.
    """
    from datasets import Dataset, concatenate_datasets

    _check_tokenizer(task, tokenizer)
    examples = task.train if split == "train" else task.dev
    parts = []
    for start in range(0, len(examples), BATCH_EXAMPLES):
        batch = examples[start : start + BATCH_EXAMPLES]
        columns = {"example": list(range(len(batch[next(iter(batch))])))}
        columns |= _ENCODERS[task.kind](batch, tokenizer, task.config)
        columns["example"] = [start + row for row in columns["example"]]
        parts.append(Dataset.from_dict(columns))
    return concatenate_datasets(parts)


def score(task: Task, predictions: NDArray[Any], features: "Dataset") -> dict[str, float]:
    """The metrics of predictions for the dev features, in per cent (correlations from -100), the task's score first.

    Args:
        predictions: logits in the features' order: [N, num_outputs], of tagging and question answering
            [N, S, num_outputs] with S the longest feature's tokens, shorter ones padded at the end.
    """
    predictions = np.asarray(predictions)
    if predictions.shape[:1] != (len(features),) or predictions.shape[-1] != task.num_outputs:
        raise ValueError(
            f"predictions are of shape {predictions.shape}; they must be ({len(features)}, …, {task.num_outputs})"
        )
    return _SCORES[task.kind](task, predictions, features)


def _check_tokenizer(task: Task, tokenizer: Any) -> None:
    if not tokenizer.is_fast:
        raise UserError(
            f"{type(tokenizer).__name__} is a slow tokenizer, which does not tell where in a text its tokens stand; "
            "load the fast one (AutoTokenizer's default), or save the model with a tokenizer.json"
        )
    if task.config.max_length > tokenizer.model_max_length:
        raise UserError(
            f"task {task.name}: max_length is {task.config.max_length}, and the tokenizer's models take "
            f"{tokenizer.model_max_length} tokens; lower max_length"
        )


def _read(config: TaskConfig, urls: dict[str, str]) -> _Read:
    match config.layout:
        case "conll":
            return _read_tagging(urls)
        case "table":
            return _read_table(config, urls)
    return _read_glue(config, urls)


def _read_tagging(urls: dict[str, str]) -> _Read:
    train, dev = read_conll(urls["train"]), read_conll(urls["dev"])
    labels = tagging.tag_names(train)
    return _Read(
        kind="tagging",
        labels=labels,
        metrics=tagging.METRICS,
        train=tagging.examples(urls["train"], train, labels),
        dev=tagging.examples(urls["dev"], dev, labels),
    )


def _read_glue(config: TaskConfig, urls: dict[str, str]) -> _Read:
    glue = GLUE[config.layout]
    kind = "classification" if glue.labels else "regression"
    read = {
        split: classification.examples(
            read_glue(url, config.layout), text=glue.text, label=glue.label, labels=glue.labels, kind=kind
        )
        for split, url in urls.items()
    }
    metrics = glue.metrics
    if mismatched := read.pop("mismatched", None):
        metrics = MNLI_METRICS
        flags = [0] * len(read["dev"]["label"]) + [1] * len(mismatched["label"])
        read["dev"] = {name: values + mismatched[name] for name, values in read["dev"].items()} | {"mismatched": flags}
    return _Read(kind=kind, labels=glue.labels, metrics=metrics, **read)


def _read_table(config: TaskConfig, urls: dict[str, str]) -> _Read:
    assert config.label is not None
    assert config.kind is not None
    train, dev = (read_table(urls[split], [*config.text, config.label]) for split in ("train", "dev"))
    labels = classification.label_names(train, config.label) if config.kind == "classification" else ()
    columns = {"text": config.text, "label": config.label, "labels": labels, "kind": config.kind}
    return _Read(
        kind=config.kind,
        labels=labels,
        metrics=classification.METRICS[config.kind],
        train=classification.examples(train, **columns),
        dev=classification.examples(dev, **columns),
    )


def _some(examples: "Dataset", max_rows: int | None) -> "Dataset":
    """The first rows of a random order that is the same everywhere: NumPy promises this generator's stream."""
    if max_rows is None or max_rows >= len(examples):
        return examples
    return examples.select(np.random.RandomState(0).permutation(len(examples))[:max_rows])
