"""The tokenised corpus of a cache."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from teacher_cache.errors import UserError
from teacher_cache.format import sequences
from teacher_cache.format.sequences import Sequences, TokenisedFile
from teacher_cache.storage.store import Store
from tests.teacher_cache.format.samples import FINGERPRINT, flip


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(sequences, "ROW_GROUP_SEQUENCES", 2)
    return Store(str(tmp_path / "cache"))


def put_file(store: Store, file: int, parts: list[list[tuple[int, list[int]]]]) -> None:
    """Commits a corpus file of parts of (document in the file, token ids)."""
    written = [
        sequences.write_part(store, file, place, [np.array(ids) for _, ids in part], [document for document, _ in part])
        for place, part in enumerate(parts)
    ]
    last = parts[-1][-1][0] + 1 if parts else 0
    sequences.commit_file(store, file, TokenisedFile(parts=tuple(written), num_documents=last))


def read(corpus: Sequences, start: int = 0, stop: int = 10**9) -> list[tuple[int, int, list[int]]]:
    return [(row.sequence_id, row.document_id, row.input_ids.tolist()) for row in corpus.read(start, stop)]


@pytest.fixture
def corpus(store: Store) -> Sequences:
    """Three files: two parts, none, and one part."""
    put_file(store, 0, [[(0, [1, 2]), (0, [3]), (1, [4])], [(1, [5, 6, 7])]])
    put_file(store, 1, [])
    put_file(store, 2, [[(0, [8]), (2, [9, 10])]])
    sequences.seal(store, 3, FINGERPRINT)
    return Sequences(store)


EXPECTED = [(0, 0, [1, 2]), (1, 0, [3]), (2, 1, [4]), (3, 1, [5, 6, 7]), (4, 2, [8]), (5, 4, [9, 10])]


def test_ids_are_places_in_the_whole_in_file_order(corpus: Sequences) -> None:
    assert read(corpus) == EXPECTED


def test_totals(corpus: Sequences) -> None:
    assert (corpus.num_sequences, corpus.num_tokens, corpus.num_documents) == (6, 10, 5)
    assert corpus.fingerprint == FINGERPRINT


def test_every_range_reads_just_its_sequences(corpus: Sequences) -> None:
    for start in range(8):
        for stop in range(start, 9):
            assert read(corpus, start, stop) == EXPECTED[start:stop]


def test_ranges_laid_end_to_end_read_everything_once(corpus: Sequences) -> None:
    assert [row for start, stop in pairwise(range(0, 9, 2)) for row in read(corpus, start, stop)] == EXPECTED


def test_the_first_commit_of_a_file_wins(store: Store) -> None:
    put_file(store, 0, [[(0, [1])]])
    first = sequences.read_commit(store, 0)
    put_file(store, 0, [[(0, [2, 3])]])
    assert sequences.read_commit(store, 0) == first
    assert sequences.committed_files(store) == {0}


def test_sealing_twice_is_fine_and_sealing_other_sequences_is_not(store: Store) -> None:
    put_file(store, 0, [[(0, [1])]])
    put_file(store, 1, [[(0, [2])]])
    sequences.seal(store, 1, FINGERPRINT)
    sequences.seal(store, 1, FINGERPRINT)
    with pytest.raises(UserError, match=r"sequences/manifest.parquet exists and lists other sequences"):
        sequences.seal(store, 2, FINGERPRINT)
    assert Sequences(store).num_sequences == 1


def test_sealing_needs_every_file(store: Store) -> None:
    put_file(store, 1, [[(0, [1])]])
    with pytest.raises(FileNotFoundError):
        sequences.seal(store, 2, FINGERPRINT)
    with pytest.raises(FileNotFoundError):
        Sequences(store)


def test_a_flipped_bit_in_a_part_is_found(store: Store, corpus: Sequences) -> None:
    flip(Path(store.path(corpus.parts[1].ref.key)), 20)
    with pytest.raises(UserError, match=r"sequences/parts/000000-000001-.* is damaged"):
        read(corpus, 3, 4)
    assert read(corpus, 4) == EXPECTED[4:]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_flipped_bit_in_the_manifest_is_found(store: Store, corpus: Sequences, share: float) -> None:
    path = Path(store.path(sequences.MANIFEST_KEY))
    flip(path, int(share * path.stat().st_size))
    with pytest.raises(UserError, match=r"sequences/manifest.parquet is damaged"):
        Sequences(store)


def test_a_flipped_bit_in_a_commit_is_found(store: Store, corpus: Sequences) -> None:
    flip(Path(store.path("sequences/commits/000000.json")), 40)
    with pytest.raises(UserError, match=r"commits/000000.json is"):
        sequences.read_commit(store, 0)
