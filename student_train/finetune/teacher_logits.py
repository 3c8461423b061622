"""A teacher's logits from a task's cache, joined to a student's own features; no teacher is there.

Legend: B features, S tokens, C outputs of the task.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from teacher_cache.errors import UserError
from teacher_cache.format.cache import Cache
from teacher_cache.format.row import Row
from teacher_cache.tasks.record import Task

if TYPE_CHECKING:
    from datasets import Dataset

FEATURE = "feature"
"""Column of a student's features: their place, by which a batch finds the teacher's logits."""
TEACHER_LOGITS = "teacher_logits"
"""Of a batch: float32 [B, C], of tagging and question answering [B, S, C]."""


def check_cache(cache: Cache, task: Task) -> None:
    """Refuses a cache that is not whole, or not of this task.

    Raises:
        UserError: says what it is of.
    """
    asked = cache.spec.task
    if asked is None:
        raise UserError(
            f"{cache.url} is the cache of a corpus; task {task.name} needs one that was built with its `task`"
        )
    if (asked.kind, asked.labels) != (task.kind, task.labels):
        of_cache, of_task = (
            " of ".join([kind, ", ".join(labels)])
            for kind, labels in ((asked.kind, asked.labels), (task.kind, task.labels))
        )
        raise UserError(f"{cache.url} is of another task than {task.name}: {of_cache}, instead of {of_task}")
    cache.manifest(0)


def read_logits(cache: Cache, task: Task, features: "Dataset", model: str) -> list[NDArray[np.float32]]:
    """The teacher's logits of each of a task's train features as a student sees them, in order: [C] or [S, C].

    They take 4 bytes an output in memory: of question answering 8 a token.

    Raises:
        UserError: the cache is of another task, or of features that are not the student's.
    """
    check_cache(cache, task)
    remedy = (
        "teacher and student need tokenizers that do alike, and cache and student the same files, max_length, stride "
        "and max_train_rows"
    )
    num_sequences = cache.manifest(0).num_sequences
    if num_sequences != len(features):
        raise UserError(
            f"{cache.url} holds {num_sequences:,} features of task {task.name}, model {model} has {len(features):,}: "
            f"{remedy}"
        )
    found = []
    for row, ids in zip(cache.rows(0), features["input_ids"], strict=True):
        if not np.array_equal(row.input_ids, ids):
            raise UserError(
                f"feature {row.sequence_id} of task {task.name} has other tokens in {cache.url} than for model {model}: "
                f"{remedy}"
            )
        found.append(_dense(row, task))
    return found


def _dense(row: Row, task: Task) -> NDArray[np.float32]:
    """Of a row, [C]; or [S, C], with 0 where the teacher was not asked."""
    if task.kind in ("classification", "regression"):
        return row.topk_logits[0]
    logits = np.zeros((len(row.input_ids), task.num_outputs), np.float32)
    logits[row.kept_positions] = row.topk_logits
    return logits


class TaughtCollator:
    """Batches as another collator makes them, with the teacher's logits, padded with 0 to the batch's tokens."""

    def __init__(self, collate: Callable[[Any], Any], logits: Sequence[NDArray[np.float32]]) -> None:
        self._collate, self._logits = collate, logits

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        own = [{name: value for name, value in row.items() if name != FEATURE} for row in rows]
        batch = self._collate(own)
        if FEATURE in rows[0]:
            batch[TEACHER_LOGITS] = self._padded([self._logits[row[FEATURE]] for row in rows], batch)
        return batch

    def _padded(self, logits: Sequence[NDArray[np.float32]], batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if logits[0].ndim == 1:
            return torch.from_numpy(np.stack(logits))
        padded = torch.zeros(*batch["input_ids"].shape, logits[0].shape[-1])
        for row, values in enumerate(logits):
            padded[row, : len(values)] = torch.from_numpy(values)
        return padded
