"""Rows come out of the reader as they lie in the cache, and nothing stays behind."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from student_train import reader as reader_module
from student_train.order import global_batches
from student_train.reader import Reader
from teacher_cache.errors import UserError
from teacher_cache.format.cache import Cache
from teacher_cache.format.row import Row
from teacher_cache.format.shard import BLOCK_SEQUENCES
from tests import caches
from tests.student_train import runs


def read_epoch(reader: Reader, *, epoch: int = 0) -> list[Row]:
    return [row for batch in reader.batches(seed=0, epoch=epoch, batch_sequences=7) for row in batch]


def same_teacher(cache: Cache, folder: Path, **overrides: Any) -> Cache:
    """A cache like the given one of the same teacher, over another corpus."""
    values = {"keep": {"unmasked": cache.spec.keep.unmasked}, "text_seed": 9} | overrides
    return caches.build_cache(folder / "another", teacher=Path(cache.notes["teacher"]["model"]), **values)


def assert_same(row: Row, other: Row) -> None:
    for name, value in vars(row).items():
        expected = getattr(other, name)
        if isinstance(value, dict):
            assert value.keys() == expected.keys()
            assert all(np.array_equal(value[key], expected[key]) for key in value)
        else:
            assert np.array_equal(value, expected), name


@pytest.mark.parametrize("view", [0, 1])
def test_rows_are_those_of_the_cache(default_cache, view):
    rows = read_epoch(Reader([default_cache], view=view, layers=(-1,)))
    expected = list(default_cache.rows(view))
    assert len(rows) == len(expected) == 50
    assert [row.sequence_id for row in rows] != [row.sequence_id for row in expected]
    for row in rows:
        assert row.levels[-1].dtype == np.int8  # decoded on the student's device
        assert_same(
            dataclasses.replace(row, levels={}, hidden=expected[row.sequence_id].hidden), expected[row.sequence_id]
        )


def test_used_up_blocks_are_dropped(tmp_path):
    cache = caches.build_cache(tmp_path / "cache", num_documents=2 * BLOCK_SEQUENCES + 20, unit_sequences=10_000)
    for start in (0, 60, 264):  # 264 lies in the third window, which begins amid a block
        reader = Reader([cache], view=0, layers=())
        held = [rows_held(reader) for _ in reader.batches(seed=0, epoch=0, batch_sequences=4, start_sequence=start)]
        # All that is left: no row that was read before an interruption stays.
        assert held == [max(276 - start - 4 * (step + 1), 0) for step in range(len(held))]
        assert reader._blocks == {}


def rows_held(reader: Reader) -> int:
    return sum(len(block.result()) for block in reader._blocks.values())


@pytest.mark.parametrize("lookahead", [0, 16, 1024])
def test_how_far_ahead_is_read_changes_no_batch(default_cache, monkeypatch, lookahead):
    expected = [row.sequence_id for row in read_epoch(Reader([default_cache], view=0, layers=()))]
    monkeypatch.setattr(reader_module, "LOOKAHEAD_SEQUENCES", lookahead)
    assert [row.sequence_id for row in read_epoch(Reader([default_cache], view=0, layers=()))] == expected


def test_a_block_that_cannot_be_read_stops_the_reader(default_cache, tmp_path):
    cache = caches.copy_without(default_cache, tmp_path / "cache", "shards/00000/000000003-*.labels*")
    with pytest.raises(UserError, match=r"labels\S* is missing"):
        read_epoch(Reader([cache], view=0, layers=()))


def test_several_caches_read_as_one(default_cache, tmp_path):
    other = same_teacher(default_cache, tmp_path, num_documents=21)
    rows = read_epoch(Reader([default_cache, other], view=0, layers=()))
    texts = sorted(tuple(row.input_ids) for row in rows)
    assert texts == sorted(tuple(row.input_ids) for cache in (default_cache, other) for row in cache.rows())
    firsts = [row.sequence_id for row in rows[:20]]
    assert firsts != sorted(firsts)


def test_a_student_learns_from_several_caches_at_once(default_cache, tmp_path):
    both = [default_cache, same_teacher(default_cache, tmp_path, num_documents=21)]
    trainer = runs.make_trainer(runs.make_spec(both, epochs=1, batch_sequences=100))
    counted: list[int] = []
    trainer.train(lambda report: counted.append(report.num_sequences))
    assert counted == [50 + 21]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"soft_labels": {"top_k": 4}}, "differ in soft_labels"),
        ({"soft_labels": {"temperatures": [1, 2]}}, "differ in soft_labels"),
        ({"hidden": {"layers": [4]}}, "the name of the last hidden layer"),
        ({"keep": {"unmasked": 0.0}}, "some caches keep unmasked positions and some do not"),
    ],
)
def test_caches_of_other_targets_are_refused_together(overrides, message, default_cache, tmp_path):
    other = same_teacher(default_cache, tmp_path, **overrides)
    with pytest.raises(UserError, match=message):
        runs.make_trainer(runs.make_spec([default_cache, other]))


@pytest.fixture
def without_hidden_objects(default_cache, tmp_path) -> Cache:
    return caches.copy_without(default_cache, tmp_path / "cache", "shards/*/*.hidden*")


def test_no_byte_of_hidden_states_is_read_where_none_is_needed(without_hidden_objects):
    trainer = runs.make_trainer(runs.make_spec(without_hidden_objects, loss=runs.BUCKET_ONLY, steps=2))
    steps: list[int] = []
    trainer.train(lambda report: steps.append(report.step))
    assert steps == [1, 2]


@pytest.mark.parametrize("loss", [{}, {"soft_labels": "bucket"}])
def test_missing_hidden_objects_stop_a_run_that_needs_them(without_hidden_objects, loss):
    trainer = runs.make_trainer(runs.make_spec(without_hidden_objects, loss=loss, steps=2))
    with pytest.raises(UserError, match=r"hidden\S* is missing"):
        trainer.train(runs.ignore)


def test_a_rank_opens_only_its_own_shards(default_cache, monkeypatch):
    reader = Reader([default_cache], view=0, layers=())
    opened = []
    open_shard = default_cache.open_shard

    def spy(shard, **options):
        opened.append(shard.unit)
        return open_shard(shard, **options)

    monkeypatch.setattr(default_cache, "open_shard", spy)
    asked = {"seed": 0, "epoch": 0, "batch_sequences": 7, "rank": 1, "num_ranks": 2}
    rows = [row for batch in reader.batches(**asked) for row in batch]
    ids = np.concatenate(list(global_batches(default_cache, view=0, **asked)))
    assert [row.sequence_id for row in rows] == ids.tolist()
    assert sorted(opened) == sorted({row.sequence_id // 8 for row in rows})
    assert len(opened) < len(default_cache.manifest(0).shards)
