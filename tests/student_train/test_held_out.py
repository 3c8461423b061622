"""Rows set aside: the same for every student, read by no epoch, and each of the others read as ever."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from student_train.held_out import NOTHING, HeldOut, draw, set_aside
from student_train.order import EpochOrder, global_batches
from teacher_cache.errors import UserError
from teacher_cache.format import philox
from teacher_cache.format.shard_columns import BLOCK_SEQUENCES
from tests.student_train import runs

KEY = philox.key_of("test", 0)
Pair = tuple[int, int]

shard_sizes = st.lists(
    st.one_of(st.integers(0, 5), st.integers(BLOCK_SEQUENCES - 2, 3 * BLOCK_SEQUENCES + 2)), min_size=1, max_size=70
)


def pairs_of(sizes: list[int]) -> list[Pair]:
    return [(shard, row) for shard, size in enumerate(sizes) for row in range(size)]


def in_blocks(held_out: HeldOut, sizes: list[int]) -> set[Pair]:
    """All rows of the blocks set aside."""
    return {
        (shard, row)
        for shard, row in pairs_of(sizes)
        if row // BLOCK_SEQUENCES in held_out.blocks.get(shard, [])
    }  # fmt: skip


def listed(pairs: np.ndarray) -> list[Pair]:
    return [(int(shard), int(row)) for shard, row in pairs]


def drawn(data: st.DataObject, sizes: list[int]) -> HeldOut:
    return draw(np.array(sizes), data.draw(st.integers(0, sum(sizes) + 1)), KEY)


@settings(max_examples=40)
@given(sizes=shard_sizes, data=st.data())
def test_training_rows_and_blocks_set_aside_are_all_rows(sizes, data):
    held_out = drawn(data, sizes)
    left = held_out.training_sizes(np.array(sizes))
    aside = in_blocks(held_out, sizes)
    assert sum(left) == sum(sizes) - len(aside)
    places = pairs_of(left.tolist())
    if places:
        trained = listed(held_out.skip(np.array(places)))
        assert sorted(trained) == sorted(set(pairs_of(sizes)) - aside), "not one to one, or of the wrong rows"


@settings(max_examples=40)
@given(sizes=shard_sizes, num_sequences=st.integers(0, 400))
def test_as_few_blocks_as_hold_what_was_asked_for(sizes, num_sequences):
    held_out = draw(np.array(sizes), num_sequences, KEY)
    rows, aside = listed(held_out.rows), in_blocks(held_out, sizes)
    assert len(rows) == len(set(rows)) == min(num_sequences, sum(sizes))
    assert set(rows) <= aside
    assert len(aside) - len(rows) < BLOCK_SEQUENCES, "a block more than needed"


def test_nothing_asked_for_sets_nothing_aside():
    assert draw(np.array([300, 5]), 0, KEY) is NOTHING
    pairs = np.array([[0, 299], [1, 4]])
    assert NOTHING.skip(pairs) is pairs


def test_golden_blocks():
    """Students of different days must be measured on the same rows."""
    held_out = draw(np.array([300, 5, 129, 0, 700]), 140, philox.key_of("golden", 1))
    assert held_out.blocks == {2: [0], 4: [3]}
    assert len(held_out.rows) == 140


@settings(max_examples=30)
@given(sizes=shard_sizes, num_ranks=st.integers(1, 5), num_batches=st.integers(1, 5), data=st.data())
def test_every_training_row_is_read_exactly_once_by_any_number_of_ranks(sizes, num_ranks, num_batches, data):
    held_out = drawn(data, sizes)
    order = EpochOrder(sizes, KEY, held_out)
    batch_sequences = max(1, order.num_sequences // num_batches)
    whole = [listed(batch) for batch in order.batches(batch_sequences)]
    assert sorted(itertools.chain(*whole)) == sorted(set(pairs_of(sizes)) - in_blocks(held_out, sizes))
    shares = [list(order.batches(batch_sequences, rank=rank, num_ranks=num_ranks)) for rank in range(num_ranks)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert sorted(batch) == sorted(itertools.chain(*map(listed, parts)))
    after = data.draw(st.integers(0, len(whole)))
    later = EpochOrder(sizes, KEY, held_out).batches(batch_sequences, start_sequence=after * batch_sequences)
    assert [listed(batch) for batch in later] == whole[after:]


@settings(max_examples=40)
@given(sizes=shard_sizes, num_ranks=st.integers(1, 3), data=st.data())
def test_what_was_read_before_is_known_of_every_block_still_to_be_read(sizes, num_ranks, data):
    """A reader that goes on forgets rows of these blocks that it will never be asked for."""
    held_out = drawn(data, sizes)
    order = EpochOrder(sizes, KEY, held_out)
    start = data.draw(st.integers(0, order.num_sequences))
    for rank in range(num_ranks):
        asked = {"rank": rank, "num_ranks": num_ranks}
        before = [pair for batch in order.batches(10**9, **asked) for pair in listed(batch)]
        to_come = [pair for batch in order.batches(10**9, start_sequence=start, **asked) for pair in listed(batch)]
        consumed = set(before) - set(to_come)
        told = listed(order.read_before(start, **asked))
        assert len(told) == len(set(told))
        assert set(told) <= consumed
        blocks = {(shard, row // BLOCK_SEQUENCES) for shard, row in to_come}
        assert {pair for pair in consumed if (pair[0], pair[1] // BLOCK_SEQUENCES) in blocks} <= set(told)


def test_the_same_rows_whatever_the_student(default_cache, tmp_path):
    base = runs.make_trainer(runs.make_spec(default_cache, held_out_sequences=10))
    other = runs.make_trainer(
        runs.make_spec(default_cache, held_out_sequences=10, seed=7, student={"num_layers": 1}, batch_sequences=3)
    )
    assert np.array_equal(base._held_out.rows, other._held_out.rows)
    assert base.num_epoch_sequences == 50 - sum(min(8, 50 - 8 * shard) for shard in base._held_out.blocks)
    held_out = set_aside([default_cache], 10)
    assert np.array_equal(base._held_out.rows, held_out.rows)


def test_global_batches_leave_out_the_same_rows(default_cache):
    asked = {"seed": 1, "batch_sequences": 7, "held_out_sequences": 10}
    read = [
        {int(i) for ids in global_batches(default_cache, view=view, epoch=epoch, **asked) for i in ids}
        for view, epoch in ((0, 0), (1, 1), (0, 2))
    ]
    assert read[0] == read[1] == read[2]
    held_out = set_aside([default_cache], 10)
    assert read[0].isdisjoint({8 * shard + row for shard, row in listed(held_out.rows)})


@pytest.mark.parametrize("num_sequences", [43, 50, 1000])
def test_held_out_rows_that_leave_nothing_are_refused(default_cache, num_sequences):
    with pytest.raises(UserError, match=rf"held_out_sequences is {num_sequences:,}, the caches hold 50 .*lower it"):
        runs.make_trainer(runs.make_spec(default_cache, held_out_sequences=num_sequences))
