"""A teacher's logits from a task's cache, joined to a student's own features; no teacher is there.

Legend: B features, S tokens, C outputs of the task.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from student_train.finetune.config import DistillationConfig
from student_train.finetune.records import TaskRecord, Teaching
from teacher_cache.errors import UserError
from teacher_cache.format.cache import Cache, open_cache
from teacher_cache.format.row import Row
from teacher_cache.tasks.record import Task

if TYPE_CHECKING:
    from datasets import Dataset

FEATURE = "feature"
"""Column of a student's features: their place, by which a batch finds the teacher's logits."""
TEACHER_LOGITS = "teacher_logits"
"""Of a batch: float32 [B, C], of tagging and question answering [B, S, C]."""


def teachings(config: DistillationConfig, tasks: Sequence[TaskRecord]) -> dict[tuple[str, str], Teaching]:
    """How models learn from caches, by model and task.

    Raises:
        UserError: a cache is not whole, or not of its task.
    """
    return {
        (model, task.name): teaching(config, caches[task.name], task)
        for model, caches in config.caches.items()
        for task in tasks
        if task.name in caches
    }


def teaching(config: DistillationConfig, url: str, task: Task | TaskRecord) -> Teaching:
    """How a model learns from a task's cache.

    Raises:
        UserError: it is not whole, or of another task.
    """
    return Teaching(
        fingerprint=opened(url, task).fingerprint, temperature=config.temperature, soft_weight=config.soft_weight
    )


def opened(url: str, task: Task | TaskRecord) -> Cache:
    """A task's cache.

    Raises:
        UserError: it is not whole, or of another task.
    """
    cache = open_cache(url)
    asked = cache.spec.task
    if asked is None:
        raise UserError(
            f"{cache.url} is the cache of a corpus; task {task.name} needs one that was built with its `task`"
        )
    found, wanted = ((of.kind, list(of.labels)) for of in (asked, task))
    if found != wanted:
        raise UserError(
            f"{cache.url} is not of task {task.name}: it is of {_told(*found)}, the task of {_told(*wanted)}"
        )
    cache.manifest(0)  # raises
    return cache


def _told(kind: str, labels: Sequence[str]) -> str:
    return f"{kind} ({', '.join(labels)})" if labels else kind


def read_logits(url: str, task: Task, features: "Dataset", model: str) -> list[NDArray[np.float32]]:
    """The teacher's logits of each of a task's train features as a student sees them, in order: [C] or [S, C].

    They take 4 bytes an output in memory: of question answering 8 a token.

    Raises:
        UserError: the cache is not whole, of another task, of features that are not the student's, or of a teacher with
            other classes.
    """
    cache, num_features = opened(url, task), len(features)
    num_cached = cache.manifest(0).num_sequences
    if num_cached != num_features:
        raise _unlike(
            f"{cache.url} holds {num_cached:,} features of task {task.name}, model {model} has {num_features:,}"
        )
    found, said = [], np.zeros((task.num_outputs, task.num_outputs), np.int64)
    is_classes = task.kind == "classification"
    labels = features["labels"] if is_classes else [0] * num_features
    for row, ids, label in zip(cache.rows(0), features["input_ids"], labels, strict=True):
        if not np.array_equal(row.input_ids, ids):
            raise _unlike(
                f"feature {row.sequence_id} of task {task.name} is not the same in {cache.url} and for model {model}"
            )
        found.append(_dense(row, task))
        if is_classes:
            said[label, found[-1].argmax()] += 1
    if is_permuted(said):
        raise UserError(
            f"{cache.url} knows the classes of task {task.name} in another order: its teacher agrees with"
            f" {said.trace() / said.sum():.0%} of the labels as they are; give a cache of a teacher that was fine-tuned"
            f" on this task, with the labels {', '.join(task.labels)} in this order"
        )
    return found


def is_permuted(said: NDArray[np.int64]) -> bool:
    """Whether what a teacher said of examples reads far better with its classes in another order: by half as much
    again, and by more than chance.

    Args:
        said: [C, C] examples by label and by the teacher's first class.
    """
    from scipy.optimize import linear_sum_assignment

    as_it_is, best = said.trace(), said[linear_sum_assignment(said, maximize=True)].sum()
    return bool(best > 1.5 * as_it_is and best - as_it_is > 4 * said.sum() ** 0.5)


def _unlike(what: str) -> UserError:
    return UserError(
        f"{what}: teacher and student need tokenizers that do alike, and cache and student the same train file, "
        "max_length, stride and max_train_rows"
    )


def _dense(row: Row, task: Task) -> NDArray[np.float32]:
    """[S, C] of a row, with 0 where the teacher was not asked; [C] where it answered for the whole sequence."""
    logits = np.zeros((len(row.input_ids), task.num_outputs), np.float32)
    logits[row.kept_positions[:, None], row.topk_ids] = row.topk_logits
    return (
        logits if task.kind in ("tagging", "question_answering") else logits[0].copy()
    )  # not a view that keeps [S, C]


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
