"""Two caches so small that reading one whole takes milliseconds: one with every code there is, one without any."""

import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from safetensors.numpy import load, save

from infra.bench.random_teacher import save_random_teacher
from teacher_cache import CacheSpec, build
from teacher_cache.format import codebook
from teacher_cache.format.cache import Cache, open_cache
from teacher_cache.shell.settings import parse

UNSEALED = "unsealed"
"""Folder in each cache with copies of its Parquet files and codebook that nothing guards."""
WORDS = tuple(first + second for first in "bdfgklmnprst" for second in "aiou")
SEQUENCE_LENGTH = 24
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "initializer_range": 0.4,
}
CODES: dict[str, dict[str, Any]] = {
    "coded": {
        "masking": {"policy": "rare", "rate": 0.3},  # the one policy with a file of its own
        "soft_labels": {"top_k": 4, "code": "packed"},
        "hidden": {"code": "transform"},
    },
    "plain": {"soft_labels": {"top_k": 4, "code": "float32"}, "hidden": {"code": "float16"}},
}


def make(folder: Path) -> dict[str, Cache]:
    """Builds both below a folder, by name."""
    teacher = save_random_teacher(folder / "teacher", WORDS, sequence_length=SEQUENCE_LENGTH, **SIZES)
    text = folder / "text.txt"
    draw = random.Random(0)
    text.write_text("\n\n".join(" ".join(draw.choices(WORDS, k=draw.randint(3, 20))) for _ in range(40)) + "\n")
    return {name: _cache(folder / name, teacher, text, codes) for name, codes in CODES.items()}


def _cache(folder: Path, teacher: Path, text: Path, codes: dict[str, Any]) -> Cache:
    values = {
        "cache": str(folder),
        "corpus": {"paths": [str(text)], "sequence_length": SEQUENCE_LENGTH},
        "teacher": {"model": str(teacher)},
        "views": 1,
        "unit_sequences": 8,
        "keep": {"unmasked": 0.5},
        "execution": {"num_workers": 0, "gpus_per_worker": 0},
    }
    build(parse(CacheSpec, values | codes), progress=False)
    for path in [*folder.glob("shards/*/*"), *folder.glob("sequences/parts/*")]:
        unseal(path, folder / UNSEALED / path.relative_to(folder))
    if (path := folder / codebook.KEY).exists():
        (folder / UNSEALED / codebook.KEY).write_bytes(save(load(path.read_bytes())))  # without its own digest
    return open_cache(str(folder))


def unseal(path: Path, target: Path) -> None:
    """Writes a Parquet file anew without checksums or compression, so that no damage hides behind another."""
    file = pq.ParquetFile(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    how = {"compression": "none", "write_statistics": False, "write_page_checksum": False}
    with pq.ParquetWriter(target, file.schema_arrow, **how) as writer:
        for group in range(file.num_row_groups):
            writer.write_table(file.read_row_group(group))
