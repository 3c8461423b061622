"""Commits and sealed manifests."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from teacher_cache.errors import UserError
from teacher_cache.format import documents, manifest
from teacher_cache.format.manifest import Manifest
from teacher_cache.storage import parallel
from teacher_cache.storage.store import Store
from tests.teacher_cache.format.samples import DIGESTS, FINGERPRINT, flip, shard

KEY = "manifests/00000-00000.parquet"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "cache"))


def commit(store: Store, *units: int, view: int = 0) -> None:
    for unit in units:
        manifest.commit(store, view, shard(unit), FINGERPRINT)


def seal(store: Store, num_units: int, view: int = 0) -> Manifest:
    return manifest.seal(store, view=view, num_units=num_units, fingerprint=FINGERPRINT, digests=DIGESTS)


def test_the_first_commit_wins(store: Store) -> None:
    assert manifest.commit(store, 0, shard(3, "a"), FINGERPRINT) == shard(3, "a")
    assert manifest.commit(store, 0, shard(3, "b"), FINGERPRINT) == shard(3, "a")
    assert manifest.read_commit(store, 0, 3, FINGERPRINT) == shard(3, "a")


def test_a_commit_much_longer_than_ours_wins_all_the_same(store: Store) -> None:
    first = replace(shard(3), num_tokens=10**10)
    assert manifest.commit(store, 0, first, FINGERPRINT) == first
    assert manifest.commit(store, 0, shard(3), FINGERPRINT) == first


def test_of_concurrent_commits_all_get_the_winner(store: Store) -> None:
    attempts = [shard(0, digit) for digit in "0123456789abcdef"]
    with ThreadPoolExecutor(len(attempts)) as threads:
        results = list(threads.map(lambda attempt: manifest.commit(store, 0, attempt, FINGERPRINT), attempts))
    assert set(results) == {manifest.read_commit(store, 0, 0, FINGERPRINT)}
    assert results[0] in attempts


def test_a_shard_without_hidden_states_comes_back(store: Store) -> None:
    plain = replace(shard(0), hidden=None)
    assert manifest.commit(store, 0, plain, FINGERPRINT) == plain
    assert manifest.read_commit(store, 0, 0, FINGERPRINT) == plain
    assert seal(store, 1).shards[:] == (plain,)
    assert plain.num_bytes == plain.labels.num_bytes


def test_committed_units_are_those_of_one_view(store: Store) -> None:
    commit(store, 0, 2, 1_000_000)
    commit(store, 1, view=1)
    assert manifest.committed_units(store, 0) == {0, 2, 1_000_000}
    assert manifest.committed_units(store, 1) == {1}
    assert manifest.committed_units(store, 2) == set()


def test_what_has_another_name_is_no_committed_unit(store: Store) -> None:
    commit(store, 7)
    for name in ("notes.txt", "commit.json", "8.json", "0000000009.json", "-00000001.json"):
        (Path(store.path("commits/00000")) / name).write_bytes(b"{}")
    assert manifest.committed_units(store, 0) == {7}


DOCUMENT: dict[str, Any] = {"fingerprint": FINGERPRINT, "view": 0, "owner": "o", "shard": asdict(shard(0))}
LABELS = DOCUMENT["shard"]["labels"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"unit": 1}, "it commits unit 1"),
        ({"unit": "0"}, "no whole numbers"),
        ({"num_tokens": -1}, "num_tokens -1; it must be from 0 to"),
        ({"num_kept": 2**36}, "num_kept 68,719,476,736; it must be from 0 to"),
        ({"num_labels": True}, "no whole numbers"),
        ({"num_labels": 1.5}, "no whole numbers"),
        ({"num_labels": None}, "no whole numbers"),
        ({"another": 1}, "another"),
        ({"labels": None}, "no labels"),
        ({"labels": {}}, "missing"),
        ({"labels": "text"}, ""),
        ({"labels": LABELS | {"num_bytes": -999}}, "num_bytes -954; it must be from 0 to"),
        ({"labels": LABELS | {"num_bytes": "1"}}, "no whole numbers"),
        ({"labels": LABELS | {"key": "shards/00001/000000000-0000000000000000.labels.parquet"}}, "they belong at"),
        ({"labels": LABELS | {"key": "../elsewhere"}}, "they belong at"),
        ({"labels": LABELS | {"sha256": "1" * 64}}, "they belong at"),
        ({"labels": LABELS | {"sha256": "0" * 63}}, "which is none"),
        ({"labels": LABELS | {"sha256": 0}}, ""),
    ],
)
def test_a_commit_that_says_what_no_builder_writes_is_refused(store: Store, changes: dict[str, Any], told: str) -> None:
    document = DOCUMENT | {"shard": DOCUMENT["shard"] | changes}
    store.create("commits/00000/000000000.json", documents.dump(document))
    with pytest.raises(UserError, match=rf"000000000\.json is (refused|damaged): .*{told}.*; move it away"):
        manifest.read_commit(store, 0, 0, FINGERPRINT)


@pytest.mark.parametrize("stored", [None, [], "text", {}])
def test_a_commit_without_a_shard_is_refused(store: Store, stored: Any) -> None:
    store.create("commits/00000/000000000.json", documents.dump(DOCUMENT | {"shard": stored}))
    with pytest.raises(UserError, match=r"000000000\.json is damaged: .*; move it away"):
        manifest.read_commit(store, 0, 0, FINGERPRINT)


def test_a_commit_of_another_cache_or_view_is_refused(store: Store) -> None:
    commit(store, 0)
    with pytest.raises(UserError, match=r"commits/00000/000000000.json belongs to another cache or view"):
        manifest.read_commit(store, 0, 0, "e" * 64)
    store.create("commits/00001/000000000.json", store.read("commits/00000/000000000.json", max_bytes=10**6))
    with pytest.raises(UserError, match=r"commits/00001/000000000.json belongs to another cache or view"):
        manifest.read_commit(store, 1, 0, FINGERPRINT)


def test_a_damaged_commit_is_refused(store: Store) -> None:
    commit(store, 0)
    path = Path(store.path("commits/00000/000000000.json"))
    flip(path, path.read_bytes().index(b'"num_kept":') + 11)
    with pytest.raises(UserError, match=r"000000000.json is damaged"):
        manifest.commit(store, 0, shard(0, "9"), FINGERPRINT)


def test_a_sealed_view_lists_its_shards_by_unit(store: Store) -> None:
    commit(store, 2, 0, 1)
    sealed = seal(store, 3)
    assert sealed == manifest.read(store, 0)
    assert list(sealed.shards) == [shard(0), shard(1), shard(2)]
    assert (sealed.fingerprint, sealed.view, sealed.generation, sealed.digests) == (FINGERPRINT, 0, 0, DIGESTS)
    assert sealed.sha256 == documents.sha256(Path(store.path(KEY)).read_bytes())


def test_totals_are_those_of_all_shards(store: Store) -> None:
    shards = [replace(shard(unit), num_sequences=unit + 1, num_tokens=100 * unit, num_kept=unit) for unit in range(3)]
    for one in shards:
        manifest.commit(store, 0, one, FINGERPRINT)
    sealed = seal(store, 3)
    assert sealed.sizes.tolist() == [1, 2, 3]
    assert (sealed.num_sequences, sealed.num_tokens, sealed.num_labels, sealed.num_kept) == (6, 300, 27, 3)
    assert (sealed.label_bytes, sealed.hidden_bytes, sealed.num_bytes) == (3 * 123, 3 * 45, 3 * 168)


def test_a_view_knows_for_how_long_its_teachers_were_asked(store: Store) -> None:
    for unit in range(3):
        assert manifest.commit(store, 0, shard(unit), FINGERPRINT, teacher_s=unit + 0.5) == shard(unit)
    late = manifest.commit(store, 0, shard(2, "b"), FINGERPRINT, teacher_s=99.0)
    assert late == shard(2), "its time is not of what is in the view"
    assert manifest.teacher_seconds(store, seal(store, 3)) == 4.5


def test_a_view_with_a_commit_that_notes_no_time_does_not_know_it(store: Store) -> None:
    manifest.commit(store, 0, shard(0), FINGERPRINT, teacher_s=1.0)
    commit(store, 1)
    assert manifest.teacher_seconds(store, seal(store, 2)) is None


def test_more_commits_than_are_read_at_once_are_sealed_in_order(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "BLOCK", 3)
    commit(store, *range(8))
    assert list(seal(store, 8).shards) == [shard(unit) for unit in range(8)]


def test_a_view_with_hidden_states_in_some_shards_only_is_not_sealed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(store, 0, 1)
    manifest.commit(store, 0, replace(shard(2), hidden=None), FINGERPRINT)
    with pytest.raises(UserError, match="2 of 3 shards of view 0 have hidden states; all or none"):
        seal(store, 3)
    monkeypatch.setattr(parallel, "BLOCK", 2)
    with pytest.raises(UserError, match="some units of view 0 have hidden states and some have not"):
        seal(store, 3)
    assert manifest.newest_generation(store, 0) is None


def test_sealing_twice_is_fine(store: Store) -> None:
    commit(store, 0, 1)
    assert seal(store, 2) == seal(store, 2)


def test_sealing_with_other_shards_is_refused_and_changes_nothing(store: Store) -> None:
    commit(store, 0, 1)
    first = seal(store, 1)
    with pytest.raises(UserError, match="view 0 is sealed with other shards"):
        seal(store, 2)
    assert manifest.read(store, 0) == first


def test_sealing_needs_every_commit(store: Store) -> None:
    commit(store, 0, 2)
    with pytest.raises(FileNotFoundError):
        seal(store, 3)
    assert manifest.newest_generation(store, 0) is None


def test_an_unsealed_view_cannot_be_read(store: Store) -> None:
    commit(store, 0)
    with pytest.raises(UserError, match="view 0 is not sealed; finish it with `teacher-cache build`"):
        manifest.read(store, 0)


@pytest.mark.parametrize("other", ["manifests/00001-00000.parquet", "manifests/00000-00001.parquet"])
def test_a_manifest_under_another_name_is_refused(store: Store, other: str) -> None:
    commit(store, 0)
    seal(store, 1)
    store.create(other, store.read(KEY, max_bytes=10**6))
    with pytest.raises(UserError, match=f"{other} is damaged: it holds the manifest of view 0, generation 0"):
        manifest.read(store, int(other[14]))


def test_a_flipped_bit_in_a_manifest_is_refused_or_changes_nothing(store: Store) -> None:
    commit(store, 0, 1)
    sealed = seal(store, 2)
    path = Path(store.path(KEY))
    whole = path.read_bytes()
    refused = 0
    for place in range(0, len(whole), 13):
        flip(path, place)
        try:
            assert vars(manifest.read(store, 0)) | {"sha256": ""} == vars(sealed) | {"sha256": ""}, place
        except UserError:
            refused += 1
        path.write_bytes(whole)
    assert refused > len(whole) / 26


def test_a_truncated_manifest_is_refused(store: Store) -> None:
    commit(store, 0)
    seal(store, 1)
    path = Path(store.path(KEY))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{KEY} is damaged"):
        manifest.read(store, 0)
