"""An even spread of slices of a large corpus, as small local files that the corpus code reads like any other."""

import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from fsspec.core import url_to_fs

from teacher_cache.corpus.documents import PARQUET_ROWS
from teacher_cache.storage.streams import CHUNK_BYTES, open_seekable, split_compression, store_errors

NUM_SLICES = 32
SLICE_BYTES = 2**20
"""As stored, compressed or not."""
MOST_UNLIKE = 1.25
"""Bytes of the beginning of a compressed file may be so much more text than others."""
_FED_BYTES = 4096
LONGEST_WORD = 512
"""Bytes; text that goes on for longer has no spaces."""
_SPACE, _CHARACTER = re.compile(rb"\s"), re.compile(rb"[^\x80-\xbf]")
_DECODERS: dict[str, Callable[[], Any]] = {
    "gzip": lambda: zlib.decompressobj(zlib.MAX_WBITS | 16),
    "zstd": lambda: zstandard.ZstdDecompressor().decompressobj(),
}
"""Unlike Arrow's decoder, these give what there is of a file cut short."""


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A corpus file, of which nothing is read yet."""

    url: str
    format: str
    """text, text_file, jsonl or parquet."""
    num_bytes: int
    """As stored, compressed or not."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """A part of a corpus file, copied to a local one."""

    path: Path
    file: StoredFile
    num_bytes: float
    """Of the stored file, that it stands for."""


def slices(files: Sequence[StoredFile], folder: Path) -> Iterator[Slice]:
    """Slices at evenly spread places of all files' stored bytes; each takes the place of the one before in `folder`.

    A compressed file cannot be entered but at its beginning, so all of its slices are taken from there. Those of a
    Parquet file are the first rows of row groups.

    Raises:
        UserError: a file cannot be read.
    """
    for file, offsets in spread(files):
        found = _of_parquet(file, offsets, folder) if file.format == "parquet" else _of_text(file, offsets, folder)
        yield from (part for part in found if part.num_bytes > 0)


def spread(files: Sequence[StoredFile]) -> Iterator[tuple[StoredFile, list[int]]]:
    """Files in which slices lie, with the places of their middles in stored bytes."""
    stops = np.cumsum([file.num_bytes for file in files])
    places = ((np.arange(NUM_SLICES) + 0.5) * stops[-1] / NUM_SLICES).astype(np.int64)
    of_files = np.searchsorted(stops, places, side="right")
    for number in np.unique(of_files):
        file = files[number]
        yield file, (places[of_files == number] - (stops[number] - file.num_bytes)).tolist()


def _of_text(file: StoredFile, offsets: Sequence[int], folder: Path) -> Iterator[Slice]:
    codec = split_compression(file.url)[1]
    read = _from_the_beginning(file, len(offsets), codec) if codec else _around(file, offsets)
    path = folder / f"slice.{file.format}"
    for data, num_bytes, is_first, is_last in read:
        whole = without_ends(data, file.format, is_first=is_first, is_last=is_last)
        path.write_bytes(whole)
        yield Slice(path=path, file=file, num_bytes=num_bytes * len(whole) / max(len(data), 1))


Read = Iterator[tuple[bytes, float, bool, bool]]
"""Text, stored bytes that it stands for, and whether it is the first, or the last, of its file."""


def _around(file: StoredFile, offsets: Sequence[int]) -> Read:
    for offset in offsets:
        size = SLICE_BYTES
        while True:
            start, stop = max(0, offset - size // 2), min(file.num_bytes, offset + size // 2)
            data, is_first, is_last = _range(file, start, stop), start == 0, stop == file.num_bytes
            if (is_first and is_last) or without_ends(data, file.format, is_first=is_first, is_last=is_last):
                break
            size *= 4  # a line of JSON may be a book
        yield data, len(data), is_first, is_last


def _from_the_beginning(file: StoredFile, num_slices: int, codec: str) -> Read:
    stored = _range(file, 0, min(file.num_bytes, num_slices * SLICE_BYTES))
    with store_errors(file.url):
        text, used = decompressed(stored, codec)
    num_bytes = share_of_file(stored, codec, text_bytes=len(text), used=used, file_bytes=file.num_bytes)
    stops = [len(text) * number // num_slices for number in range(num_slices + 1)]
    is_whole = len(stored) == file.num_bytes
    for number, (start, stop) in enumerate(pairwise(stops)):
        yield text[start:stop], num_bytes / num_slices, number == 0, is_whole and number == num_slices - 1


def _range(file: StoredFile, start: int, stop: int) -> bytes:
    with store_errors(file.url):
        filesystem, path = url_to_fs(file.url)
        return bytes(filesystem.cat_file(path, start=start, end=stop))  # an open file would read ahead


def decompressed(stored: bytes, codec: str) -> tuple[bytes, int]:
    """What the first bytes of a compressed file hold, and how many of them hold it: what follows is a block cut short.

    Raises:
        zlib.error, ZstdError: they are no such data.
    """
    decoder, parts, used = _DECODERS[codec](), [], 0
    for start in range(0, len(stored), _FED_BYTES):
        data = stored[start : start + _FED_BYTES]
        while data:
            if part := decoder.decompress(data):
                parts.append(part)
                used = min(len(stored), start + _FED_BYTES)
            data = decoder.unused_data if decoder.eof else b""
            if decoder.eof:
                decoder = _DECODERS[codec]()  # a file may be several, one after the other
    return b"".join(parts), used


def share_of_file(stored: bytes, codec: str, *, text_bytes: int, used: int, file_bytes: int) -> float:
    """Stored bytes that a file's first `text_bytes` stand for: those used for them, or better.

    Zstandard compresses what comes later better, by what came before: a tenth in a file of a megabyte. But most files
    tell how much text they hold; one that tells far less than there must be is the first of several in one file.
    """
    told = zstandard.frame_content_size(stored) if codec == "zstd" and stored else -1
    share = file_bytes * text_bytes / told if told > 0 else used
    return share if share < MOST_UNLIKE * used else used


def without_ends(data: bytes, format: str, *, is_first: bool, is_last: bool) -> bytes:
    """A slice without what is cut in two at ends that are not the file's own: a line of JSON; a word of text, or where
    a language has no spaces, a character."""
    if format == "jsonl":
        start, stop = data.find(b"\n") + 1, data.rfind(b"\n") + 1
    else:
        start = _beginnings(data[:LONGEST_WORD])[0]
        stop = max(0, len(data) - LONGEST_WORD) + _beginnings(data[-LONGEST_WORD:])[-1]
    return data[0 if is_first else start : len(data) if is_last else stop]


def _beginnings(data: bytes) -> list[int]:
    """Where words begin, or in text without spaces characters."""
    words = [space.end() for space in _SPACE.finditer(data)]
    return words or [character.start() for character in _CHARACTER.finditer(data)] or [0]


def _of_parquet(file: StoredFile, offsets: Sequence[int], folder: Path) -> Iterator[Slice]:
    path = folder / "slice.parquet"
    with store_errors(file.url), open_seekable(file.url) as opened:
        table = pq.ParquetFile(opened, buffer_size=CHUNK_BYTES)
        sizes = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
        rows = np.array(offsets) / file.num_bytes * sum(sizes)
        for group in np.unique(np.searchsorted(np.cumsum(sizes), rows, side="right")):
            part = _first_rows(table, int(group))
            pq.write_table(part, path)
            yield Slice(path=path, file=file, num_bytes=file.num_bytes * len(part) / sum(sizes))


def _first_rows(table: pq.ParquetFile, group: int) -> pa.Table:
    """Of a row group, until they are as large as a slice in memory."""
    batches, num_bytes = [], 0
    for batch in table.iter_batches(batch_size=PARQUET_ROWS, row_groups=[group]):
        batches.append(batch)
        num_bytes += batch.nbytes
        if num_bytes >= SLICE_BYTES:
            break
    return pa.Table.from_batches(batches, table.schema_arrow)
