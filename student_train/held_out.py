"""Rows set aside from training, the same for every student of the same caches: whole blocks, drawn at random.

Blocks, not rows, so that a reader never decodes what it does not use; each is a run of neighbouring documents, of which
the first and the last may go on outside.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from teacher_cache.errors import UserError
from teacher_cache.format import philox
from teacher_cache.format.cache import Cache
from teacher_cache.format.shard_columns import BLOCK_SEQUENCES


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Blocks that no epoch reads."""

    rows: np.ndarray
    """int64 `[n, 2]`: (shard, row) pairs to evaluate on; shards count over all caches, one after the other."""
    blocks: dict[int, list[int]]
    """Shard → its blocks set aside, ascending. Their rows beyond `rows` are used for nothing."""

    def training_sizes(self, sizes: np.ndarray) -> np.ndarray:
        """Rows of each shard that are left to train on."""
        left = sizes.copy()
        for shard, blocks in self.blocks.items():
            left[shard] -= sum(_block_size(int(sizes[shard]), block) for block in blocks)
        return left

    def skip(self, pairs: np.ndarray) -> np.ndarray:
        """(shard, place among the rows left) pairs `[n, 2]` → (shard, row) pairs."""
        if not self.blocks:
            return pairs
        rows = pairs[:, 1].copy()
        for shard in np.intersect1d(pairs[:, 0], list(self.blocks)):
            here = pairs[:, 0] == shard
            for block in self.blocks[int(shard)]:
                rows[here & (rows >= block * BLOCK_SEQUENCES)] += BLOCK_SEQUENCES
        return np.stack([pairs[:, 0], rows], axis=1)


NOTHING = HeldOut(rows=np.empty((0, 2), np.int64), blocks={})


def set_aside(caches: Sequence[Cache], num_sequences: int) -> HeldOut:
    """Draws as few blocks as hold so many sequences. Not by view: all views mask the same sequences.

    Raises:
        UserError: nothing would be left to train on.
    """
    sizes = np.concatenate([cache.manifest(0).sizes for cache in caches])
    key = philox.key_of("held-out", *(cache.fingerprint for cache in caches))
    held_out = draw(sizes, num_sequences, key)
    if not held_out.training_sizes(sizes).any():
        raise UserError(
            f"held_out_sequences is {num_sequences:,}, the caches hold {int(sizes.sum()):,} in blocks of"
            f" {BLOCK_SEQUENCES} or a unit's size: nothing would be left to train on; lower it"
        )
    return held_out


def draw(sizes: np.ndarray, num_sequences: int, key: philox.Key) -> HeldOut:
    """The same from the rows of each shard."""
    if num_sequences == 0:
        return NOTHING
    num_blocks = -(-sizes // BLOCK_SEQUENCES)
    stops = np.cumsum(num_blocks)
    order = philox.permutation(philox.words(key, stream=0, index=0, size=int(stops[-1]) if len(stops) else 0))
    rows: list[tuple[int, int]] = []
    blocks: dict[int, list[int]] = {}
    for drawn in order:
        if len(rows) >= num_sequences:
            break
        shard = int(np.searchsorted(stops, drawn, side="right"))
        block = int(drawn - stops[shard] + num_blocks[shard])
        blocks.setdefault(shard, []).append(block)
        first = block * BLOCK_SEQUENCES
        rows += [(shard, first + place) for place in range(_block_size(int(sizes[shard]), block))]
    return HeldOut(
        rows=np.array(rows[:num_sequences], np.int64).reshape(-1, 2),
        blocks={shard: sorted(drawn) for shard, drawn in blocks.items()},
    )


def _block_size(shard_rows: int, block: int) -> int:
    return min(BLOCK_SEQUENCES, shard_rows - block * BLOCK_SEQUENCES)
