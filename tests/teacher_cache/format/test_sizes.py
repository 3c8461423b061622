"""What a shard's bytes are spent on."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from teacher_cache.errors import UserError
from teacher_cache.format.cache import Cache
from teacher_cache.format.sizes import PARTS, part_sizes
from tests import caches

CODES: Any = {"soft_labels": {"code": "float32"}, "hidden": {"code": "float16"}}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """One unit of two blocks."""
    folder = tmp_path_factory.mktemp("sizes") / "cache"
    return caches.build_cache(folder, num_documents=140, unit_sequences=200, **CODES)


def test_parts_are_those_of_the_columns_and_add_up(cache: Cache) -> None:
    (shard,) = cache.manifest(0).shards
    sizes = part_sizes(cache.store, shard)
    assert tuple(sizes) == PARTS
    assert all(size > 0 for size in sizes.values())
    files = [Path(cache.url, ref.key) for ref in (shard.labels, shard.hidden) if ref]
    assert sum(sizes.values()) == sum(path.stat().st_size for path in files)
    num_values = shard.num_kept * 32
    assert 0.5 * 2 * num_values < sizes["hidden"] < 1.2 * 2 * num_values, "float16 states, nearly incompressible"


def test_soft_labels_are_what_a_file_without_them_lacks(cache: Cache, tmp_path: Path) -> None:
    (shard,) = cache.manifest(0).shards
    path = tmp_path / "without.parquet"
    table = pq.read_table(shard.labels.fetch(cache.store)).drop_columns(["topk_ids", "topk_logits", "rest"])
    pq.write_table(
        table, path, compression="zstd", compression_level=3, row_group_size=128, write_page_checksum=True,
        write_statistics=False,
    )  # fmt: skip
    sizes = part_sizes(cache.store, shard)
    lacking = shard.labels.num_bytes - path.stat().st_size
    assert sizes["soft_labels"] <= lacking <= sizes["soft_labels"] + sizes["overhead"]


def test_without_hidden_states_they_take_nothing(tmp_path: Path) -> None:
    cache = caches.build_cache(tmp_path / "cache", **CODES | {"hidden": {"code": "none"}})
    shard = cache.manifest(0).shards[0]
    sizes = part_sizes(cache.store, shard)
    assert sizes["hidden"] == 0
    assert sum(sizes.values()) == shard.num_bytes == shard.labels.num_bytes


def test_a_damaged_object_is_named(cache: Cache, tmp_path: Path) -> None:
    shard = cache.manifest(0).shards[0]
    copy = caches.copy_without(cache, tmp_path / "copy", shard.labels.key)
    with pytest.raises(UserError, match=f"{shard.labels.key} is missing"):
        part_sizes(copy.store, shard)
