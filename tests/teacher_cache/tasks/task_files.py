"""Tiny task files, and predictions for their features."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teacher_cache.shell.settings import parse
from teacher_cache.tasks.config import TaskConfig
from teacher_cache.tasks.record import Task
from teacher_cache.tasks.task import load_task

Question = dict[str, Any]


def make_config(**values: Any) -> TaskConfig:
    return parse(TaskConfig, values)


def load(folder: Path, files: dict[str, str | bytes], /, **values: Any) -> Task:
    """Writes files and reads them as the task `tiny`; a layout without named files reads the folder."""
    for name, content in files.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    places = {split: str(folder / values[split]) for split in ("train", "dev") if split in values}
    return load_task("tiny", make_config(**({"folder": str(folder)} if not places else {}) | values | places))


def conll(*sentences: Sequence[tuple[str, str]]) -> str:
    return "\n\n".join("\n".join(f"{word}\t{tag}" for word, tag in sentence) for sentence in sentences) + "\n"


def squad(*paragraphs: tuple[str, list[Question]]) -> str:
    """A SQuAD file of (context, questions)."""
    return json.dumps({"data": [{"paragraphs": [{"context": context, "qas": qas}]} for context, qas in paragraphs]})


def question(context: str, answer: str | None, *, id: str = "q", text: str = "what", **values: Any) -> Question:
    """A question whose answer stands at its first place in the context; None: impossible."""
    answers = [] if answer is None else [{"text": answer, "answer_start": context.index(answer)}]
    impossible = {"is_impossible": True} if answer is None else {}
    return {"id": id, "question": text, "answers": answers} | impossible | values


def perfect(task: Task, features: Any) -> NDArray[np.float32]:
    """Predictions that say what the features' labels are; of tokens without a label they say nothing."""
    if task.kind == "regression":
        return np.array(features["labels"], dtype=np.float32)[:, None]
    if task.kind == "classification":
        return np.eye(task.num_outputs, dtype=np.float32)[features["labels"]]
    longest = max(map(len, features["input_ids"]))
    logits = np.zeros((len(features), longest, task.num_outputs), dtype=np.float32)
    if task.kind == "question_answering":
        for row, positions in enumerate(zip(features["start_positions"], features["end_positions"], strict=True)):
            logits[row, positions, [0, 1]] = 1
        return logits
    for row, labels in enumerate(features["labels"]):
        for token, label in enumerate(labels):
            if label >= 0:
                logits[row, token, label] = 1
    return logits
