"""What exported files score on the task that a model was fine-tuned for."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from student_train.export.onnx_graph import Logits
from student_train.finetune.config import FinetuneTask
from student_train.saved_model import SavedModel
from teacher_cache.errors import UserError
from teacher_cache.shell import settings

if TYPE_CHECKING:
    from teacher_cache.tasks.record import Task

BATCH_FEATURES = 32


def read_task(path: str) -> "Task":
    """Of a YAML file that holds what stands under a task's name in the configuration of a fine-tuning.

    Raises:
        UserError: the configuration or the task's files are refused.
    """
    config = settings.load(FinetuneTask, path)
    from teacher_cache.tasks.task import load_task

    return load_task(Path(path).stem, config)


def check_task(task: "Task", saved: SavedModel) -> None:
    """Refuses a task for which the model was not fine-tuned, or of texts that are too long for it (UserError)."""
    if task.kind != saved.head:
        raise UserError(f"--task is {task.kind}, {saved.place} does {saved.head}; give the task it was fine-tuned for")
    if task.labels and task.labels != saved.labels:
        raise UserError(
            f"--task has the labels {', '.join(task.labels)}, {saved.place} knows {', '.join(saved.labels)}; give the"
            " task that it was fine-tuned for"
        )
    if task.config.max_length > saved.max_length:
        raise UserError(
            f"--task has max_length {task.config.max_length}, {saved.place} takes {saved.max_length} tokens; lower it"
        )


def dev_scores(task: "Task", saved: SavedModel, models: Mapping[str, Logits]) -> dict[str, dict[str, float]]:
    """Metrics on the task's dev set by model; per cent, the first metric is the task's score."""
    from teacher_cache.tasks.task import features, score

    dev = features(task, "dev", saved.tokenizer)
    return {name: score(task, predict(logits, dev, saved), dev) for name, logits in models.items()}


def predict(logits: Logits, features: Any, saved: SavedModel) -> np.ndarray:
    """Of all features in their order: [N, C] logits, or [N, S, C] of tokens, with zeros behind a text's end."""
    found = []
    for start in range(0, len(features), BATCH_FEATURES):
        rows = features[start : start + BATCH_FEATURES]
        given = {name: rows[name] for name in saved.input_names}
        batch = saved.tokenizer.pad(given, return_tensors="np")
        found.append(logits({name: np.asarray(batch[name], dtype=np.int64) for name in saved.input_names}))
    return np.concatenate(_same_length(found))


def _same_length(batches: list[np.ndarray]) -> list[np.ndarray]:
    if batches[0].ndim == 2:
        return batches
    longest = max(batch.shape[1] for batch in batches)
    return [np.pad(batch, ((0, 0), (0, longest - batch.shape[1]), (0, 0))) for batch in batches]
