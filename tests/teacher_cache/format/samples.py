"""Small fixed inputs for tests of the format."""

from pathlib import Path
from typing import Any

from teacher_cache.format.coder import Coder
from teacher_cache.format.manifest import Digests, Shard
from teacher_cache.format.objects import ObjectRef
from teacher_cache.format.spec import Identity
from teacher_cache.shell.settings import parse

PLAIN = Coder()
"""Codes nothing."""
FINGERPRINT = "f" * 64
DIGESTS = Digests(spec="a" * 64, teacher="b" * 64, sequences="c" * 64)


def identity(**changes: Any) -> Identity:
    """A fixed identity; `changes` replace whole sections."""
    values = {
        "objective": "masked_lm",
        "corpus": {
            "files": ({"num_bytes": 10, "sha256": "1" * 64, "format": "text"},),
            "text_field": "text",
            "sequence_length": 128,
            "packing": "documents",
            "tokenizer_sha256": "2" * 64,
        },
        "teacher": {"sha256": "3" * 64, "dtype": "float32"},
        "masking": {"rate": 0.15, "seed": 7},
        "keep": {"masked": 1.0, "unmasked": 0.25},
        "soft_labels": {"top_k": 2, "temperatures": (1.0, 2.0), "code": "float32"},
        "hidden": {"layers": (-1,), "code": "float32"},
        "unit_sequences": 4,
    }
    return parse(Identity, values | changes)


def shard(unit: int, digit: str = "0") -> Shard:
    """A unit's entry in a manifest; `digit` makes the digest of its labels."""
    return Shard(
        unit=unit,
        labels=ObjectRef(key=f"shards/00000/{unit:09d}-{digit * 16}.labels.parquet", sha256=digit * 64, num_bytes=123),
        hidden=ObjectRef(key=f"shards/00000/{unit:09d}-{digit * 16}.hidden.parquet", sha256=digit * 64, num_bytes=45),
        num_sequences=4,
        num_tokens=60,
        num_labels=9,
        num_kept=21,
    )


def flip(path: Path, place: int) -> None:
    """Flips one bit of a file's byte."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
