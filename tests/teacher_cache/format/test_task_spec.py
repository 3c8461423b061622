"""Identities and sequences of tasks."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from teacher_cache.errors import UserError
from teacher_cache.format import parquet, sequences
from teacher_cache.format.objects import put_content
from teacher_cache.format.sequences import Sequences, StoredSequence, TokenisedFile, digest_of
from teacher_cache.format.spec import Identity, TaskCorpusIdentity, TaskObjective, TeacherIdentity, task_identity
from teacher_cache.shell.settings import parse, to_dict
from teacher_cache.storage.store import Store
from tests.teacher_cache.format.samples import FINGERPRINT, identity

GOLDEN_FINGERPRINT = "7e85522b6bd600b439312f5a7aa6bbe4349904ac9883b05307d778bfdc8631c3"
GOLDEN_DIGEST = "73c187aaf9bdd38e12fe6eb6c621e43a836cccadd7f72791de190594d23b0d7d"
CLASSES = TaskObjective(kind="classification", labels=("no", "yes"))
_EXAMPLES = [([2, 9, 3], [1], [4]), ([2, 3], [], []), ([2, 7, 8, 3], [1, 2], [0, 1])]
SEQUENCES = [
    StoredSequence(
        sequence_id=place,
        document_id=place,
        input_ids=np.array(ids, np.int32),
        label_positions=np.array(positions, np.int64),
        label_ids=np.array(labels, np.int32),
    )
    for place, (ids, positions, labels) in enumerate(_EXAMPLES)
]


def of_task(objective: TaskObjective = CLASSES) -> Identity:
    return task_identity(
        objective,
        corpus=TaskCorpusIdentity(sha256="1" * 64, sequence_length=128, tokenizer_sha256="2" * 64),
        teacher=TeacherIdentity(sha256="3" * 64, dtype="float32"),
        unit_sequences=4,
    )


def test_golden_fingerprint() -> None:
    """If this fails, every existing cache of a task has lost its name: raise FORMAT_VERSION, or undo."""
    assert of_task().fingerprint == GOLDEN_FINGERPRINT


def test_golden_digest() -> None:
    """If this fails, the same examples are another cache."""
    assert digest_of(SEQUENCES) == GOLDEN_DIGEST


def test_each_part_of_a_sequence_is_part_of_the_digest() -> None:
    def changed(**values: Any) -> str:
        return digest_of([StoredSequence(**vars(SEQUENCES[0]) | values), *SEQUENCES[1:]])

    digests = {
        digest_of(SEQUENCES),
        changed(document_id=1),
        changed(input_ids=np.array([2, 8, 3])),
        changed(label_positions=np.array([2])),
        changed(label_ids=np.array([5])),
        digest_of(SEQUENCES[1:]),
    }
    assert len(digests) == 6


@pytest.mark.parametrize(
    ("objective", "num_outputs"),
    [
        (CLASSES, 2),
        (TaskObjective(kind="tagging", labels=("O", "B-a", "I-a")), 3),
        (TaskObjective(kind="regression"), 1),
        (TaskObjective(kind="question_answering"), 2),
    ],
)
def test_an_identity_survives_plain_values(objective: TaskObjective, num_outputs: int) -> None:
    made = of_task(objective)
    assert parse(Identity, to_dict(made)) == made
    assert made.task == objective
    assert made.soft_labels.top_k == num_outputs
    assert identity().task is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": "masked_lm"}, "objective, corpus and masking must all be a task's, or none of them"),
        ({"masking": {"rate": 0.15}}, "objective, corpus and masking must all be a task's, or none of them"),
        ({"keep": {"masked": 1.0, "unmasked": 0.1}}, "keep, soft_labels and hidden of a task must keep each output"),
        ({"soft_labels": {"top_k": 3, "temperatures": [], "code": "float32"}}, "of a task must keep each output"),
        ({"hidden": {"code": "float16"}}, "of a task must keep each output"),
        ({"objective": {"kind": "classification", "labels": ["yes"]}}, "must be two or more, all distinct"),
        ({"objective": {"kind": "tagging", "labels": ["O", "O"]}}, "must be two or more, all distinct"),
        ({"objective": {"kind": "regression", "labels": ["low", "high"]}}, "labels of kind regression must be none"),
    ],
)
def test_what_no_task_has_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(Identity, to_dict(of_task()) | change)


def put(store: Store, part: Any) -> Sequences:
    sequences.commit_file(store, 0, TokenisedFile(parts=(part,), num_documents=3))
    sequences.seal(store, 1, FINGERPRINT)
    return Sequences(store)


def test_sequences_come_back_with_their_labels(tmp_path: Path) -> None:
    store, ids = Store(str(tmp_path / "cache")), [sequence.input_ids for sequence in SEQUENCES]
    corpus = put(store, sequences.write_part(store, 0, 0, ids, [0, 1, 2], labels=SEQUENCES))
    found = list(corpus.read(0, 3))
    assert [sequence.sequence_id for sequence in found] == [0, 1, 2]
    assert digest_of(found) == GOLDEN_DIGEST


def test_labels_that_differ_in_number_are_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "cache"))
    columns = {
        "document": pa.array([0, 1], pa.int64()),
        "input_ids": parquet.ragged([[2, 9, 3], [2, 3]], np.int32),
        "label_positions": parquet.ragged([[1], [0]], np.uint16),
        "label_ids": parquet.ragged([[4], []], np.int32),
    }
    data = parquet.write(pa.table(columns), metadata={"file": 0, "part": 0}, row_group_rows=1024)
    ref = put_content(store, "sequences/parts/000000-000000", ".parquet", data)
    with pytest.raises(UserError, match="has label_positions and label_ids that differ in number"):
        list(put(store, (ref, 2, 5)).read(0, 2))
