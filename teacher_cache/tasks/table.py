"""Named columns of `.csv`, `.tsv` and `.jsonl` files, row by row with their lines."""

import csv
import io
import logging
import posixpath
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from teacher_cache.errors import UserError
from teacher_cache.storage.streams import json_object, split_compression
from teacher_cache.tasks.files import read_lines, read_text

Rows = Iterator[tuple[int, Sequence[Any]]]
"""(line, fields), lines counted from 1."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Some columns of a file; each is as long as `lines`."""

    name: str
    columns: dict[str, list[Any]]
    lines: Sequence[int]
    unit: str = "line"

    def place(self, row: int) -> str:
        """For messages: where a row stands."""
        return f"{self.name} {self.unit} {self.lines[row]}"


def read_table(url: str, names: Sequence[str]) -> Table:
    """The columns `names`, in the layout that the file's extension tells.

    Raises:
        UserError: another extension, a column missing, a row with more or fewer columns than the header, or a file
            that cannot be read.
    """
    extension = posixpath.splitext(split_compression(url)[0])[1].lower()
    match extension:
        case ".csv":
            return _csv(url, names)
        case ".tsv":
            return read_tsv(url, names)
        case ".jsonl" | ".ndjson":
            return _jsonl(url, names)
    raise UserError(
        f"{url}: its extension tells no layout; known are .csv, .tsv and .jsonl, each also with .gz or .zst"
    )


def read_tsv(
    url: str, names: Sequence[str], *, header: Sequence[str] | None = None, skip_short_rows: bool = False
) -> Table:
    """The columns `names` of a file without quoting: a quotation mark is text, a tab always ends a field.

    Args:
        header: all columns of a file whose first line does not name them.
        skip_short_rows: leave out rows with fewer columns than the header, and say how many.
    """
    rows = ((number, line.split("\t")) for number, line in enumerate(read_lines(url), start=1) if line)
    return _select(url, _header(rows) if header is None else header, rows, names, skip_short_rows=skip_short_rows)


csv.field_size_limit(sys.maxsize)  # of texts: the reader's own limit is 131,072 characters


def _csv(url: str, names: Sequence[str]) -> Table:
    # newline="": the reader itself tells line ends from those within quotes.
    rows = _csv_rows(csv.reader(io.StringIO(read_text(url), newline=""), strict=True), url)
    return _select(url, _header(rows), rows, names)


def _csv_rows(reader: Any, url: str) -> Rows:
    try:
        yield from ((reader.line_num, fields) for fields in reader if fields)
    except csv.Error as error:
        raise UserError(f"{url} line {reader.line_num} is not CSV: {error}; quote fields by RFC 4180") from None


def _header(rows: Rows) -> Sequence[str]:
    return next(rows, (0, []))[1]


def _jsonl(url: str, names: Sequence[str]) -> Table:
    return _select(url, names, _json_rows(url, names), names)


def _json_rows(url: str, names: Sequence[str]) -> Rows:
    for number, line in enumerate(read_lines(url), start=1):
        if line.strip():
            row = json_object(line, f"{url} line {number}")
            check_columns(f"{url} line {number}", row, names)
            yield number, [row[name] for name in names]


def check_columns(place: str, existing: Iterable[str], names: Sequence[str]) -> None:
    """Stops where a column of `names` does not exist.

    Raises:
        UserError: it names the column, and those there are.
    """
    existing = list(existing)
    missing = [name for name in names if name not in existing]
    if missing:
        raise UserError(f"{place} has no column {missing[0]!r}; there are: {', '.join(existing) or 'none'}")


def _select(
    url: str, header: Sequence[str], rows: Rows, names: Sequence[str], *, skip_short_rows: bool = False
) -> Table:
    check_columns(url, header, names)
    places = [header.index(name) for name in names]
    columns: dict[str, list[Any]] = {name: [] for name in names}
    lines, num_short = [], 0
    for line, fields in rows:
        if skip_short_rows and len(fields) < len(header):
            num_short += 1
            continue
        if len(fields) != len(header):
            raise UserError(
                f"{url} line {line} has {len(fields)} columns, and the header has {len(header)}; mend the line"
            )
        for name, place in zip(names, places, strict=True):
            columns[name].append(fields[place])
        lines.append(line)
    if num_short:
        logger.warning("%s: rows left out because they lack columns: %d", url, num_short)
    return Table(name=url, columns=columns, lines=lines)
