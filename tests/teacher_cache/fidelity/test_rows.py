"""Which rows a sample is made of."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from teacher_cache.errors import UserError
from teacher_cache.fidelity import rows
from teacher_cache.format.cache import Cache, open_cache
from teacher_cache.format.manifest import Shard
from teacher_cache.format.objects import ObjectRef
from tests import caches

OBJECT = ObjectRef(key="shards/a", sha256="0" * 64, num_bytes=1)


def make_shards(num_shards: int, num_sequences: int, num_labels: int) -> list[Shard]:
    counts = {"num_sequences": num_sequences, "num_labels": num_labels, "num_tokens": 1, "num_kept": 1}
    return [Shard(unit=unit, labels=OBJECT, hidden=None, **counts) for unit in range(num_shards)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Two views of 3 units of 150, 150 and 20 sequences: blocks of 128, 22 and 20 rows."""
    folder = tmp_path_factory.mktemp("rows") / "cache"
    codes: Any = {"soft_labels": {"code": "float32"}, "hidden": {"code": "none"}}
    return caches.build_cache(folder, num_documents=320, unit_sequences=150, views=2, **codes)


class TestSpread:
    @pytest.mark.parametrize(
        ("num_shards", "num_sequences", "num_labels", "num_positions"),
        [
            (27, 512, 9728, 16384),
            (10_000, 512, 9728, 16384),
            (1, 5000, 95_000, 64),
            (400, 8, 152, 16384),
            (3, 4, 76, 64),
        ],
    )
    def test_enough_is_expected_and_it_is_even(
        self, num_shards: int, num_sequences: int, num_labels: int, num_positions: int
    ) -> None:
        chosen = rows.spread(make_shards(num_shards, num_sequences, num_labels), 1.0, num_positions)
        num_rows = sum(map(len, chosen.values()))
        expected = num_rows * num_labels / num_sequences
        assert num_positions <= expected <= 4 * num_positions
        assert len(chosen) <= max(rows.SPREAD_SHARDS, 2 * num_positions / num_labels + 1)
        for offsets in chosen.values():
            assert offsets == sorted(set(offsets))
            assert np.diff([-1, *offsets, num_sequences]).max() <= num_sequences / len(offsets) + 1
        assert np.diff([-1, *chosen, num_shards]).max() <= num_shards / len(chosen) + 1

    def test_a_small_cache_gives_all_rows(self) -> None:
        chosen = rows.spread(make_shards(3, 5, 10), 1.0, 1000)
        assert {place: list(offsets) for place, offsets in chosen.items()} == {
            place: list(range(5)) for place in range(3)
        }

    def test_fewer_kept_need_more_rows(self) -> None:
        shards = make_shards(100, 100, 1000)
        few, many = (sum(map(len, rows.spread(shards, rate, 1000).values())) for rate in (1.0, 0.25))
        assert many == pytest.approx(4 * few, rel=0.3)


class TestRead:
    def test_it_yields_the_rows_at_the_offsets_with_their_shards(self, cache: Cache) -> None:
        shards = rows.sealed_shards(cache)
        assert [shard.num_sequences for shard in shards] == [150, 150, 20] * 2
        found = list(rows.read(cache, shards, {1: [0, 127, 128, 149], 3: [], 5: [19]}))
        assert [row.sequence_id for _, row in found] == [150, 277, 278, 299, 319]
        assert [shard.labels.key for shard, _ in found] == [*[shards[1].labels.key] * 4, shards[5].labels.key]
        assert found[-1][1].input_ids.tolist() == next(cache.rows(1, 319)).input_ids.tolist()

    def test_the_others_are_all_else(self, cache: Cache) -> None:
        shards = rows.sealed_shards(cache)
        chosen = {0: [0, 5, 149], 4: [3]}
        both = [*rows.read(cache, shards, chosen), *rows.read_others(cache, shards, chosen)]
        found = [(shards.index(shard) // 3, row.sequence_id) for shard, row in both]
        assert len(found) == len(set(found)) == 640
        assert set(found) == {(view, sequence) for view in range(2) for sequence in range(320)}

    def test_an_unsealed_cache_is_refused(self, cache: Cache, tmp_path: Path) -> None:
        unsealed = caches.copy_without(cache, tmp_path / "copy", "manifests/*")
        with pytest.raises(UserError, match="view 0 is not sealed"):
            rows.sealed_shards(open_cache(unsealed.url))
