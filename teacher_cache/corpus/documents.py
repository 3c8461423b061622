"""The documents of one corpus file, in order, long ones in pieces."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from teacher_cache.errors import UserError
from teacher_cache.storage.streams import CHUNK_BYTES, json_object, open_seekable, store_errors, text_chunks

PIECE_CHARACTERS = 1 << 20
"""A longer document is cut at the next safe place."""
UNCUT_PIECES = 16
"""After so many times PIECE_CHARACTERS without a safe place, a document is cut anywhere."""
PARQUET_ROWS = 64
"""Rows decoded at once."""

_LINE_PART = re.compile(r"[^\n]*\n|[^\n]+")
# Only these four: BERT's normaliser deletes other control characters, so words on both sides of one are joined.
_SAFE_CUT = re.compile(r"[ \t\n\r](?<=\S\s)")

Fragments = Iterator[tuple[int, str]]
"""Parts of documents' texts in order, each with a number that changes from document to document."""


@dataclass(frozen=True)
class Piece:
    """Text of one document, counted from 0 in its file; tokens of its pieces joined are those of the document."""

    document: int
    text: str


def pieces(url: str, *, format: str, text_field: str) -> Iterator[Piece]:
    """The documents of a file, without whitespace around them; documents of nothing else are not counted.

    Raises:
        UserError: the file cannot be read, is damaged, is not UTF-8, or a row has no such text: the file and
            the line, row or byte are named.
    """
    document = 0
    for _, fragments in groupby(_fragments(url, format, text_field), key=itemgetter(0)):
        counted = False
        for text in cut(text for _, text in fragments):
            yield Piece(document, text)
            counted = True
        document += counted


def cut(fragments: Iterable[str]) -> Iterator[str]:
    """Joins a document's fragments, strips it, and cuts it where no tokenizer joins words: before a whitespace."""
    rest, begun = "", False
    for fragment in fragments:
        rest += fragment if begun else fragment.lstrip()
        begun = begun or bool(rest)
        start = 0
        while end := _cut_place(rest, start):
            yield rest[start:end]
            start = end
        rest = rest[start:]
    if rest := rest.rstrip():
        yield rest


def _cut_place(text: str, start: int) -> int | None:
    """Where to end the piece from `start`; None: nowhere before more text is known."""
    limit = start + UNCUT_PIECES * PIECE_CHARACTERS
    if place := _SAFE_CUT.search(text, start + PIECE_CHARACTERS, limit):
        return place.start()
    return limit if len(text) > limit else None


def _fragments(url: str, format: str, text_field: str) -> Fragments:
    match format:
        case "text":
            return _text(text_chunks(url))
        case "text_file":
            return ((0, chunk) for chunk in text_chunks(url))
        case "jsonl":
            return _jsonl(url, text_field)
        case "parquet":
            return _parquet(url, text_field)
    raise ValueError(f"format must be text, text_file, jsonl or parquet, not {format!r}")


def _text(chunks: Iterable[str]) -> Fragments:
    document, blank = 0, True
    for part in _line_parts(chunks):
        blank = blank and part.isspace()
        if part.endswith("\n"):
            document += blank
            blank = True
        yield document, part


def _jsonl(url: str, text_field: str) -> Fragments:
    for number, line in enumerate(_lines(text_chunks(url)), start=1):
        if line.strip():
            yield number, _json_text(line, text_field, where=f"{url} line {number}")


def _json_text(line: str, text_field: str, *, where: str) -> str:
    row = json_object(line, where)
    if text_field not in row:
        raise UserError(f"{where}: {_no_such(text_field, 'field', row)}")
    return _checked_text(row[text_field], f"{where}, field {text_field!r}")


def _checked_text(value: Any, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{where} is of type {type(value).__name__}; it must be a string or null")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where} is not Unicode text ({error.reason} at character {error.start})") from None
    return value


def _parquet(url: str, text_field: str) -> Fragments:
    with store_errors(url), open_seekable(url) as file:
        table = pq.ParquetFile(file, buffer_size=CHUNK_BYTES)  # otherwise a whole column chunk is held
        _check_column(table.schema_arrow, text_field, url)
        row = 0
        for batch in table.iter_batches(batch_size=PARQUET_ROWS, columns=[text_field]):
            for value in batch.column(0):
                yield row, _parquet_text(value, f"{url} row {row}")
                row += 1


def _check_column(schema: Any, text_field: str, url: str) -> None:
    if text_field not in schema.names:
        raise UserError(f"{url}: {_no_such(text_field, 'column', schema.names)}")
    kind = schema.field(text_field).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise UserError(
            f"{url}: column {text_field!r} is {kind}, it must be string or large_string; there are: {columns}; "
            "set corpus.text_field"
        )


def _parquet_text(value: Any, where: str) -> str:
    try:
        return value.as_py() or ""
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 at its byte {error.start}; convert it to UTF-8") from None


def _no_such(name: str, kind: str, existing: Iterable[str]) -> str:
    return f"no {kind} {name!r}, there are: {', '.join(existing) or 'none'}; set corpus.text_field"


def _line_parts(chunks: Iterable[str]) -> Iterator[str]:
    """Lines with their ends; a line that spans chunks comes in parts."""
    for chunk in chunks:
        yield from _LINE_PART.findall(chunk)


def _lines(chunks: Iterable[str]) -> Iterator[str]:
    parts: list[str] = []
    for part in _line_parts(chunks):
        parts.append(part)
        if part.endswith("\n"):
            yield "".join(parts)
            parts.clear()
    yield "".join(parts)
