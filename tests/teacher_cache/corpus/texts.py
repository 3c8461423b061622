"""Corpus files of a few documents."""

from collections.abc import Iterable
from itertools import chain
from pathlib import Path

DOCUMENTS = ["The first one.\nIt has two lines.", "Ein zweites, für Ümläute: 語 🎈", "third"]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def flat(lists: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(lists))
