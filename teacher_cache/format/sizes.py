"""What a shard's bytes are spent on, as the footers of its Parquet files tell."""

from teacher_cache.format import parquet
from teacher_cache.format.manifest import Shard
from teacher_cache.format.objects import ObjectRef
from teacher_cache.storage.store import Store

PARTS = ("hidden", "soft_labels", "inputs", "overhead")
_SOFT_LABELS = {"topk_ids", "topk_logits", "rest", "soft_labels"}
"""Columns of a labels object that hold what the teacher said, in any of its codes."""


def part_sizes(store: Store, shard: Shard) -> dict[str, int]:
    """Bytes of a shard's objects by part; they add up to `shard.num_bytes`.

    `hidden` states; `soft_labels`; `inputs`: token ids, labels and positions; `overhead`: footers and metadata.

    Raises:
        UserError: an object is missing or damaged.
    """
    labels = _column_sizes(store, shard.labels)
    hidden = _column_sizes(store, shard.hidden) if shard.hidden else {}
    soft_labels = sum(size for name, size in labels.items() if name in _SOFT_LABELS)
    sizes = {
        "hidden": sum(hidden.values()),
        "soft_labels": soft_labels,
        "inputs": sum(labels.values()) - soft_labels,
    }
    return sizes | {"overhead": shard.num_bytes - sum(sizes.values())}


def _column_sizes(store: Store, ref: ObjectRef) -> dict[str, int]:
    """Compressed bytes of each top-level column, over all row groups."""
    file, _ = parquet.open_file(ref.fetch(store), name=f"{store.url}/{ref.key}")
    sizes: dict[str, int] = {}
    for chunks in file.groups:
        for chunk in chunks:
            sizes[chunk.name] = sizes.get(chunk.name, 0) + chunk.num_compressed_bytes
    return sizes
