"""The sealed list of the parts of a tokenised corpus."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from teacher_cache.errors import UserError
from teacher_cache.format import parquet, sequences
from teacher_cache.format.sequences import Sequences, TokenisedFile
from teacher_cache.storage import parallel
from teacher_cache.storage.store import Store
from tests.teacher_cache.format.samples import FINGERPRINT

MANIFEST = r"sequences/manifest\.parquet"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Tokenised files of 2, 0, 1 and 3 parts, each part of two sequences of three tokens."""
    store = Store(str(tmp_path / "cache"))
    for file, num_parts in enumerate((2, 0, 1, 3)):
        ids = [np.array([file, 0, 0]), np.array([file, 1, 1])]
        parts = tuple(sequences.write_part(store, file, part, ids, [2 * part, 2 * part]) for part in range(num_parts))
        sequences.commit_file(store, file, TokenisedFile(parts=parts, num_documents=2 * num_parts))
    return store


def test_parts_come_back_with_their_places(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "BLOCK", 3)
    sequences.seal(store, 4, FINGERPRINT)
    corpus = Sequences(store)
    committed = [part for file in range(4) for part in sequences.read_commit(store, file).parts]
    assert [(part.ref, part.num_sequences, part.num_tokens) for part in corpus.parts] == committed
    assert [part.file for part in corpus.parts] == [0, 0, 2, 3, 3, 3]
    assert [part.first_sequence for part in corpus.parts] == [0, 2, 4, 6, 8, 10]
    assert [part.first_document for part in corpus.parts] == [0, 0, 4, 6, 6, 6]
    assert {type(part.first_document) for part in corpus.parts} == {int}
    assert [row.document_id for row in corpus.read(0, 99)] == [0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10]


def test_a_corpus_without_a_part_is_sealed_empty(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "cache"))
    sequences.commit_file(store, 0, TokenisedFile(parts=(), num_documents=0))
    sequences.seal(store, 1, FINGERPRINT)
    assert (Sequences(store).parts, Sequences(store).num_sequences) == ([], 0)


@pytest.mark.parametrize(
    "changes", [{"key": "elsewhere"}, {"sha256": "0" * 64}, {"sha256": "x" * 64}, {"sha256": ""}], ids=str
)
def test_a_part_that_lies_elsewhere_is_not_listed(store: Store, changes: dict[str, str]) -> None:
    (ref, *sizes), *_ = sequences.read_commit(store, 0).parts
    parts: Any = ((replace(ref, **changes), *sizes),)
    sequences.commit_file(store, 4, TokenisedFile(parts=parts, num_documents=1))
    with pytest.raises(UserError, match="part 0 of corpus file 4 cannot lie at"):
        sequences.seal(store, 5, FINGERPRINT)
    assert not store.exists(sequences.MANIFEST_KEY)


def hostile(store: Store, metadata: dict[str, Any] | None = None, **changes: np.ndarray | None) -> None:
    """A manifest whose author knows the format; a change to None takes a column away."""
    sequences.seal(store, 4, FINGERPRINT)
    key = sequences.MANIFEST_KEY
    columns, found = parquet.read_list(store.read(key, max_bytes=10**6), name=key)
    listed = {name: values for name, values in (columns | changes).items() if values is not None}
    store.replace(key, parquet.write_list(listed, metadata=found if metadata is None else metadata))


@pytest.mark.parametrize(
    "changes",
    [
        {"file": np.array([0, 0, 2, 3, 3, 2])},
        {"first_sequence": np.array([0, 2, 4, 6, 8, 11])},
        {"first_sequence": np.array([1, 3, 5, 7, 9, 11])},
        {"num_sequences": np.array([2, 2, 2, 2, 2**35, 2])},
    ],
    ids=str,
)
def test_parts_that_do_not_follow_each_other_are_refused(store: Store, changes: dict[str, np.ndarray]) -> None:
    hostile(store, **changes)
    with pytest.raises(UserError, match=rf"{MANIFEST} is refused: its parts do not follow each other; move it away"):
        Sequences(store)


@pytest.mark.parametrize("name", ["sha256", "file", "num_tokens"])
def test_a_list_without_one_of_its_columns_is_refused(store: Store, name: str) -> None:
    hostile(store, **{name: None})
    with pytest.raises(UserError, match=rf"{MANIFEST} is refused: its columns are .*; they must be sha256, "):
        Sequences(store)


def test_metadata_that_say_too_little_are_damaged(store: Store) -> None:
    hostile(store, metadata={"fingerprint": FINGERPRINT})
    with pytest.raises(UserError, match=rf"{MANIFEST} is damaged: 'num_documents'; move it away"):
        Sequences(store)
