"""Which stored rows are looked at: evenly spread over a cache, without reading all of it."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from teacher_cache.format.cache import Cache
from teacher_cache.format.manifest import Shard
from teacher_cache.format.row import Row
from teacher_cache.format.shard import BLOCK_SEQUENCES

SPREAD_SHARDS = 64
"""Shards over which a sample is spread, unless more are needed: each one is a download."""

Offsets = Mapping[int, Sequence[int]]
"""Place of a shard among those at hand → places of rows in it, ascending."""


def sealed_shards(cache: Cache) -> list[Shard]:
    """The shards of all sealed views.

    Raises:
        UserError: no view is sealed.
    """
    num_views = max(1, cache.num_views)  # without any, the first says so
    return [shard for view in range(num_views) for shard in cache.manifest(view).shards]


def expected_positions(shards: Sequence[Shard], masked_rate: float) -> float:
    """Masked kept positions, where a masked position was kept with probability `masked_rate`."""
    return sum(shard.num_labels for shard in shards) * masked_rate


def spread(shards: Sequence[Shard], masked_rate: float, num_positions: int) -> dict[int, list[int]]:
    """Offsets of evenly spread rows that hold about `num_positions` masked kept positions, or of all rows.

    Some positions must be expected.
    """
    num_rows = sum(shard.num_sequences for shard in shards)
    expected = expected_positions(shards, masked_rate)
    rows_needed = min(num_rows, math.ceil(1.05 * num_positions / expected * num_rows))
    # Twice the shards that could just hold the positions, since shards differ.
    shards_needed = max(min(SPREAD_SHARDS, rows_needed), math.ceil(2 * num_positions / expected * len(shards)))
    places = _evenly(min(shards_needed, len(shards)), len(shards))
    share = rows_needed / sum(shards[place].num_sequences for place in places)
    sizes = {place: shards[place].num_sequences for place in places}
    return {place: _evenly(min(size, math.ceil(share * size)), size) for place, size in sizes.items()}


def read(cache: Cache, shards: Sequence[Shard], offsets: Offsets) -> Iterator[tuple[Shard, Row]]:
    """The rows at `offsets`, shard after shard; blocks and shards without any are not read."""
    for place, wanted in offsets.items():
        by_block: dict[int, list[int]] = {}
        for offset in wanted:
            by_block.setdefault(offset // BLOCK_SEQUENCES, []).append(offset % BLOCK_SEQUENCES)
        for block, inside in by_block.items():
            rows = cache.open_shard(shards[place]).block(block)
            yield from ((shards[place], rows[offset]) for offset in inside)


def read_others(cache: Cache, shards: Sequence[Shard], chosen: Offsets) -> Iterator[tuple[Shard, Row]]:
    """All rows that are not chosen, shard after shard."""
    for place, shard in enumerate(shards):
        taken = set(chosen.get(place, ()))
        yield from read(cache, shards, {place: [row for row in range(shard.num_sequences) if row not in taken]})


def _evenly(count: int, size: int) -> list[int]:
    """`count` of `size` places, each in the middle of an equal part."""
    return [int(place) for place in (np.arange(count) + 0.5) * size / count] if count else []
