"""From the reading order to rows: blocks are read ahead by threads, handed out row by row, and forgotten.

At any time a reader holds, of each of its 60 / W lanes, the rows left of one window (of 256) and of the blocks that it
touches, about 200 on average; beside these the blocks of the next `LOOKAHEAD_SEQUENCES` rows or of one batch, whichever
are more. A row takes 1 byte a component of each kept position while it is coded, 4 where the cache stores floats.

Legend: n rows of a batch.
"""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, lru_cache

import numpy as np

from student_train.held_out import NOTHING, HeldOut
from student_train.order import epoch_order
from teacher_cache.format.cache import Cache
from teacher_cache.format.row import Row
from teacher_cache.format.shard import ShardReader
from teacher_cache.format.shard_columns import BLOCK_SEQUENCES

OPEN_SHARDS = 256
READ_THREADS = 4
"""They wait for the network or decode without the interpreter's lock."""
LOOKAHEAD_SEQUENCES = 1024
"""Rows whose blocks are asked for before they are needed: about a shard's download at a GPU's pace."""

Block = tuple[int, int]
"""Shard and block."""


class Reader:
    """Reads this rank's rows of one view, batch by batch, from one or several caches."""

    def __init__(
        self, caches: Sequence[Cache], *, view: int, layers: Sequence[int], held_out: HeldOut = NOTHING
    ) -> None:
        self._caches, self._view, self._held_out = caches, view, held_out
        self._layers = tuple(layers)
        self._stops = np.cumsum([len(cache.manifest(view).shards) for cache in caches])
        self._open = lru_cache(maxsize=OPEN_SHARDS)(lambda place: _OpenShard(self, place))
        self._blocks: dict[Block, Future[dict[int, Row]]] = {}
        self._used_before: set[tuple[int, int]] = set()
        for cache in caches:
            _ = cache.coder  # made here, not by several threads at once

    def batches(
        self, *, seed: int, epoch: int, batch_sequences: int, rank: int = 0, num_ranks: int = 1, start_sequence: int = 0
    ) -> Iterator[list[Row]]:
        """This rank's rows of each global batch; an empty list where a batch holds none of its rows."""
        order = epoch_order(self._caches, view=self._view, seed=seed, epoch=epoch, held_out=self._held_out)
        self._used_before = set(map(tuple, order.read_before(start_sequence, rank=rank, num_ranks=num_ranks).tolist()))
        yield from self._rows(
            order.batches(batch_sequences, rank=rank, num_ranks=num_ranks, start_sequence=start_sequence)
        )

    def rows_at(self, pairs: np.ndarray) -> list[Row]:
        """The rows of (shard, row) pairs `[n, 2]`, in order."""
        return [row for rows in self._rows(iter([pairs])) for row in rows]

    def _rows(self, batches: Iterator[np.ndarray]) -> Iterator[list[Row]]:
        """Rows of (shard, row) pairs `[n, 2]`, whose blocks are read ahead."""
        threads = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="read-block")
        try:
            asked: deque[np.ndarray] = deque()
            num_asked = 0
            for pairs in batches:
                self._ask(pairs, threads)
                asked.append(pairs)
                num_asked += len(pairs)
                while num_asked > LOOKAHEAD_SEQUENCES:
                    num_asked -= len(asked[0])
                    yield self._take(asked.popleft())
            for pairs in asked:
                yield self._take(pairs)
        finally:
            threads.shutdown(cancel_futures=True)
            self._blocks.clear()

    def _ask(self, pairs: np.ndarray, threads: ThreadPoolExecutor) -> None:
        for shard, row in pairs.tolist():
            block = shard, row // BLOCK_SEQUENCES
            if block not in self._blocks:
                self._blocks[block] = threads.submit(self._read, block)

    def _take(self, pairs: np.ndarray) -> list[Row]:
        rows = []
        for shard, row in pairs.tolist():
            block = shard, row // BLOCK_SEQUENCES
            left = self._blocks[block].result()
            rows.append(left.pop(row))
            if not left:
                del self._blocks[block]
        return rows

    def _read(self, block: Block) -> dict[int, Row]:
        shard, index = block
        first = index * BLOCK_SEQUENCES
        rows = enumerate(self._open(shard).block(index), start=first)
        return {place: _with_own_states(row) for place, row in rows if (shard, place) not in self._used_before}

    def open_shard(self, place: int) -> ShardReader:
        """By its place among the shards of all caches, cache after cache."""
        source = int(np.searchsorted(self._stops, place, side="right"))
        cache = self._caches[source]
        shard = cache.manifest(self._view).shards[place - int(self._stops[source])]  # counted from their end
        return cache.open_shard(shard, layers=self._layers, as_levels=True, source=source)


class _OpenShard:
    """A shard that is opened by the first thread that wants it, and read by one at a time."""

    def __init__(self, reader: Reader, place: int) -> None:
        self._reader, self._place = reader, place
        self._lock = threading.Lock()

    def block(self, index: int) -> list[Row]:
        with self._lock:
            return self._shard.block(index)

    @cached_property
    def _shard(self) -> ShardReader:
        return self._reader.open_shard(self._place)


def _with_own_states(row: Row) -> Row:
    """The row with memory of its own, which goes when it goes, and levels of one byte where they fit."""
    if row.levels:
        return replace(row, levels={layer: _narrowed(levels) for layer, levels in row.levels.items()})
    return replace(row, hidden={layer: states.copy() for layer, states in row.hidden.items()})


def _narrowed(levels: np.ndarray) -> np.ndarray:
    fits = levels.size == 0 or (levels.min() >= -128 and levels.max() <= 127)
    return levels.astype(np.int8 if fits else np.int16)
