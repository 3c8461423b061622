"""The reading order of an epoch: a pure function, the same for any number of workers.

Shards are permuted and dealt into 60 lanes; rows are shuffled within a window of each lane; lanes are interleaved
round by round into one global order (an exhausted lane is skipped), and global batch b is a fixed slice of it. A
worker owns every W-th lane, so it reads only those shards. Lanes begin with windows of unlike sizes, so that they do
not all need their next blocks at once. Any place of the order can be reached without walking to it, which is what
makes resuming cheap.

Legend: L lanes, n rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from student_train.held_out import NOTHING, HeldOut, set_aside
from teacher_cache.format import philox
from teacher_cache.format.cache import Cache

NUM_LANES = 60
"""Divisible by 2, 3, 4, 5 and 6: each worker then reads 1/W of the bytes."""
WINDOW_SEQUENCES = 256
"""Rows of a lane that are shuffled together; a worker holds half a window of each of its lanes, on average."""
STREAM_SHARDS, STREAM_WINDOWS = 0, 1


@dataclass(frozen=True, kw_only=True)
class Lane:
    """A run of shards, one after the other."""

    index: int
    shards: np.ndarray
    """Places of the shards in the list that the epoch was made of."""
    stops: np.ndarray
    """Rows of the lane up to and with each shard."""

    @property
    def num_rows(self) -> int:
        return int(self.stops[-1]) if len(self.stops) else 0


class EpochOrder:
    """The order of one epoch over shards of given sizes, but for the rows held out."""

    def __init__(self, shard_rows: Sequence[int] | np.ndarray, key: philox.Key, held_out: HeldOut = NOTHING) -> None:
        self._key, self._held_out = key, held_out
        rows = held_out.training_sizes(np.asarray(shard_rows, dtype=np.int64))
        dealt = philox.permutation(philox.words(key, stream=STREAM_SHARDS, index=0, size=len(rows)))
        self.lanes = [
            Lane(index=lane, shards=dealt[lane::NUM_LANES], stops=np.cumsum(rows[dealt[lane::NUM_LANES]]))
            for lane in range(NUM_LANES)
        ]
        self.num_sequences = int(rows.sum())
        self._lane_rows = np.array([lane.num_rows for lane in self.lanes])
        self._window = lru_cache(maxsize=4 * NUM_LANES)(self._permuted_window)

    def batches(
        self, batch_sequences: int, *, rank: int = 0, num_ranks: int = 1, start_sequence: int = 0
    ) -> Iterator[np.ndarray]:
        """This rank's part of each global batch from `start_sequence` on: (shard, row) pairs `[n, 2]`, in order."""
        for start in range(start_sequence, self.num_sequences, batch_sequences):
            stop = min(start + batch_sequences, self.num_sequences)
            yield self._slice(start, stop, range(rank, NUM_LANES, num_ranks))

    def read_before(self, start_sequence: int, *, rank: int = 0, num_ranks: int = 1) -> np.ndarray:
        """(shard, row) pairs `[n, 2]` of this rank, read before that place, of blocks that it still reads from."""
        taken = self._taken(start_sequence)
        parts = [np.empty((0, 2), dtype=np.int64)]
        for lane in range(rank, NUM_LANES, num_ranks):
            # A block that the present window has rows of may begin anywhere in the one before.
            window = int(taken[lane] + _short_by(lane)) // WINDOW_SEQUENCES
            first = self._bounds(lane, max(0, window - 1))[0]
            parts.append(self._rows(self.lanes[lane], np.arange(first, taken[lane])))
        return np.concatenate(parts)

    def _slice(self, start: int, stop: int, lanes: range) -> np.ndarray:
        """(shard, row) pairs of places `start` to `stop` of the global order that lie in `lanes`."""
        if not lanes:  # more workers than lanes
            return np.empty((0, 2), dtype=np.int64)
        begins, ends = self._taken(start), self._taken(stop)
        rounds = [np.arange(begins[lane], ends[lane]) for lane in lanes]
        owners = [np.full(len(taken), lane) for lane, taken in zip(lanes, rounds, strict=True)]
        pairs = [self._rows(self.lanes[lane], taken) for lane, taken in zip(lanes, rounds, strict=True)]
        in_order = np.lexsort((np.concatenate(owners), np.concatenate(rounds)))
        return np.concatenate(pairs)[in_order]

    def _taken(self, place: int) -> np.ndarray:
        """`[L]`: rows that each lane has given when the global order has reached `place`."""
        low, high = 0, int(self._lane_rows.max(initial=0))
        while low < high:  # the last whole round that ends at or before `place`
            middle = (low + high + 1) // 2
            low, high = (middle, high) if np.minimum(self._lane_rows, middle).sum() <= place else (low, middle - 1)
        taken: np.ndarray = np.minimum(self._lane_rows, low)
        still_giving = np.flatnonzero(self._lane_rows > low)
        taken[still_giving[: place - int(taken.sum())]] += 1
        return taken

    def _rows(self, lane: Lane, offsets: np.ndarray) -> np.ndarray:
        """(shard, row) pairs `[n, 2]` at offsets `[n]` of a lane."""
        windows = (offsets + _short_by(lane.index)) // WINDOW_SEQUENCES
        shuffled = np.empty_like(offsets)
        for window in np.unique(windows):
            inside, start = windows == window, self._bounds(lane.index, int(window))[0]
            shuffled[inside] = start + self._window(lane.index, int(window))[offsets[inside] - start]
        place = np.searchsorted(lane.stops, shuffled, side="right")
        before = np.where(place, lane.stops[place - 1], 0)  # a batch costs what it reads, however many shards there are
        return self._held_out.skip(np.stack([lane.shards[place], shuffled - before], axis=1))

    def _bounds(self, lane: int, window: int) -> tuple[int, int]:
        """Offsets of a window's first row and after its last."""
        start = window * WINDOW_SEQUENCES - _short_by(lane)
        return max(start, 0), min(start + WINDOW_SEQUENCES, self.lanes[lane].num_rows)

    def _permuted_window(self, lane: int, window: int) -> np.ndarray:
        start, stop = self._bounds(lane, window)
        raw = philox.words(self._key, stream=STREAM_WINDOWS + lane, index=window, size=stop - start)
        return philox.permutation(raw)


def _short_by(lane: int) -> int:
    """Rows that a lane's first window has less than all others."""
    return WINDOW_SEQUENCES * (NUM_LANES - 1 - lane) // NUM_LANES


def epoch_order(
    caches: Sequence[Cache], *, view: int, seed: int, epoch: int, held_out: HeldOut = NOTHING
) -> EpochOrder:
    """The order of an epoch over all shards of one view of several caches, cache after cache."""
    key = philox.key_of("order", *(cache.fingerprint for cache in caches), view, seed, epoch)
    return EpochOrder(np.concatenate([cache.manifest(view).sizes for cache in caches]), key, held_out)


def global_batches(
    cache: Cache,
    *,
    view: int,
    seed: int,
    epoch: int,
    batch_sequences: int,
    rank: int = 0,
    num_ranks: int = 1,
    start_sequence: int = 0,
    held_out_sequences: int = 0,
) -> Iterator[np.ndarray]:
    """This rank's sequence ids `[n]` of each global batch, in the order in which training reads them.

    The ranks' parts of batch b together are the same global batch for any `num_ranks`; the last batch is short.
    """
    sizes = cache.manifest(view).sizes
    firsts = np.cumsum(sizes) - sizes
    held_out = set_aside([cache], held_out_sequences)
    order = epoch_order([cache], view=view, seed=seed, epoch=epoch, held_out=held_out)
    for pairs in order.batches(batch_sequences, rank=rank, num_ranks=num_ranks, start_sequence=start_sequence):
        yield firsts[pairs[:, 0]] + pairs[:, 1]
