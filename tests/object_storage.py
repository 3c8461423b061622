"""A small corpus in a bucket or a folder, a cache of it, a student of that."""

import gzip
import json
from pathlib import Path

import numpy as np

from student_train import StudentSpec
from teacher_cache import CacheSpec
from teacher_cache.shell.settings import parse
from teacher_cache.storage.store import Store
from tests.families import WORDS


def put_corpus(folder: str) -> None:
    """40 documents of 5 to 24 words in two files, in a bucket or a local folder."""
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(WORDS, random.integers(5, 25))) for _ in range(40)]
    store = Store(folder)
    # No time of compression in the file: a mirror of a corpus is the same corpus.
    store.create("one.txt.gz", gzip.compress("\n\n".join(texts[:20]).encode(), mtime=0))
    store.create("two.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts[20:]).encode())


def cache_spec(folder: str, teacher: Path, **changes: object) -> CacheSpec:
    """A small cache of the corpus in `folder`, beside it, without Ray."""
    values = {
        "cache": f"{folder}/cache",
        "corpus": {"paths": (f"{folder}/corpus/*.txt.gz", f"{folder}/corpus/two.jsonl"), "sequence_length": 16},
        "teacher": {"model": str(teacher)},
        "views": 2,
        "unit_sequences": 16,
        "execution": {"num_workers": 0},
    }
    return parse(CacheSpec, values | changes)


def student_spec(folder: str) -> StudentSpec:
    values = {
        "caches": (f"{folder}/cache",),
        "output": f"{folder}/student",
        "steps": 3,
        "batch_sequences": 8,
        "execution": {"num_workers": 0, "checkpoint_steps": 2},
    }
    return parse(StudentSpec, values)
