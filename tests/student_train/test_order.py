"""The reading order: one order for any number of workers, resumable anywhere."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from student_train.order import NUM_LANES, WINDOW_SEQUENCES, EpochOrder, epoch_order, global_batches
from student_train.reader import Reader
from teacher_cache.format import philox

Pair = tuple[int, int]

shard_sizes = st.one_of(
    st.lists(st.integers(0, 40), max_size=12),
    st.lists(st.integers(0, 3), min_size=NUM_LANES + 1, max_size=2 * NUM_LANES + 5),
    st.lists(st.integers(WINDOW_SEQUENCES - 2, 2 * WINDOW_SEQUENCES + 3), max_size=3),
)
seeds = st.integers(0, 2**63 - 1)
num_batches = st.integers(1, 6)


def make_order(sizes: list[int] | np.ndarray, seed: int = 0) -> EpochOrder:
    return EpochOrder(sizes, philox.key_of("test", seed))


def batch_size(sizes: list[int], num_batches: int) -> int:
    """Of about so many batches: the last one is short where it does not divide the rows."""
    return max(1, sum(sizes) // num_batches)


def read(order: EpochOrder, batch_sequences: int, **options: int) -> list[list[Pair]]:
    batches = order.batches(batch_sequences, **options)
    return [[(int(shard), int(row)) for shard, row in batch] for batch in batches]


@settings(max_examples=25, deadline=None)
@given(sizes=shard_sizes, num_batches=num_batches, seed=seeds)
def test_an_epoch_reads_every_row_exactly_once_in_whole_batches(sizes, num_batches, seed):
    batch_sequences = batch_size(sizes, num_batches)
    batches = read(make_order(sizes, seed), batch_sequences)
    assert sorted(itertools.chain(*batches)) == [(shard, row) for shard, n in enumerate(sizes) for row in range(n)]
    lengths = [len(batch) for batch in batches]
    assert len(lengths) == -(-sum(sizes) // batch_sequences)
    assert all(length == batch_sequences for length in lengths[:-1])


@settings(max_examples=25, deadline=None)
@given(sizes=shard_sizes, num_batches=num_batches, seed=seeds)
def test_any_number_of_ranks_shares_the_same_global_batches(sizes, num_batches, seed):
    order, batch_sequences = make_order(sizes, seed), batch_size(sizes, num_batches)
    whole = read(order, batch_sequences)
    for num_ranks in (2, 3, 4):
        shares = [read(order, batch_sequences, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
        for batch, *parts in zip(whole, *shares, strict=True):
            assert sorted(itertools.chain(*parts)) == sorted(batch)
            # Each rank reads its rows in the global order: rows are distinct, so this fixes every place.
            for part in parts:
                mine = set(part)
                assert part == [pair for pair in batch if pair in mine]


@settings(max_examples=20, deadline=None)
@given(sizes=shard_sizes, num_batches=num_batches, seed=seeds, data=st.data())
def test_reading_goes_on_exactly_at_any_batch(sizes, num_batches, seed, data):
    rank, batch_sequences = data.draw(st.integers(0, 2)), batch_size(sizes, num_batches)
    whole = read(make_order(sizes, seed), batch_sequences, rank=rank, num_ranks=3)
    batch = data.draw(st.integers(0, len(whole)))
    later = read(
        make_order(sizes, seed), batch_sequences, rank=rank, num_ranks=3, start_sequence=batch * batch_sequences
    )
    assert later == whole[batch:]


@settings(max_examples=20, deadline=None)
@given(sizes=shard_sizes, seed=seeds, num_ranks=st.integers(1, 6), num_batches=num_batches)
def test_the_order_does_not_depend_on_the_size_of_batches(sizes, seed, num_ranks, num_batches):
    order = make_order(sizes, seed)
    batched = read(order, batch_size(sizes, num_batches), rank=num_ranks - 1, num_ranks=num_ranks)
    at_once = read(order, 10**9, rank=num_ranks - 1, num_ranks=num_ranks)
    assert list(itertools.chain(*batched)) == list(itertools.chain(*at_once))


@settings(max_examples=20, deadline=None)
@given(sizes=shard_sizes, seed=seeds, num_ranks=st.integers(2, 5))
def test_a_rank_reads_only_the_shards_of_its_lanes(sizes, seed, num_ranks):
    order = make_order(sizes, seed)
    touched = []
    for rank in range(num_ranks):
        pairs = itertools.chain(*read(order, 64, rank=rank, num_ranks=num_ranks))
        touched.append({shard for shard, _ in pairs})
        owned = np.concatenate([lane.shards for lane in order.lanes[rank::num_ranks]])
        assert touched[-1] <= set(owned.tolist())
    assert sum(map(len, touched)) == len(set().union(*touched)), "two ranks read one shard"


@settings(max_examples=20, deadline=None)
@given(num_shards=st.integers(NUM_LANES, 3 * NUM_LANES), seed=seeds, num_ranks=st.sampled_from([2, 3, 4, 5, 6]))
def test_ranks_share_the_shards_evenly(num_shards, seed, num_ranks):
    lanes = make_order([1] * num_shards, seed).lanes
    owned = [sum(len(lane.shards) for lane in lanes[rank::num_ranks]) for rank in range(num_ranks)]
    assert sum(owned) == num_shards
    assert max(owned) - min(owned) <= NUM_LANES // num_ranks


def test_neighbours_in_the_order_come_from_different_shards():
    (batch,) = read(make_order([50] * NUM_LANES), NUM_LANES * 50)
    assert all(len({shard for shard, _ in batch[start : start + 60]}) == 60 for start in range(0, len(batch), 60))


def test_rows_of_a_shard_are_shuffled():
    (batch,) = read(make_order([200]), 200)
    rows = [row for _, row in batch]
    assert rows != sorted(rows)
    assert np.corrcoef(rows, np.arange(200))[0, 1] < 0.3


def test_another_seed_epoch_or_view_gives_another_order(exact_cache):
    asked = {"view": 0, "seed": 0, "epoch": 0}
    base = read(epoch_order([exact_cache], **asked), 100)
    assert base == read(epoch_order([exact_cache], **asked), 100)
    for name in asked:
        assert read(epoch_order([exact_cache], **(asked | {name: 1})), 100) != base


def test_no_row_at_all_makes_no_batch():
    for sizes in ([], [0], [0] * 100):
        assert read(make_order(sizes), 4) == []


def test_more_ranks_than_lanes_leave_some_without_rows():
    order = make_order([1] * 70)
    (whole,) = read(order, 70)
    shares = [read(order, 70, rank=rank, num_ranks=NUM_LANES + 1)[0] for rank in range(NUM_LANES + 1)]
    assert shares[-1] == []
    assert sorted(itertools.chain(*shares)) == sorted(whole)


def test_sizes_may_be_an_array():
    sizes = [3, 0, 4, 1, 300]
    assert read(make_order(np.array(sizes)), 7) == read(make_order(sizes), 7)


def test_a_place_deep_in_a_million_shards_is_reached_without_walking_to_it():
    """Two windows of each lane are shuffled at most: 120 of four million."""
    order = make_order(np.full(1_000_000, 1024))
    batch = next(order.batches(6000, start_sequence=511_998_000))
    assert len({tuple(pair) for pair in batch.tolist()}) == 6000
    assert batch.min() >= 0
    assert batch.max(axis=0)[1] < 1024
    assert order._window.cache_info().misses <= 2 * NUM_LANES


def test_golden_order():
    """A published run must stay repeatable: this may change with the format's version only."""
    golden = [[(3, 0), (2, 3), (0, 2)], [(2, 0), (0, 0), (2, 2)], [(0, 1), (2, 1)]]
    assert read(EpochOrder([3, 0, 4, 1], philox.key_of("golden", 1)), 3) == golden


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_global_batches_are_what_training_reads(default_cache, num_ranks):
    asked = {"seed": 3, "epoch": 2, "batch_sequences": 12, "num_ranks": num_ranks, "start_sequence": 12}
    seen = []
    for rank in range(num_ranks):
        named = list(global_batches(default_cache, view=1, rank=rank, **asked))
        read_rows = list(Reader([default_cache], view=1, layers=()).batches(rank=rank, **asked))
        assert [ids.tolist() for ids in named] == [[row.sequence_id for row in batch] for batch in read_rows]
        seen += [int(sequence) for ids in named for sequence in ids]
    assert len(set(seen)) == len(seen) == default_cache.manifest(1).num_sequences - 12
