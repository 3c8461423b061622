"""What the footer and the pages of a Parquet file claim, read before arrow believes it.

Arrow takes as much memory as a page's header says that it decompresses to, or how many values it holds, whatever the
footer says. So headers are held against the footer, and the footer's figures against what a column may hold. The
footer is read here too, as pyarrow ends the process where a column's figures there contradict each other.

Structs and fields are those of parquet.thrift in the Parquet format.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from teacher_cache.errors import UserError
from teacher_cache.format import thrift

MAX_FOOTER_BYTES = 2 * 2**20
"""About 1,300 row groups of 10 columns."""
MAX_HEADER_BYTES = 4096
"""Of a page; ours have about 40, statistics make them longer."""
_END = 8
"""Bytes after the footer: its size, and PAR1."""

_DATA, _DICTIONARY, _DATA_2 = 0, 2, 3
_DETAILS = {_DATA: 5, _DICTIONARY: 7, _DATA_2: 8}
"""Field of a page's header that holds the details of each kind of page. In them, 1 is the number of values."""
_ENCODING = {_DATA: 2, _DICTIONARY: 2, _DATA_2: 4}
ENCODINGS = {0, 2, 8}
"""Plain, and both names of dictionaries. Others, as deltas of strings, grow while they are decoded."""


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A column of a row group, as the footer tells."""

    name: str
    """Of the top-level column."""
    num_values: int
    num_bytes: int
    """Decompressed, headers of pages included."""
    num_compressed_bytes: int
    start: int
    """Of its first page in the file."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a page's header claims."""

    is_dictionary: bool
    encoding: int
    num_values: int
    num_bytes: int
    """Decompressed, without the header."""
    stop: int
    """Where the next page's header starts."""


def footer(source: pa.NativeFile) -> list[list[Chunk]]:
    """The columns of each row group.

    Raises:
        UserError: there is no footer, or it cannot be read.
    """
    size = source.size()
    end = source.read_at(_END, size - _END) if size > 2 * _END else b""
    if end[4:] != b"PAR1":
        raise UserError("it is no Parquet file, or not a whole one")
    num_bytes = int.from_bytes(end[:4], "little")
    if num_bytes > min(MAX_FOOTER_BYTES, size - _END):
        raise UserError(f"its footer claims {num_bytes:,} bytes, the most are {MAX_FOOTER_BYTES:,} and its size")
    fields, _ = thrift.struct(source.read_at(num_bytes, size - _END - num_bytes))
    return [_columns(group, size) for group in thrift.get(fields, 4, thrift.LIST)]


def _columns(group: thrift.Fields, size: int) -> list[Chunk]:
    return [_chunk(thrift.get(column, 3, thrift.STRUCT), size) for column in thrift.get(group, 1, thrift.LIST)]


def _chunk(fields: thrift.Fields, size: int) -> Chunk:
    """From its metadata, in a file of so many bytes."""
    start = thrift.get(fields, 9)
    if 11 in fields and 0 < thrift.get(fields, 11) < start:  # a dictionary's page comes first
        start = thrift.get(fields, 11)
    chunk = Chunk(
        name=thrift.get(fields, 3, thrift.LIST)[0].decode(),
        num_values=thrift.get(fields, 5),
        num_bytes=thrift.get(fields, 6),
        num_compressed_bytes=thrift.get(fields, 7),
        start=start,
    )
    if min(chunk.num_values, chunk.num_bytes, chunk.num_compressed_bytes, start) < 0:
        raise UserError(f"its footer claims a negative size of {chunk.name}")
    if start + chunk.num_compressed_bytes > size - _END:
        raise UserError(f"its footer claims that {chunk.name} lies beyond the file")
    return chunk


def check(source: pa.NativeFile, chunk: Chunk) -> None:
    """Holds the pages of a column against the footer.

    Raises:
        UserError: they claim more bytes or values, or another encoding, or end too early.
    """
    num_values = num_bytes = 0
    for page in _pages(source, chunk) if chunk.num_values else ():  # of an empty one, arrow reads none
        num_bytes += page.num_bytes
        num_values += 0 if page.is_dictionary else page.num_values
        if page.encoding not in ENCODINGS:
            raise UserError(f"a page of {chunk.name} has encoding {page.encoding}, which is not in use here")
        if max(num_values, page.num_values) > chunk.num_values or num_bytes > chunk.num_bytes:
            raise UserError(
                f"pages of {chunk.name} claim {num_bytes:,} bytes and {max(num_values, page.num_values):,} values, "
                f"its footer {chunk.num_bytes:,} and {chunk.num_values:,}"
            )
        if num_values == chunk.num_values and not page.is_dictionary:
            return  # where arrow stops, too
    if num_values != chunk.num_values:
        raise UserError(f"pages of {chunk.name} hold {num_values:,} of {chunk.num_values:,} values")


def _pages(source: pa.NativeFile, chunk: Chunk) -> Iterator[Page]:
    place, stop = chunk.start, chunk.start + chunk.num_compressed_bytes
    while place < stop:
        page = _page(source.read_at(min(MAX_HEADER_BYTES, stop - place), place), place)
        yield page
        place = page.stop


def _page(data: bytes, place: int) -> Page:
    """The page whose header `data` starts with, at a place in the file."""
    fields, size = thrift.struct(data)
    kind = thrift.get(fields, 1)
    if kind not in _DETAILS:
        raise UserError(f"a page is of kind {kind}, which is not in use here")
    details = thrift.get(fields, _DETAILS[kind], thrift.STRUCT)
    num_values, num_bytes, num_compressed_bytes = (
        thrift.get(details, 1),
        thrift.get(fields, 2),
        thrift.get(fields, 3),
    )
    if min(num_values, num_bytes, num_compressed_bytes) < 0:
        raise UserError("a page claims a negative size")
    return Page(
        is_dictionary=kind == _DICTIONARY,
        encoding=thrift.get(details, _ENCODING[kind]),
        num_values=num_values,
        num_bytes=num_bytes,
        stop=place + size + num_compressed_bytes,
    )


def total_values(groups: Sequence[Sequence[Chunk]]) -> int:
    return sum(chunk.num_values for columns in groups for chunk in columns)
