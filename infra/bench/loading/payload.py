"""The payload: two caches of the same answers, and each peer's copy of them.

Legend: a unit is a shard of a cache.
"""

import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from infra.bench.loading.contender import SHARD_ROWS, Contender
from infra.bench.output import say
from infra.bench.random_teacher import SPECIAL, save_random_teacher
from teacher_cache import CacheSpec, build
from teacher_cache.format.cache import open_cache
from teacher_cache.shell.settings import parse

SYLLABLES = tuple(first + second for first, second in product("bdfghjklmnprstvz", "aeiou"))
NUM_SPECIAL_IN_SEQUENCE = 2
VARIANTS = {"transform": "teacher-cache", "float16": "teacher-cache, float16"}
"""Codes of hidden states, and what the caches are called."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Of the payload."""

    num_sequences: int
    """A multiple of 2 * SHARD_ROWS: no loader then drops or repeats rows to make ranks equal."""
    sequence_length: int
    """So long that every sequence has a kept position: of none, peers would not know the shapes."""
    hidden_size: int
    vocab_size: int


FULL = Size(num_sequences=1024, sequence_length=128, hidden_size=768, vocab_size=30_522)
QUICK = Size(num_sequences=512, sequence_length=64, hidden_size=64, vocab_size=2000)


def make_caches(folder: Path, size: Size) -> None:
    """Builds `transform` and `float16` below a folder, if they are not there: of the same sequences and masks."""
    for code in VARIANTS:
        say(f"building a cache with hidden.code: {code}")
        make_cache(folder, code, size, hidden={"code": code})


def make_cache(folder: Path, name: str, size: Size, **overrides: Any) -> str:
    """Builds the cache `name` below a folder, if it is not there; its URL. Teacher and text lie beside it."""
    words = words_of(size.vocab_size)
    config: dict[str, Any] = {
        "hidden_size": size.hidden_size,
        "num_hidden_layers": 1,
        "num_attention_heads": size.hidden_size // 64,
        "intermediate_size": size.hidden_size,
    }
    teacher, text = folder / "teacher", folder / "text.txt"
    if not text.exists():
        folder.mkdir(parents=True, exist_ok=True)
        save_random_teacher(teacher, words, sequence_length=size.sequence_length, **config)
        text.write_text("\n\n".join(_documents(words, size)) + "\n")
    values = {
        "cache": str(folder / name),
        "corpus": {"paths": [str(text)], "sequence_length": size.sequence_length, "packing": "documents"},
        "teacher": {"model": str(teacher)},
        "views": 1,
        "unit_sequences": SHARD_ROWS,
        "execution": {"num_workers": 0, "gpus_per_worker": 0},
    }
    build(parse(CacheSpec, values | overrides), progress=False)
    return str(folder / name)


def words_of(vocab_size: int) -> list[str]:
    """All of a vocabulary but for the special tokens."""
    words = ["".join(syllables) for syllables in product(SYLLABLES, repeat=3)]
    return words[: vocab_size - len(SPECIAL)]


def _documents(words: list[str], size: Size) -> Iterator[str]:
    """Each fills a sequence; words are as unevenly used as in a text (Zipf's law)."""
    draw = random.Random(0)
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    for _ in range(size.num_sequences):
        yield " ".join(draw.choices(words, weights, k=size.sequence_length - NUM_SPECIAL_IN_SEQUENCE))


def write_peer(peer: Contender, module: str, folder: Path) -> None:
    """Stores the float16 cache's rows for a peer below `folder`, if they are not there."""
    target = folder / module
    if target.exists():
        return
    say(f"writing them for {peer.NAME}")
    making = folder / f"{module}.making"
    shutil.rmtree(making, ignore_errors=True)  # of a run that was stopped
    peer.write(open_cache(str(folder / "float16")).rows(), making)
    making.rename(target)


def bytes_per_row(folder: Path, num_rows: int) -> float:
    """Of a peer's files; of a cache's shards alone."""
    shards = folder / "shards"
    files = (shards if shards.exists() else folder).rglob("*")
    return sum(path.stat().st_size for path in files if path.is_file()) / num_rows
