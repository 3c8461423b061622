"""A task from its files or the hub, its features for a tokenizer, and the score of predictions."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from teacher_cache.errors import UserError
from teacher_cache.tasks import classification, question_answering, squad, tagging
from teacher_cache.tasks.config import TaskConfig
from teacher_cache.tasks.files import describe, task_urls
from teacher_cache.tasks.layouts import read
from teacher_cache.tasks.record import Split, Task

if TYPE_CHECKING:
    from datasets import Dataset

LIBRARIES = ("datasets", "scipy", "seqeval", "sklearn")
BATCH_EXAMPLES = 1000
"""Tokenised at once: while offsets are there, a token takes some hundred bytes."""

_ENCODERS = {
    "classification": classification.encode,
    "regression": classification.encode,
    "tagging": tagging.encode,
    "question_answering": question_answering.encode,
}
_SCORES = {
    "classification": classification.score,
    "regression": classification.score,
    "tagging": tagging.score,
    "question_answering": question_answering.score,
}


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
        found = read(config, urls)
    except UserError as error:
        raise UserError(f"task {name}: {error}") from None
    types = squad.types() if found.kind == "question_answering" else None
    return Task(
        name=name,
        kind=found.kind,
        labels=found.labels,
        metrics=found.metrics,
        train=_some(Dataset.from_dict(found.train, types), config.max_train_rows),
        dev=Dataset.from_dict(found.dev, types),
        files=files,
        config=config,
    )


def check_libraries() -> None:
    """Stops where a library that tasks need is not installed.

    Raises:
        UserError: it names the libraries, and what to install.
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
        columns = _ENCODERS[task.kind](examples[start : start + BATCH_EXAMPLES], tokenizer, task.config)
        rows = columns.get("example", range(len(columns["input_ids"])))
        parts.append(Dataset.from_dict(columns | {"example": [start + row for row in rows]}))
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


def _some(examples: "Dataset", max_rows: int | None) -> "Dataset":
    """The first rows of a random order that is the same everywhere: NumPy promises this generator's stream."""
    if max_rows is None or max_rows >= len(examples):
        return examples
    return examples.select(np.random.RandomState(0).permutation(len(examples))[:max_rows])
