"""Tiny real caches, built in this process from a random teacher and a little text of words that it knows."""

import random
import shutil
from pathlib import Path
from typing import Any

from teacher_cache.config import CacheSpec
from teacher_cache.format.cache import Cache, open_cache
from teacher_cache.pipeline import build
from teacher_cache.shell.settings import parse
from tests import families

EXACT: dict[str, Any] = {
    "keep": {"masked": 1.0, "unmasked": 1.0},
    "soft_labels": {"code": "float32"},
    "hidden": {"code": "float32"},
}
"""Every position kept and nothing rounded: for proofs of equality."""


def make_corpus(path: Path, *, num_documents: int = 40, seed: int = 0) -> Path:
    """A text file of documents of 3 to 20 words each."""
    draw = random.Random(seed)
    documents = [" ".join(draw.choices(families.WORDS, k=draw.randint(3, 20))) for _ in range(num_documents)]
    path.write_text("\n\n".join(documents) + "\n")
    return path


def make_spec(
    folder: Path, *, teacher: Path | None = None, num_documents: int = 40, text_seed: int = 0, **overrides: Any
) -> CacheSpec:
    """The specification of the cache `folder`; `overrides` replace whole sections, by default one view is made.

    Corpus and, unless `teacher` names one, a BERT teacher are made beside the cache.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    if teacher is None:
        teacher = families.save_pretrained(folder.with_name(f"{folder.name}-teacher"))
    text = make_corpus(folder.with_name(f"{folder.name}.txt"), num_documents=num_documents, seed=text_seed)
    values: dict[str, Any] = {
        "cache": str(folder),
        "corpus": {"paths": [str(text)], "sequence_length": 24},
        "teacher": {"model": str(teacher)},
        "views": 1,
        "unit_sequences": 8,
        "execution": {"num_workers": 0, "gpus_per_worker": 0},
    }
    return parse(CacheSpec, values | overrides)


def build_cache(folder: Path, **options: Any) -> Cache:
    """Builds and opens the cache `folder`; see `make_spec`."""
    build(make_spec(folder, **options), progress=False)
    return open_cache(str(folder))


def copy_without(cache: Cache, folder: Path, pattern: str) -> Cache:
    """A copy of a local cache in which all objects that match a glob, at least one, are missing."""
    shutil.copytree(cache.url, folder)
    missing = list(folder.glob(pattern))
    assert missing, f"{pattern} matches nothing"
    for path in missing:
        path.unlink()
    return open_cache(str(folder))
