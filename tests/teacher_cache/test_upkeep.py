"""Caches copied from store to store, and rid of what nothing lists."""

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from student_train import StudentSpec, train
from teacher_cache import CacheSpec, UserError, build, open_cache, units
from teacher_cache.format.cache import Cache
from teacher_cache.format.row import Row
from teacher_cache.pipeline import repair
from teacher_cache.shell.settings import parse
from teacher_cache.storage.store import Store
from teacher_cache.upkeep import garbage
from teacher_cache.upkeep.copies import copy
from teacher_cache.upkeep.garbage import gc
from teacher_cache.verify import verify
from tests.caches import make_spec

NUM_UNITS = 5
PLACES = [
    "folder",
    pytest.param("s3", marks=pytest.mark.s3),
    pytest.param("ceph", marks=pytest.mark.integration),
]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> CacheSpec:
    """Of a cache that is built, with two views."""
    made = make_spec(tmp_path_factory.mktemp("source") / "cache", views=2)
    build(made, progress=False)
    return made


@pytest.fixture
def source(spec: CacheSpec) -> Cache:
    return open_cache(spec.cache)


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where nothing is yet."""
    return str(tmp_path / "copy") if request.param == "folder" else f"{request.getfixturevalue(request.param)}/copy"


def objects(url: str) -> dict[str, bytes]:
    """Bytes by key."""
    store = Store(url)
    found = store.fs.find(store.root)
    return {path.removeprefix(f"{store.root}/"): store.fs.cat_file(path) for path in found}


def write(url: str, key: str, data: bytes) -> None:
    Store(url).replace(key, data)


def cut(path: Path) -> None:
    """Loses the last byte."""
    path.write_bytes(path.read_bytes()[:-1])


def own(spec: CacheSpec, folder: Path) -> Path:
    """A copy of the cache for a test to spoil, made without the code under test."""
    return Path(shutil.copytree(spec.cache, folder))


def refuse_the_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask_unit(*_: object, **__: object) -> None:
        raise AssertionError("the teacher is asked")

    monkeypatch.setattr(units, "ask_unit", ask_unit)


class TestCopy:
    def test_a_copy_has_the_same_bytes_and_is_whole(self, source: Cache, place: str) -> None:
        summary = copy(source, place)
        assert objects(place) == objects(source.url)
        assert (summary.cache, summary.fingerprint, summary.num_views) == (place, source.fingerprint, 2)
        assert (summary.num_copied, summary.num_there) == (len(objects(place)), 0)
        assert summary.bytes_copied == sum(map(len, objects(place).values()))
        found = verify(open_cache(place))
        assert found.ok, found.problems

    def test_a_build_on_a_copy_asks_nothing_of_the_teacher(
        self, spec: CacheSpec, source: Cache, place: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        copy(source, place)
        refuse_the_teacher(monkeypatch)
        assert build(replace(spec, cache=place), progress=False).num_units_built == 0
        assert objects(place) == objects(source.url)

    def test_a_copy_takes_more_views(self, spec: CacheSpec, source: Cache, place: str) -> None:
        copy(source, place)
        assert build(replace(spec, cache=place, views=3), progress=False).num_units_built == NUM_UNITS
        assert open_cache(place).num_views == 3

    def test_a_student_learns_from_a_copy(self, source: Cache, place: str, tmp_path: Path) -> None:
        copy(source, place)
        values = {
            "caches": [place],
            "output": str(tmp_path / "student"),
            "steps": 1,
            "batch_sequences": 8,
            "execution": {"num_workers": 0},
        }
        assert train(parse(StudentSpec, values)).fingerprints == [source.fingerprint]

    def test_of_a_cache_under_construction_the_sealed_views_are_copied(self, spec: CacheSpec, tmp_path: Path) -> None:
        folder = own(spec, tmp_path / "partly")
        (folder / "manifests/00001-00000.parquet").unlink()
        place = str(tmp_path / "copy")
        assert copy(open_cache(str(folder)), place).num_views == 1
        assert not [key for key in objects(place) if "/00001" in key]
        assert build(replace(spec, cache=place), progress=False).num_units_built == NUM_UNITS

    def test_nothing_is_copied_of_a_cache_without_a_sealed_view(self, spec: CacheSpec, tmp_path: Path) -> None:
        folder = own(spec, tmp_path / "begun")
        shutil.rmtree(folder / "manifests")
        with pytest.raises(UserError, match="view 0 is not sealed; finish it with `teacher-cache build`"):
            copy(open_cache(str(folder)), str(tmp_path / "copy"))
        assert not (tmp_path / "copy").exists()

    @pytest.mark.parametrize("num_before", [0, 1, 9, 20, 30])
    def test_a_copy_that_is_cut_short_is_never_taken_for_whole_and_goes_on(
        self, source: Cache, place: str, num_before: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        create, created = Store.create, list[str]()

        def until_cut(store: Store, key: str, data: bytes) -> bool:
            if len(created) >= num_before and store.url == place and "probe" not in key:
                raise KeyboardInterrupt
            done = create(store, key, data)
            if store.url == place and "probe" not in key:
                created.append(key)
            return done

        with monkeypatch.context() as patch:
            patch.setattr(Store, "create", until_cut)
            with pytest.raises(KeyboardInterrupt):
                copy(source, place)
        there = objects(place)
        if num_before:
            assert open_cache(place).num_views == 0
        summary = copy(source, place)
        assert summary.num_there == len(there)
        assert summary.num_copied == len(objects(source.url)) - len(there)
        assert objects(place) == objects(source.url)
        assert copy(source, place).num_copied == 0

    def test_another_cache_at_the_place_is_refused_by_its_fingerprint_and_left_alone(
        self, source: Cache, place: str, tmp_path: Path
    ) -> None:
        other = make_spec(tmp_path / "other", text_seed=1)
        fingerprint = build(other, progress=False).fingerprint
        copy(open_cache(other.cache), place)
        before = objects(place)
        with pytest.raises(
            UserError, match=rf"{place} holds another cache, of fingerprint {fingerprint}; .*another URL"
        ):
            copy(source, place)
        assert objects(place) == before

    @pytest.mark.parametrize(
        "pattern",
        [
            "spec.json",
            "codebook.safetensors",
            "teacher/model.safetensors",
            "teacher/manifest.json",
            "sequences/parts/*",
            "sequences/manifest.parquet",
            "sequences/commits/*",
            "shards/00001/*.hidden.parquet",
            "commits/00001/*",
            "manifests/00000-*",
        ],
    )
    def test_a_damaged_object_is_named_and_the_copy_is_not_sealed(
        self, spec: CacheSpec, pattern: str, tmp_path: Path
    ) -> None:
        source = open_cache(str(own(spec, tmp_path / "source")))
        damaged = sorted((tmp_path / "source").glob(pattern))[-1]
        cut(damaged)
        with pytest.raises(UserError, match=str(damaged.relative_to(tmp_path))):
            copy(source, str(tmp_path / "copy"))
        assert not list((tmp_path / "copy").glob("manifests/*"))

    @pytest.mark.parametrize("pattern", ["shards/00001/*.labels.parquet", "sequences/manifest.parquet"])
    def test_a_missing_object_is_named(self, pattern: str, spec: CacheSpec, tmp_path: Path) -> None:
        source = open_cache(str(own(spec, tmp_path / "source")))
        missing = sorted((tmp_path / "source").glob(pattern))[0]
        missing.unlink()
        with pytest.raises(UserError, match=rf"{missing} is missing; run `teacher-cache verify {source.url}`"):
            copy(source, str(tmp_path / "copy"))

    def test_other_bytes_at_the_place_are_named_and_not_overwritten(self, source: Cache, place: str) -> None:
        key = source.manifest(1).shards[2].labels.key
        write(place, key, b"other")
        with pytest.raises(UserError, match=rf"{place}/{key} is there with other bytes .* move it away"):
            copy(source, place)
        assert objects(place)[key] == b"other"
        assert not [name for name in objects(place) if name.startswith("manifests/")]

    def test_a_repaired_view_is_copied_as_it_is_now(self, repaired: Cache, tmp_path: Path) -> None:
        place = str(tmp_path / "copy")
        copy(repaired, place)
        copied = open_cache(place).manifest(0)
        assert (copied.generation, copied.shards) == (1, repaired.manifest(0).shards)
        found = verify(open_cache(place))
        assert found.ok, found.problems


@pytest.fixture
def repaired(spec: CacheSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    """A unit of view 0 was lost, and the teacher said something else when it was asked again."""
    folder = own(spec, tmp_path / "repaired")
    (folder / open_cache(str(folder)).manifest(0).shards[1].labels.key).unlink()
    real = units.ask_unit

    def ask_unit(*arguments: Any, **named: Any) -> list[Row]:
        return [replace(row, topk_logits=row.topk_logits * 1.5) for row in real(*arguments, **named)]

    with monkeypatch.context() as patch:
        patch.setattr(units, "ask_unit", ask_unit)
        assert repair(str(folder), execution=spec.execution, progress=False).ok
    return open_cache(str(folder))


ORPHANS = [
    "shards/00000/000000001-0123456789abcdef.labels.parquet",
    "shards/00001/000000004-0123456789abcdef.hidden.parquet",
    "sequences/parts/000000-000000-0123456789abcdef.parquet",
    "attempts/00001/000000001-run-mark.json",
    "attempts/00001/ended-run.json",
    "probe/0123456789abcdef0123456789abcdef",
]
HALF_WRITTEN = [f"{folder}.{'0123456789abcdef' * 2}.tmp" for folder in ("", "shards/00000/", "commits/00001/")]
NOT_OURS = ["notes.txt", "shards/00000/README", "shards/00000/.hidden.tmp"]
"""Nobody knows what these are for."""


def litter(url: str) -> None:
    for key in ORPHANS:
        write(url, key, b"orphan")


def age(folder: Path, days: float) -> None:
    """Lets all files of a folder be older."""
    then = time.time() - days * 86_400
    for path in folder.rglob("*"):
        os.utime(path, (then, then))


class TestGc:
    @pytest.fixture
    def url(self, source: Cache, place: str) -> str:
        """Of a cache in which there is something to find."""
        copy(source, place)
        litter(place)
        return place

    def test_what_nothing_lists_is_found_and_by_default_left_where_it_is(self, url: str) -> None:
        before = objects(url)
        found = gc(open_cache(url), older_than_s=0)
        assert sorted(found.objects) == sorted(ORPHANS)
        assert (found.num_bytes, found.num_young, found.deleted) == (6 * len(ORPHANS), 0, False)
        assert objects(url) == before

    def test_only_what_nothing_lists_is_deleted(self, source: Cache, url: str) -> None:
        assert gc(open_cache(url), dry_run=False, older_than_s=0).deleted
        assert objects(url) == objects(source.url)
        assert gc(open_cache(url), dry_run=False, older_than_s=0).num_objects == 0

    def test_what_is_younger_than_a_day_stays(self, url: str) -> None:
        found = gc(open_cache(url), dry_run=False)
        assert (found.num_objects, found.num_young) == (0, len(ORPHANS))
        assert objects(url).keys() >= set(ORPHANS)

    def test_files_half_written_are_found_in_folders(self, spec: CacheSpec, tmp_path: Path) -> None:
        folder = own(spec, tmp_path / "cache")
        for key in (*HALF_WRITTEN, *NOT_OURS):
            (folder / key).parent.mkdir(parents=True, exist_ok=True)
            (folder / key).write_bytes(b"half")
        age(folder, days=0.9)
        assert gc(open_cache(str(folder))).num_young == len(HALF_WRITTEN)
        age(folder, days=1.1)
        assert sorted(gc(open_cache(str(folder)), dry_run=False).objects) == sorted(HALF_WRITTEN)
        assert objects(str(folder)).keys() == objects(spec.cache).keys() | set(NOT_OURS)

    def test_a_view_under_construction_is_left_alone(self, spec: CacheSpec, tmp_path: Path) -> None:
        """What no commit lists now may be listed in the next moment: its builder finds the bytes there."""
        folder = own(spec, tmp_path / "cache")
        (folder / "manifests/00001-00000.parquet").unlink()
        for commit in folder.glob("commits/00001/*"):
            commit.unlink()
        age(folder, days=2)
        assert gc(open_cache(str(folder)), dry_run=False).num_objects == 0
        refused = replace(spec, cache=str(folder))
        assert build(refused, progress=False).num_units_built == NUM_UNITS
        assert verify(open_cache(str(folder))).ok

    def test_parts_of_sequences_under_construction_are_left_alone(self, spec: CacheSpec, tmp_path: Path) -> None:
        folder = own(spec, tmp_path / "cache")
        for path in ("sequences/manifest.parquet", *(f"manifests/0000{view}-00000.parquet" for view in (0, 1))):
            (folder / path).unlink()
        shutil.rmtree(folder / "sequences/commits")
        age(folder, days=2)
        assert gc(open_cache(str(folder)), dry_run=False).num_objects == 0

    def test_what_an_older_generation_lists_stays(self, repaired: Cache) -> None:
        """Its readers keep the generation that they opened."""
        before = objects(repaired.url)
        assert gc(repaired, dry_run=False, older_than_s=0).num_objects == 0
        assert objects(repaired.url) == before

    def test_a_shard_that_a_repair_may_have_listed_meanwhile_stays(
        self, spec: CacheSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = own(spec, tmp_path / "cache")
        cache, first = open_cache(str(folder)), folder / "manifests/00000-00000.parquet"
        litter(cache.url)
        look = garbage._is_garbage

        def is_garbage(*arguments: Any) -> bool:
            shutil.copy(first, folder / "manifests/00000-00001.parquet")
            return look(*arguments)

        monkeypatch.setattr(garbage, "_is_garbage", is_garbage)
        assert sorted(gc(cache, dry_run=False, older_than_s=0).objects) == sorted(ORPHANS[1:])
        assert (folder / ORPHANS[0]).exists()

    def test_nothing_is_deleted_while_a_manifest_is_damaged(self, spec: CacheSpec, tmp_path: Path) -> None:
        folder = own(spec, tmp_path / "cache")
        litter(str(folder))
        cut(folder / "manifests/00001-00000.parquet")
        before = objects(str(folder))
        with pytest.raises(UserError, match=r"manifests/00001-00000\.parquet"):
            gc(open_cache(str(folder)), dry_run=False, older_than_s=0)
        assert objects(str(folder)) == before
