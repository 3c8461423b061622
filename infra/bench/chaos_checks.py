"""What must hold of a cache, however often its builders were killed."""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from teacher_cache.format import manifest
from teacher_cache.format.cache import Cache
from teacher_cache.format.row import Row
from teacher_cache.storage.store import Store

CREATED_ONCE = (
    "spec.json",
    "codebook.safetensors",
    "teacher/manifest.json",
    "sequences/commits/*",
    "sequences/manifest.parquet",
    "commits/*/*",
    "manifests/*",
)


class Ledger:
    """Remembers the objects of a local cache that nobody may change once they are there."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._seen: dict[Path, bytes] = {}

    def changed(self) -> list[str]:
        """Keys of those that are gone or have other bytes than when they were first seen."""
        now = {path: path.read_bytes() for path in self._paths()}
        bad = [path for path, data in self._seen.items() if now.get(path) != data]
        self._seen = now | self._seen
        return [str(path.relative_to(self._cache)) for path in bad]

    def _paths(self) -> Iterator[Path]:
        for pattern in CREATED_ONCE:
            # A name with a leading dot is a file half written.
            yield from (path for path in self._cache.glob(pattern) if not path.name.startswith("."))


def num_committed(cache: Path, num_views: int) -> int:
    """Units that no build may compute again."""
    return sum(len(manifest.committed_units(Store(str(cache)), view)) for view in range(num_views))


def num_duplicates(cache: Cache, units_per_view: int) -> int:
    """Units that sealed manifests list twice, leave out, or list otherwise than their commits do."""
    wrong = 0
    for view in range(cache.num_views):
        shards = cache.manifest(view).shards
        commits = [manifest.read_commit(cache.store, view, unit, cache.fingerprint) for unit in range(units_per_view)]
        wrong += sum(shard != commit for shard, commit in zip_longest(shards, commits))
    return wrong


def all_rows(cache: Cache) -> list[Row]:
    """Of all sealed views, in order."""
    return [row for view in range(cache.num_views) for row in cache.rows(view)]


def num_mismatches(rows: Sequence[Row], reference: Sequence[Row]) -> int:
    """Rows that differ in any value from those of a cache that was built without a kill, or have none there."""
    pairs = zip_longest(rows, reference)
    return sum(left is None or right is None or not is_equal(left, right) for left, right in pairs)


def is_equal(left: Row, right: Row) -> bool:
    """Whether two rows are the same bit by bit."""
    return all(_same(getattr(left, field.name), getattr(right, field.name)) for field in fields(Row))


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    return bool(np.array_equal(left, right))
