"""From the reading order to rows: blocks are decoded once, handed out row by row, and dropped when used up."""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from student_train.order import epoch_order
from teacher_cache.format.cache import Cache
from teacher_cache.format.row import Row
from teacher_cache.format.shard import ShardReader
from teacher_cache.format.shard_columns import BLOCK_SEQUENCES

OPEN_SHARDS = 256


class Reader:
    """Reads this rank's rows of one view, batch by batch, from one or several caches.

    Holds at most the blocks that one window of each of its lanes touches.
    """

    def __init__(self, caches: Sequence[Cache], *, view: int, layers: Sequence[int]) -> None:
        self._caches = caches
        self._view = view
        self._layers = tuple(layers)
        self._stops = np.cumsum([len(cache.manifest(view).shards) for cache in caches])
        self._open = lru_cache(maxsize=OPEN_SHARDS)(self._open_shard)
        self._blocks: dict[tuple[int, int], dict[int, Row]] = {}

    def batches(
        self, *, seed: int, epoch: int, batch_sequences: int, rank: int = 0, num_ranks: int = 1, start_sequence: int = 0
    ) -> Iterator[list[Row]]:
        """This rank's rows of each global batch; an empty list where a batch holds none of its rows."""
        order = epoch_order(self._caches, view=self._view, seed=seed, epoch=epoch)
        for pairs in order.batches(batch_sequences, rank=rank, num_ranks=num_ranks, start_sequence=start_sequence):
            yield self._take(pairs)

    def _take(self, pairs: np.ndarray) -> list[Row]:
        return [self._row(int(shard), int(row)) for shard, row in pairs]

    def _row(self, shard: int, row: int) -> Row:
        key = shard, row // BLOCK_SEQUENCES
        if key not in self._blocks:
            rows = self._open(shard).block(key[1])
            self._blocks[key] = {key[1] * BLOCK_SEQUENCES + place: value for place, value in enumerate(rows)}
        block = self._blocks[key]
        taken = block.pop(row)
        if not block:
            del self._blocks[key]
        return taken

    def _open_shard(self, place: int) -> ShardReader:
        """By its place among the shards of all caches, cache after cache."""
        source = int(np.searchsorted(self._stops, place, side="right"))
        cache = self._caches[source]
        shard = cache.manifest(self._view).shards[place - int(self._stops[source])]  # counted from their end
        return cache.open_shard(shard, layers=self._layers, as_levels=True, source=source)
