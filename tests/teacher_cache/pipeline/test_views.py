"""Units that fail, die, or are another builder's; views added later."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from teacher_cache import UserError, open_cache, pipeline
from teacher_cache.config import CacheSpec
from teacher_cache.errors import Interrupted
from teacher_cache.format import attempts, manifest
from teacher_cache.format.row import Row
from teacher_cache.pipeline import views
from teacher_cache.pipeline.workers import UnitWorker
from teacher_cache.shell.settings import to_dict
from teacher_cache.storage.store import Store
from teacher_cache.verify import verify
from tests.caches import make_spec
from tests.disks import grow, small_disk
from tests.teacher_cache.builds import run, shard_digests
from tests.teacher_cache.pipeline.asking import IN_PROCESS, UNIT, asked, fails_at, marks


@pytest.fixture
def spec(tmp_path: Path) -> CacheSpec:
    return make_spec(tmp_path / "cache")


@pytest.fixture
def reference(tmp_path: Path) -> CacheSpec:
    """Of the same content as `spec`, and built."""
    made = make_spec(tmp_path / "reference")
    run(made)
    return made


class TestPoison:
    @pytest.mark.parametrize(
        "error", [UserError("not finite"), torch.OutOfMemoryError("CUDA out of memory"), MemoryError()]
    )
    def test_a_unit_is_given_up_after_three_smaller_and_smaller_tries_and_the_others_are_committed(
        self, error: Exception, spec: CacheSpec, reference: CacheSpec
    ) -> None:
        message = r"(?s)1 of 5 units of view 0 failed, all others are committed:\n  unit 2 \(sequences 16 to 23\), "
        with asked(fails_at(UNIT, error)) as calls, pytest.raises(UserError, match=message) as raised:
            run(spec)
        assert str(error) in str(raised.value)
        assert "3 attempts" in str(raised.value)
        assert [tokens for unit, tokens in calls if unit == UNIT] == [16384, 4096, 1024]
        assert manifest.committed_units(Store(spec.cache), 0) == {0, 1, 3, 4}
        assert open_cache(spec.cache).num_views == 0
        with asked() as calls:
            assert run(spec).num_units_built == 1
        assert calls == [(UNIT, 16384)], "given up in one build is not given up for ever"
        assert shard_digests(spec.cache) == shard_digests(reference.cache)
        assert marks(spec.cache) == {}

    def test_a_unit_that_fits_a_smaller_micro_batch_is_no_failure(self, spec: CacheSpec) -> None:
        def answer(unit: int, _: int, rows: list[Row]) -> list[Row]:
            if unit == UNIT and sum(1 for asked_unit, _ in calls if asked_unit == UNIT) < 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return rows

        with asked(answer) as calls:
            run(spec)
        assert sorted(unit for unit, _ in calls) == [0, 1, 2, 2, 2, 3, 4]
        assert open_cache(spec.cache).num_views == 1
        assert marks(spec.cache) == {}

    def test_a_unit_that_fails_keeps_no_other_view_from_being_sealed(self, tmp_path: Path) -> None:
        spec = make_spec(tmp_path / "cache", views=2)

        def answer(unit: int, _: int, rows: list[Row]) -> list[Row]:
            if [asked_unit for asked_unit, _ in calls].count(UNIT) <= attempts.MAX_ATTEMPTS and unit == UNIT:
                raise MemoryError
            return rows

        with asked(answer) as calls, pytest.raises(UserError, match=r"^1 of 5 units of view 0 failed"):
            run(spec)
        assert [manifest.newest_generation(Store(spec.cache), view) for view in range(2)] == [None, 0]
        assert run(spec).num_units_built == 1
        assert verify(open_cache(spec.cache)).ok

    @pytest.mark.parametrize("num_shards", [1, 6])
    def test_a_full_disk_ends_the_build_with_one_message_and_it_goes_on_when_there_is_room(
        self, num_shards: int, tmp_path: Path, reference: CacheSpec
    ) -> None:
        """Room for some of the shards' ten objects."""
        shards = sorted(Path(reference.cache, "shards").rglob("*.parquet"))
        others = [path for path in Path(reference.cache).rglob("*") if path not in shards and path.suffix != ".json"]
        num_kib = sum(-(-path.stat().st_size // 4096) * 4 for path in [*others, *shards[:num_shards]])
        spec = make_spec(tmp_path / "made")
        with small_disk(tmp_path / "disk", num_kib=num_kib) as disk:
            spec = replace(spec, cache=str(disk / "cache"))
            with asked() as calls, pytest.raises(UserError, match=r"it is full \(No space left.*run the command again"):
                run(spec)
            num_committed = len(manifest.committed_units(Store(spec.cache), 0))
            assert len(calls) == num_committed + 1 < 5, "it ends at the first unit that finds no room"
            grow(disk, num_kib=10 * num_kib)
            with asked() as calls:
                run(spec)
            assert len(calls) == 5 - num_committed
            assert shard_digests(spec.cache) == shard_digests(reference.cache)
            assert verify(open_cache(spec.cache)).ok

    def test_a_store_that_fails_ends_the_build_at_the_first_unit(self, spec: CacheSpec) -> None:
        Path(spec.cache).mkdir()
        Path(spec.cache, "commits").write_text("a file in place of a folder")
        with asked() as calls, pytest.raises(UserError, match=r"a file where a folder is needed"):
            run(spec)
        assert len(calls) <= 1


KILLED_AT_A_UNIT = f"""
import os, sys
from teacher_cache import cli, units
real = units.ask_unit
def ask_unit(masked, **arguments):
    if masked[0][0].sequence_id // 8 == {UNIT}:
        os._exit(9)  # as the out-of-memory killer would end it
    return real(masked, **arguments)
units.ask_unit = ask_unit
sys.exit(cli.main(["build", *sys.argv[1:]]))
"""


class TestDeath:
    def test_a_unit_that_kills_its_process_is_tried_last_and_given_up_by_the_fourth_build(
        self, spec: CacheSpec, reference: CacheSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = tmp_path / "cache.json"
        config.write_text(json.dumps(to_dict(spec)))
        for num_marks in (1, 2):
            attempts.begin(Store(spec.cache), view=0, unit=UNIT, run=f"dead{num_marks}")
        done = subprocess.run([sys.executable, "-c", KILLED_AT_A_UNIT, str(config)], capture_output=True, text=True)
        assert done.returncode == 9, done.stderr
        assert manifest.committed_units(Store(spec.cache), 0) == {0, 1, 3, 4}, "it was tried last"
        assert len(marks(spec.cache)[UNIT]) == 3
        monkeypatch.setattr(views, "GRACE_S", 0.1)
        with asked() as calls, pytest.raises(UserError, match=r"(?s)unit 2 .*, 3 attempts: its process died\n"):
            run(spec)
        assert calls == []
        with asked() as calls:
            run(spec)
        assert calls == [(UNIT, 16384)]
        assert shard_digests(spec.cache) == shard_digests(reference.cache)

    def test_marks_of_a_builder_that_commits_soon_are_no_failure(self, spec: CacheSpec, reference: CacheSpec) -> None:
        """As four builders that begin at one moment: the last to come to a unit finds three marks on it."""
        with asked(fails_at(UNIT, UserError("stop"))), pytest.raises(UserError):
            run(spec)
        for builder in range(3):
            attempts.begin(Store(spec.cache), view=0, unit=UNIT, run=f"builder{builder}")
        commit = Path(reference.cache, f"commits/00000/{UNIT:09d}.json")
        shards = list(Path(reference.cache, "shards/00000").glob(f"{UNIT:09d}-*"))

        def others_commit(_: float) -> None:
            for path in shards:
                shutil.copy(path, Path(spec.cache, "shards/00000"))
            shutil.copy(commit, Path(spec.cache, "commits/00000"))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(views.time, "sleep", others_commit)
            run(spec)
        assert shard_digests(spec.cache) == shard_digests(reference.cache)

    def test_an_interrupt_while_failed_units_are_looked_at_leaves_them_to_the_next_build(self, spec: CacheSpec) -> None:
        attempts.begin(Store(spec.cache), view=0, unit=UNIT, run="dead")

        def interrupt(_: float) -> None:
            raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(views.time, "sleep", interrupt)
            with asked(fails_at(UNIT, MemoryError())), pytest.raises(Interrupted, match="4 of 5 units of view 0"):
                run(spec)
        assert len(marks(spec.cache)[UNIT]) == 1
        assert run(spec).num_units_built == 1


class TestUnitsOfOthers:
    def test_a_unit_that_another_builder_commits_meanwhile_is_not_computed(
        self, spec: CacheSpec, reference: CacheSpec
    ) -> None:
        def another_finishes(unit: int, num_calls: int, rows: list[Row]) -> list[Row]:
            if num_calls == 1:
                shutil.copytree(Path(reference.cache, "shards"), Path(spec.cache, "shards"), dirs_exist_ok=True)
                for path in Path(reference.cache, "commits/00000").glob("*.json"):
                    if int(path.stem) != unit:
                        target = Path(spec.cache, "commits/00000")
                        target.mkdir(parents=True, exist_ok=True)
                        shutil.copy(path, target)
            return rows

        with asked(another_finishes) as calls:
            assert run(spec).num_units_built == 1
        assert len(calls) == 1
        assert shard_digests(spec.cache) == shard_digests(reference.cache)


class TestPool:
    def test_all_views_of_a_build_are_asked_by_one_pool_and_sealed_one_after_the_other(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A teacher is loaded once, and students need not wait for the last view."""
        spec = make_spec(tmp_path / "cache", views=3)
        sealed_at: list[int] = []

        class Counted(UnitWorker):
            num_made = 0

            def __init__(self, **arguments: Any) -> None:
                super().__init__(**arguments)
                Counted.num_made += 1

            def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
                sealed_at.append(open_cache(spec.cache).num_views)
                return super().__call__(item)

        monkeypatch.setattr("teacher_cache.pipeline.job.UnitWorker", Counted)
        run(spec)
        assert Counted.num_made == 1
        assert sealed_at == [0] * 5 + [1] * 5 + [2] * 5
        with asked() as calls:
            assert run(replace(spec, views=4)).num_units_built == 5
        assert len(calls) == 5


class TestExtend:
    def test_views_are_added_without_corpus_and_teacher(self, tmp_path: Path, spec: CacheSpec) -> None:
        run(spec)
        reference = make_spec(tmp_path / "reference", views=3)
        run(reference)
        shutil.rmtree(spec.teacher.model)
        Path(spec.corpus.paths[0]).unlink()
        before = {path: path.read_bytes() for path in Path(spec.cache).rglob("*") if path.is_file()}
        summary = pipeline.extend(spec.cache, views=3, execution=IN_PROCESS, progress=False)
        assert (summary.num_views, summary.num_units_built) == (3, 10)
        assert [shard_digests(spec.cache, view) for view in range(3)] == [
            shard_digests(reference.cache, view) for view in range(3)
        ]
        assert {path: path.read_bytes() for path in before} == before

    def test_no_view_is_nothing_to_ask_for(self, spec: CacheSpec) -> None:
        with pytest.raises(UserError, match=r"views is 0: .*; give 1 or more"):
            pipeline.extend(spec.cache, views=0, execution=IN_PROCESS)

    def test_a_cache_with_as_many_views_is_left_alone(self, spec: CacheSpec) -> None:
        run(spec)
        with asked() as calls:
            assert pipeline.extend(spec.cache, views=1, execution=IN_PROCESS, progress=False).num_units_built == 0
        assert calls == []

    @pytest.mark.parametrize("lacking", ["sequences/manifest.parquet", "codebook.safetensors"])
    def test_a_cache_at_its_beginning_needs_a_build_first(self, lacking: str, spec: CacheSpec) -> None:
        run(spec)
        Path(spec.cache, lacking).unlink()
        with pytest.raises(UserError, match=r"is at its beginning; run `teacher-cache build`"):
            pipeline.extend(spec.cache, views=2, execution=IN_PROCESS, progress=False)


class DiesAtUnit(UnitWorker):
    """One unit ends every process that computes it."""

    def _ask(self, masked: Any, batch_tokens: int) -> Any:
        if masked[0][0].sequence_id // 8 == UNIT:
            os._exit(9)
        return super()._ask(masked, batch_tokens)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_a_unit_that_kills_every_actor_is_given_up_and_the_others_are_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec(tmp_path / "cache", execution={"num_workers": 2, "gpus_per_worker": 0})
    monkeypatch.setattr("teacher_cache.pipeline.job.UnitWorker", DiesAtUnit)
    monkeypatch.setattr(views, "_wait_for_others", None)  # the marks are all of this run
    with pytest.raises(UserError, match=r"(?s)1 of 5 units .*unit 2 .*, 3 attempts: its process died\n"):
        run(spec)
    assert manifest.committed_units(Store(spec.cache), 0) == {0, 1, 3, 4}
