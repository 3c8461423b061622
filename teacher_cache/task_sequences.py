"""A task's training features as sequences of a cache: what a fine-tuned teacher is asked, as it is, and where."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from teacher_cache.errors import UserError
from teacher_cache.format import sequences
from teacher_cache.format.sequences import StoredSequence, TokenisedFile
from teacher_cache.format.spec import TaskKind
from teacher_cache.storage.store import Store
from teacher_cache.tasks.record import Task
from teacher_cache.tasks.segments import segments_of
from teacher_cache.tasks.tagging import IGNORED
from teacher_cache.tasks.task import features


def task_sequences(task: Task, tokenizer: Any) -> list[StoredSequence]:
    """A sequence a training feature; for question answering an example may have several.

    Raises:
        UserError: an example's text holds a separator, so that the teacher could not tell where a pair is parted.
    """
    found = []
    for place, row in enumerate(features(task, "train", tokenizer)):
        found.append(sequence := _sequence(place, row, task.kind))
        # The teacher makes segments of the input ids alone.
        segments = segments_of(sequence.input_ids, tokenizer.sep_token_id)
        if not np.array_equal(row.get("token_type_ids", segments), segments):
            raise UserError(
                f"example {sequence.document_id} of the task holds {tokenizer.sep_token} as text, which parts the two "
                "texts of a pair; remove it there"
            )
    return found


def _sequence(place: int, row: dict[str, Any], kind: TaskKind) -> StoredSequence:
    labels = np.empty(0, np.int32)
    if kind in ("classification", "tagging"):
        labels = np.atleast_1d(np.array(row["labels"], np.int32))
    positions = np.flatnonzero(labels != IGNORED)
    return StoredSequence(
        sequence_id=place,
        document_id=row["example"],
        input_ids=np.array(row["input_ids"], np.int32),
        label_positions=positions,
        label_ids=labels[positions],
    )


def put_sequences(store: Store, found: Sequence[StoredSequence], fingerprint: str) -> None:
    """Stores a task's sequences as one file's, and seals them."""
    parts: list[Any] = []
    for start in range(0, len(found), sequences.PART_SEQUENCES):
        part = found[start : start + sequences.PART_SEQUENCES]
        ids, examples = [sequence.input_ids for sequence in part], [sequence.document_id for sequence in part]
        parts.append(sequences.write_part(store, 0, len(parts), ids, examples, labels=part))
    sequences.commit_file(store, 0, TokenisedFile(parts=tuple(parts), num_documents=found[-1].document_id + 1))
    sequences.seal(store, 1, fingerprint)
