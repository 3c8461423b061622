"""Generations of a view's manifest: what repairs write, and what readers hold on to."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from teacher_cache.errors import UserError
from teacher_cache.format import manifest, parquet
from teacher_cache.format.manifest import Manifest, Shard
from teacher_cache.storage.store import Store
from tests.teacher_cache.format.samples import DIGESTS, FINGERPRINT, shard

NUM_UNITS = 3


def seal(store: Store) -> Manifest:
    for unit in range(NUM_UNITS):
        manifest.commit(store, 0, shard(unit), FINGERPRINT)
    return manifest.seal(store, view=0, num_units=NUM_UNITS, fingerprint=FINGERPRINT, digests=DIGESTS)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "cache"))


def check_generations(store: Store) -> None:
    """A view is sealed and repaired twice."""
    first = seal(store)
    second = manifest.add_generation(store, first, {1: shard(1, "a")})
    third = manifest.add_generation(store, second, {2: shard(2, "b"), 0: shard(0, "c")})
    assert list(second.shards) == [shard(0), shard(1, "a"), shard(2)]
    assert list(third.shards) == [shard(0, "c"), shard(1, "a"), shard(2, "b")]
    assert manifest.newest_generation(store, 0) == 2
    assert manifest.read(store, 0) == third
    for generation, sealed in enumerate((first, second, third)):
        assert manifest.read(store, 0, generation) == sealed
        assert (sealed.generation, sealed.fingerprint, sealed.digests) == (generation, FINGERPRINT, DIGESTS)


def test_each_repair_adds_a_generation_and_changes_no_older_one(store: Store) -> None:
    check_generations(store)


@pytest.mark.s3
def test_each_repair_adds_a_generation_on_s3(s3: str) -> None:
    check_generations(Store(f"{s3}/cache"))


@pytest.mark.s3
def test_of_two_repairs_at_once_the_later_is_told_to_run_again_on_s3(s3: str) -> None:
    check_race(Store(f"{s3}/cache"))


def test_of_two_repairs_at_once_the_later_is_told_to_run_again(store: Store) -> None:
    check_race(store)


def check_race(store: Store) -> None:
    sealed = seal(store)
    winner = manifest.add_generation(store, sealed, {0: shard(0, "a")})
    with pytest.raises(
        UserError, match=r"manifests/00000-00001\.parquet was written by another .*run the same command"
    ):
        manifest.add_generation(store, sealed, {0: shard(0, "b")})
    assert manifest.read(store, 0) == winner


def test_two_repairs_that_agree_both_succeed(store: Store) -> None:
    sealed = seal(store)
    repaired = manifest.add_generation(store, sealed, {0: shard(0, "a")})
    assert manifest.add_generation(store, sealed, {0: shard(0, "a")}) == repaired
    assert manifest.newest_generation(store, 0) == 1


def test_a_generation_that_is_not_there_is_named(store: Store) -> None:
    seal(store)
    with pytest.raises(UserError, match=r"manifests/00000-00007\.parquet is missing: view 0 has no generation 7"):
        manifest.read(store, 0, 7)


@pytest.mark.parametrize(
    ("replaced", "told"),
    [
        ({3: shard(3)}, "unit 3 cannot be replaced: the view has units 0 to 2"),
        ({-1: shard(-1)}, "unit -1 cannot be replaced"),
        ({0: shard(1)}, "unit 0 cannot be replaced"),
        ({0: replace(shard(0), hidden=None)}, "hidden states in every shard or in none"),
        ({0: replace(shard(0), labels=shard(1).labels)}, "they belong at shards/00000/000000000-"),
        ({0: replace(shard(0), num_kept=-1)}, "num_kept -1; it must be from 0"),
    ],
)
def test_what_cannot_stand_in_the_view_replaces_nothing(store: Store, replaced: Mapping[int, Shard], told: str) -> None:
    sealed = seal(store)
    with pytest.raises(UserError, match=told):
        manifest.add_generation(store, sealed, replaced)
    assert manifest.read(store, 0) == sealed


def hostile(store: Store, **changes: object) -> None:
    """A manifest whose author knows the format; a change to None takes a column away."""
    columns = dict(seal(store).shards.columns) | changes
    metadata = {"fingerprint": FINGERPRINT, "view": 0, "generation": 1, "digests": {}}
    listed = {name: values for name, values in columns.items() if values is not None}
    store.create("manifests/00000-00001.parquet", parquet.write_list(listed, metadata=metadata))


@pytest.mark.parametrize("column", ["labels_sha256", "hidden_num_bytes", "num_kept"])
def test_a_manifest_without_one_of_its_columns_is_refused(store: Store, column: str) -> None:
    hostile(store, **{column: None})
    with pytest.raises(UserError, match=r"manifests/00000-00001\.parquet is refused: its columns are .*; move it away"):
        manifest.read(store, 0)


def test_a_manifest_with_another_column_is_refused(store: Store) -> None:
    hostile(store, labels_key=seal(store).sizes)
    with pytest.raises(UserError, match=r"manifests/00000-00001\.parquet is refused: its columns are .*labels_key"):
        manifest.read(store, 0)


def test_a_manifest_whose_metadata_say_too_little_is_damaged(store: Store) -> None:
    hostile(store)
    with pytest.raises(UserError, match=r"manifests/00000-00001\.parquet is damaged: .*missing.*; move it away"):
        manifest.read(store, 0)
