"""Which files make a corpus, in which order, and what identifies each."""

import os
import posixpath
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from glob import has_magic
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from teacher_cache.errors import UserError
from teacher_cache.storage.streams import size_and_sha256, split_compression, store_errors

_FORMATS = {".txt": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


@dataclass(frozen=True)
class CorpusFile:
    """A file of the corpus; size and digest are of the stored bytes, compressed or not."""

    url: str
    format: str
    """text, text_file, jsonl or parquet."""
    num_bytes: int
    sha256: str
    """64 hexadecimal digits."""


def resolve(paths: Sequence[str], format: str) -> list[tuple[str, str]]:
    """The (URL, format) of each file that `paths` name, in the order given and sorted within a glob.

    Local files come as absolute paths, others as URLs. Format `auto` decides by the extension.

    Raises:
        UserError: a path names no file, a folder, or a file named before; the store refuses; or `auto` does
            not know the extension.
    """
    urls = [url for path in paths for url in _expand(path)]
    repeated = [url for url, count in Counter(urls).items() if count > 1]
    if repeated:
        raise UserError(f"corpus.paths name {', '.join(repeated)} more than once; name each file once")
    return [(url, _format_of(url) if format == "auto" else format) for url in urls]


def describe(url: str, format: str) -> CorpusFile:
    """Reads the stored bytes once for their number and digest.

    Raises:
        UserError: the file cannot be read.
    """
    num_bytes, sha256 = size_and_sha256(url)
    return CorpusFile(url=url, format=format, num_bytes=num_bytes, sha256=sha256)


def _expand(path: str) -> list[str]:
    if "::" in path:
        raise UserError(f"{path} is a chained URL, which a corpus cannot be read from; unpack it and name the files")
    with store_errors(path):
        filesystem, inner = url_to_fs(path)
        filesystem.invalidate_cache()  # a listing of earlier in this process would hide newer files
        is_glob = has_magic(path) and not (isinstance(filesystem, LocalFileSystem) and os.path.isfile(inner))
        names = _glob(filesystem, inner, path) if is_glob else [_one_file(filesystem, inner, path)]
    urls = sorted(_url(filesystem, name) for name in names)
    if chained := [url for url in urls if "::" in url]:
        raise UserError(f"{chained[0]} would be read as a chained URL; rename it without ::")
    return urls


def _glob(filesystem: Any, inner: str, path: str) -> list[str]:
    found = filesystem.glob(inner, detail=True)
    names = [name for name, entry in found.items() if entry["type"] != "directory"]
    if not names:
        filesystem.ls(_folder_above_glob(inner))  # raises what glob hides: a missing bucket, a refused permission
        raise UserError(f"{path} matches no file; check corpus.paths")
    return names


def _one_file(filesystem: Any, inner: str, path: str) -> str:
    if filesystem.info(inner)["type"] == "directory":
        folder = path.rstrip("/")
        raise UserError(f"{path} is a folder; name its files with a glob, for example {folder}/*.txt")
    return inner


def _folder_above_glob(inner: str) -> str:
    while has_magic(inner):
        inner = posixpath.dirname(inner)
    return inner


def _url(filesystem: Any, name: str) -> str:
    if isinstance(filesystem, LocalFileSystem):
        return os.path.abspath(name)
    return str(filesystem.unstrip_protocol(name))


def _format_of(url: str) -> str:
    extension = posixpath.splitext(split_compression(url)[0])[1].lower()
    if extension not in _FORMATS:
        raise UserError(
            f"{url}: its extension tells no format; known are {', '.join(_FORMATS)}, each also with .gz or .zst; "
            "otherwise set corpus.format to text, text_file, jsonl or parquet"
        )
    return _FORMATS[extension]
