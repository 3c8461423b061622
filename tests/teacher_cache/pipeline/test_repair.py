"""Damage found, told and mended."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from teacher_cache import UserError, open_cache, pipeline
from teacher_cache.config import CacheSpec
from teacher_cache.format import attempts
from teacher_cache.format.row import Row
from teacher_cache.storage.store import Store
from teacher_cache.verify import verify
from tests.caches import make_spec
from tests.teacher_cache.builds import run, shard_digests
from tests.teacher_cache.pipeline.asking import IN_PROCESS, UNIT, asked, fails_at, marks


@pytest.fixture
def spec(tmp_path: Path) -> CacheSpec:
    made = make_spec(tmp_path / "cache")
    run(made)
    return made


def only(cache: str, pattern: str) -> Path:
    (path,) = Path(cache).glob(pattern)
    return path


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


class TestVerify:
    @pytest.mark.parametrize("pattern", ["commits/00000/000000002.json", "sequences/commits/*.json"])
    def test_damaged_commits_are_told_and_can_be_moved_away(self, pattern: str, spec: CacheSpec) -> None:
        path = only(spec.cache, pattern)
        flip(path)
        found = verify(open_cache(spec.cache))
        assert (found.ok, found.bad_units) == (False, [])
        assert re.search(rf"{path}.*move it away", "".join(found.problems))
        path.unlink()
        assert verify(open_cache(spec.cache)).ok

    @pytest.mark.parametrize(
        ("pattern", "folder"), [("teacher/model.safetensors", "teacher"), ("sequences/parts/*", "sequences")]
    )
    def test_what_is_told_of_damage_mends_it(self, pattern: str, folder: str, spec: CacheSpec) -> None:
        flip(only(spec.cache, pattern))
        (problem,) = verify(open_cache(spec.cache)).problems
        assert f"delete its folder {folder} and run `teacher-cache build` again" in problem
        shutil.rmtree(Path(spec.cache, folder))
        assert run(spec).num_units_built == 0
        found = verify(open_cache(spec.cache))
        assert found.ok, found.problems


class TestRepair:
    def test_damaged_and_missing_shards_are_healed_where_they_lie(self, spec: CacheSpec) -> None:
        sound = shard_digests(spec.cache)
        flip(only(spec.cache, f"shards/00000/{UNIT:09d}-*.labels.parquet"))
        only(spec.cache, "shards/00000/000000004-*.hidden.parquet").unlink()
        assert verify(open_cache(spec.cache)).bad_units == [(0, UNIT), (0, 4)]
        with asked() as calls:
            found = pipeline.repair(spec.cache, execution=IN_PROCESS, progress=False)
        assert sorted(unit for unit, _ in calls) == [UNIT, 4]
        assert found.ok
        assert shard_digests(spec.cache) == sound
        assert open_cache(spec.cache).manifest(0).generation == 0

    def test_a_teacher_that_answers_otherwise_makes_a_generation_and_open_readers_keep_theirs(
        self, spec: CacheSpec
    ) -> None:
        reader = open_cache(spec.cache)
        old = reader.manifest(0)
        only(spec.cache, f"shards/00000/{UNIT:09d}-*.labels.parquet").unlink()

        def otherwise(_: int, __: int, rows: list[Row]) -> list[Row]:
            return [replace(row, topk_logits=row.topk_logits * 1.5) for row in rows]

        with asked(otherwise):
            assert pipeline.repair(spec.cache, execution=IN_PROCESS, progress=False).ok
        new = open_cache(spec.cache).manifest(0)
        assert (old.generation, new.generation) == (0, 1)
        changed = [shard.unit for shard, before in zip(new.shards, old.shards, strict=True) if shard != before]
        assert changed == [UNIT]
        assert reader.manifest(0).sha256 == old.sha256

    def test_what_the_teacher_cannot_mend_is_left_and_told(self, spec: CacheSpec) -> None:
        flip(Path(spec.cache, "codebook.safetensors"))
        with asked() as calls:
            found = pipeline.repair(spec.cache, execution=IN_PROCESS, progress=False)
        assert (found.ok, found.bad_units, calls) == (False, [], [])
        assert any("codebook.safetensors" in problem for problem in found.problems)

    def test_a_teacher_that_fails_changes_nothing(self, spec: CacheSpec) -> None:
        flip(only(spec.cache, f"shards/00000/{UNIT:09d}-*.labels.parquet"))
        with (
            asked(fails_at(UNIT, MemoryError())),
            pytest.raises(UserError, match=r"not all is repaired, .* view 0, unit 2 .*, 3 attempts: MemoryError"),
        ):
            pipeline.repair(spec.cache, execution=IN_PROCESS, progress=False)
        assert verify(open_cache(spec.cache)).bad_units == [(0, UNIT)]
        assert marks(spec.cache) == {}

    def test_a_unit_that_needs_a_smaller_micro_batch_gets_it_whatever_was_tried_before(self, spec: CacheSpec) -> None:
        flip(only(spec.cache, f"shards/00000/{UNIT:09d}-*.labels.parquet"))
        for _ in range(attempts.MAX_ATTEMPTS):
            attempts.begin(Store(spec.cache), view=0, unit=UNIT, run="dead")

        def answer(unit: int, num_calls: int, rows: list[Row]) -> list[Row]:
            if num_calls == 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return rows

        with asked(answer) as calls:
            assert pipeline.repair(spec.cache, execution=IN_PROCESS, progress=False).ok
        assert calls == [(UNIT, 16384), (UNIT, 4096)]
        assert marks(spec.cache) == {}
