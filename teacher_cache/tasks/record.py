"""A task as it was read: its examples, and what is predicted of them."""

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from teacher_cache.format.spec import TaskKind
from teacher_cache.tasks.config import TaskConfig

if TYPE_CHECKING:
    from datasets import Dataset

Kind = TaskKind
Split = Literal["train", "dev"]


@dataclass(frozen=True, kw_only=True)
class TaskFile:
    """A file that a task was read from; size and digest are of the stored bytes."""

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """Columns of `train` and `dev` by kind, a row an example:

    - classification, regression: `text`, of pairs also `text_pair`, and `label` (a place in `labels`, or a float);
      MNLI's dev also `mismatched` (0 or 1)
    - tagging: `words` and as many `tags` (places in `labels`)
    - question answering: `id`, `question`, `context`, `answers` (texts, any of which is right; none: it cannot be
      answered) and `answer_starts` (characters into the context)
    """

    name: str
    kind: Kind
    labels: tuple[str, ...] = ()
    """Of classification sorted, of tagging O first; otherwise empty."""
    metrics: tuple[str, ...]
    """The first is the task's score."""
    train: "Dataset"
    dev: "Dataset"
    files: tuple[TaskFile, ...]
    """None of a hub data set."""
    config: TaskConfig

    @property
    def content_sha256(self) -> str:
        """Of all examples, wherever they were read from."""
        digest = hashlib.sha256()
        for split in (self.train, self.dev):
            for batch in split.iter(1000):
                digest.update(json.dumps(batch, sort_keys=True).encode())
        return digest.hexdigest()

    @property
    def num_outputs(self) -> int:
        """Logits of a feature, or for tagging and question answering (start, end) of a token."""
        return {"regression": 1, "question_answering": 2}.get(self.kind, len(self.labels))
