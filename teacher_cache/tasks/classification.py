"""Classification and regression of a text or a pair: examples from tables, features, score."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from teacher_cache.errors import UserError
from teacher_cache.tasks.config import TaskConfig
from teacher_cache.tasks.metrics import MEAN, measure
from teacher_cache.tasks.record import Task
from teacher_cache.tasks.table import Table

if TYPE_CHECKING:
    from datasets import Dataset

TEXTS = ("text", "text_pair")
METRICS = {"classification": ("accuracy", "macro_f1", "matthews"), "regression": ("mean", "pearson", "spearman")}
"""Of tables with columns of the user's own."""


def label_names(table: Table, label: str) -> tuple[str, ...]:
    """The labels that a train table holds, sorted.

    Raises:
        UserError: a row has none, or all have the same.
    """
    labels = sorted({_label(table, label, row) for row in range(len(table.lines))})
    if len(labels) == 1:
        raise UserError(f"{table.name}: every {label!r} is {labels[0]!r}, so that there is nothing to learn")
    return tuple(labels)


def examples(table: Table, *, text: Sequence[str], label: str, labels: Sequence[str]) -> dict[str, list[Any]]:
    """The columns of a task's examples, texts without whitespace around them.

    Args:
        labels: all there are; none for regression.

    Raises:
        UserError: the table is empty, a text is none, or a label is not one of `labels` or not a finite number.
    """
    rows = range(len(table.lines))
    if not rows:
        raise UserError(f"{table.name} holds no examples")
    columns: dict[str, list[Any]] = {
        name: [_text(table, column, row) for row in rows] for name, column in zip(TEXTS, text, strict=False)
    }
    if not labels:
        return columns | {"label": [_number(table, label, row) for row in rows]}
    places = {name: place for place, name in enumerate(labels)}
    return columns | {"label": [_place(table, label, row, places) for row in rows]}


def encode(batch: dict[str, list[Any]], tokenizer: Any, config: TaskConfig) -> dict[str, list[Any]]:
    """Features of some examples; too long texts are cut, of a pair the longer first."""
    texts = [batch[name] for name in TEXTS if name in batch]
    encoded = tokenizer(*texts, truncation="longest_first", max_length=config.max_length)
    return dict(encoded) | {"labels": batch["label"]}


def score(task: Task, predictions: NDArray[Any], features: "Dataset") -> dict[str, float]:
    """The task's metrics of logits [N, num_outputs]."""
    rows = np.asarray(features["example"])
    truth = np.asarray(task.dev["label"])[rows]
    guess = predictions[:, 0] if task.kind == "regression" else predictions.argmax(axis=1)
    if "mismatched" in task.dev.column_names:
        mismatched = np.asarray(task.dev["mismatched"])[rows] == 1
        found = {
            "accuracy_matched": measure("accuracy", truth[~mismatched], guess[~mismatched]),
            "accuracy_mismatched": measure("accuracy", truth[mismatched], guess[mismatched]),
        }
    else:
        found = {name: measure(name, truth, guess) for name in task.metrics if name != MEAN}
    return {MEAN: sum(found.values()) / len(found)} | found if MEAN in task.metrics else found


def _text(table: Table, column: str, row: int) -> str:
    value = table.columns[column][row]
    if not isinstance(value, str):
        raise UserError(f"{table.place(row)}: {column!r} is of type {type(value).__name__}; it must be a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # half a surrogate pair, as JSON's escapes can write it
        raise UserError(f"{table.place(row)}: {column!r} is not Unicode text ({error.reason})") from None
    return value.strip()


def _label(table: Table, column: str, row: int) -> str:
    value = table.columns[column][row]
    if value is None or isinstance(value, float) or (name := str(value).strip()) == "":
        raise UserError(f"{table.place(row)}: {column!r} is {value!r}; a label must be a text or a whole number")
    return name


def _place(table: Table, column: str, row: int, places: dict[str, int]) -> int:
    name = _label(table, column, row)
    if name not in places:
        raise UserError(f"{table.place(row)}: {column!r} is {name!r}; the task's labels are {', '.join(places)}")
    return places[name]


def _number(table: Table, column: str, row: int) -> float:
    value = table.columns[column][row]
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{table.place(row)}: {column!r} is {value!r}; a regression's label must be a number")
    return number
