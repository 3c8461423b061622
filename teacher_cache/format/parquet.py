"""Parquet as this format writes and reads it: zstd, page checksums, metadata as JSON, ragged columns.

Legend: N rows, P values over all rows.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from teacher_cache.errors import UserError
from teacher_cache.format import documents, pages, tensors, thrift
from teacher_cache.format.pages import Chunk
from teacher_cache.format.refusal import MAX_REASON, refusing

METADATA_KEY = b"teacher_cache"
ZSTD_LEVEL = 3
MAX_VALUES = 2**31 - 1
"""Offsets of list columns are int32."""
MAX_NUMBER_BYTES = 16
"""Of a number in a page, levels and its share of a dictionary included."""
SPARE_BYTES = 4 * 2**20
"""That pages of a column may take beside, as dictionaries."""
DIGEST_BYTES = 32
"""Of SHA-256. They do not compress, so a manifest has at least these for each object that it lists."""
LIST_GROUP_ROWS = 2**20
"""Of a manifest: what lies in one row group need not be joined when it is read."""
MAX_LISTED = 2**36 - 1
"""Of a number in a manifest: sums stay below 2^63 for all the rows that 2 GiB may list."""
PATTERNS = {"sha256": re.compile(r"[0-9a-f]{64}")}
VERIFY_REMEDY = "run `teacher-cache verify` on its cache"
LIST_REMEDY = "move it away and run `teacher-cache build` again, which writes it anew from the commits"


def write(table: pa.Table, *, metadata: dict[str, Any], row_group_rows: int) -> bytes:
    """A Parquet file's bytes; equal input gives equal bytes with the same pyarrow."""
    encoded = json.dumps(metadata, sort_keys=True).encode()
    sink = BytesIO()
    pq.write_table(
        table.replace_schema_metadata({METADATA_KEY: encoded}),
        sink,
        compression="zstd",
        compression_level=ZSTD_LEVEL,
        row_group_size=row_group_rows,
        write_page_checksum=True,
        write_statistics=False,
        store_schema=True,
    )
    return sink.getvalue()


@dataclass(frozen=True, kw_only=True)
class Column:
    """What a column is, and the most that it may hold in a row group: figures of files are held against it."""

    type: pa.DataType
    max_values: int
    max_bytes: int | None = None
    """Decompressed. None: what numbers take."""

    @property
    def byte_limit(self) -> int:
        return (MAX_NUMBER_BYTES * self.max_values if self.max_bytes is None else self.max_bytes) + SPARE_BYTES


@dataclass(frozen=True)
class File:
    """An open file, of which nothing is read yet but the footer.

    It is read without Arrow's own threads, which may abort a process that ends soon after (apache/arrow issue 34314).
    """

    source: pa.NativeFile
    reader: pq.ParquetFile
    groups: list[list[Chunk]]
    """The columns of each row group. What pyarrow has of them is better left alone, see `pages`."""
    columns: Mapping[str, Column] = field(default_factory=dict)

    @property
    def metadata(self) -> pq.FileMetaData:
        """The footer."""
        return self.reader.metadata

    def expecting(self, columns: Mapping[str, Column]) -> "File":
        """The file, known to have just these columns.

        Raises:
            UserError: it has others, or of other types.
        """
        schema = self.reader.schema_arrow
        found = dict(zip(schema.names, schema.types, strict=True))
        expected = {name: column.type for name, column in columns.items()}
        if found != expected or len(schema) != len(expected):
            raise UserError(f"its columns are {_listed(found)}; they must be {_listed(expected)}")
        return replace(self, columns=columns)

    def read_group(self, group: int, names: Sequence[str]) -> pa.Table:
        """Some columns of a row group.

        Raises:
            UserError: a column or its pages claim more than the column may hold.
        """
        self._check_group(group, names)
        return self.reader.read_row_group(group, columns=list(names), use_threads=False)

    def read_first(self, group: int, name: str) -> Any:
        """The value in the first row of a row group; the others are never unfolded.

        Raises:
            UserError: see `read_group`.
        """
        self._check_group(group, [name])
        batch = next(self.reader.iter_batches(1, row_groups=[group], columns=[name], use_threads=False), None)
        if batch is None or not len(batch) or not batch[name][0].is_valid:
            raise UserError(f"the first value of {name} in row group {group} is missing")
        return batch[name][0].as_py()

    def _check_group(self, group: int, names: Sequence[str]) -> None:
        if not 0 <= group < len(self.groups):
            raise UserError(f"it has {len(self.groups):,} row groups, none at place {group:,}")
        for chunk in self.groups[group]:
            if chunk.name in names:
                _check_chunk(self.source, chunk, self.columns[chunk.name])


def _check_chunk(source: pa.NativeFile, chunk: Chunk, column: Column) -> None:
    for what, found, limit in (
        ("values", chunk.num_values, column.max_values),
        ("bytes", chunk.num_bytes, column.byte_limit),
    ):
        if found > limit:
            raise UserError(f"{chunk.name} claims {found:,} {what} in a row group, the most are {limit:,}")
    pages.check(source, chunk)


def _listed(types: Mapping[str, pa.DataType]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in types.items())


def open_file(source: Path | bytes, *, name: str, remedy: str = VERIFY_REMEDY) -> tuple[File, dict[str, Any]]:
    """A Parquet file with page checksums verified on reading, and its metadata.

    Raises:
        UserError: it is no Parquet file of this format.
    """
    try:
        opened = pa.BufferReader(source) if isinstance(source, bytes) else pa.memory_map(str(source))
        groups = pages.footer(opened)
        reader = pq.ParquetFile(
            opened,
            page_checksum_verification=True,
            thrift_string_size_limit=pages.MAX_FOOTER_BYTES,
            thrift_container_size_limit=thrift.MAX_LIST,
        )
        metadata = json.loads((reader.schema_arrow.metadata or {})[METADATA_KEY])
        if not isinstance(metadata, dict):
            raise ValueError("its metadata are no JSON object")
    except (pa.ArrowException, OSError, KeyError, ValueError, RecursionError) as error:
        reason = str(error).partition("\n")[0][:MAX_REASON]
        raise UserError(f"{name} is damaged or not part of a teacher cache: {reason}; {remedy}") from None
    return File(opened, reader, groups), metadata


def write_list(columns: Mapping[str, np.ndarray], *, metadata: dict[str, Any]) -> bytes:
    """A manifest: columns of numbers, int64 `[N]`, and of digests, uint8 `[N, 32]`, whose names end in `sha256`.

    Its own digest, see `_list_digest`, is `sha256` among its metadata: footers have no checksum in Parquet.
    """
    _check_numbers(columns)
    table = pa.table({name: _to_arrow(values) for name, values in columns.items()})
    digest = _list_digest(columns, metadata)
    return write(table, metadata={**metadata, "sha256": digest}, row_group_rows=LIST_GROUP_ROWS)


def read_list(data: bytes, *, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Columns and metadata of a manifest, as `write_list` takes them.

    Raises:
        UserError: it is damaged, or no manifest.
    """
    with refusing(name, LIST_REMEDY):
        file, metadata = _open_list(data, name)
        claimed = metadata.pop("sha256")
        tables = [file.read_group(group, list(file.columns)) for group in range(len(file.groups))]
        columns = {
            column: _from_arrow([table[column] for table in tables], _list_type(column)) for column in file.columns
        }
        if claimed != _list_digest(columns, metadata):
            raise UserError("its content does not match its own SHA-256")
        _check_numbers(columns)
    return columns, metadata


def _open_list(data: bytes, name: str) -> tuple[File, dict[str, Any]]:
    """A manifest, its columns checked."""
    file, metadata = open_file(data, name=name, remedy=LIST_REMEDY)
    most = len(data) // DIGEST_BYTES
    limit = {"max_values": most, "max_bytes": most * (DIGEST_BYTES + MAX_NUMBER_BYTES)}
    types = {name: _list_type(name) for name in file.reader.schema_arrow.names}
    file = file.expecting({name: Column(type=kind, **limit) for name, kind in types.items()})
    if (num_values := pages.total_values(file.groups)) > most * len(types):
        raise UserError(f"{len(data):,} bytes cannot list objects with {num_values:,} properties")
    return file, metadata


def _list_type(name: str) -> pa.DataType:
    """Of a column of a manifest."""
    return pa.binary(DIGEST_BYTES) if name.endswith("sha256") else pa.int64()


def _to_arrow(values: np.ndarray) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values, pa.int64())
    flat = pa.py_buffer(np.ascontiguousarray(values, np.uint8))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(DIGEST_BYTES), len(values), [None, flat])


def _from_arrow(columns: Sequence[pa.ChunkedArray], kind: pa.DataType) -> np.ndarray:
    """A manifest's column, given by row group."""
    if any(column.null_count for column in columns):
        raise UserError("it lists objects of which something is missing")
    chunks = [chunk for column in columns for chunk in column.chunks]
    whole = chunks[0] if len(chunks) == 1 else pa.concat_arrays([pa.array([], kind), *chunks])
    # Not `to_numpy`, which imports pandas where it is installed.
    if pa.types.is_integer(kind):
        return np.frombuffer(whole.buffers()[1], np.int64, count=len(whole), offset=8 * whole.offset)
    flat = np.frombuffer(
        whole.buffers()[1], np.uint8, count=DIGEST_BYTES * len(whole), offset=DIGEST_BYTES * whole.offset
    )
    return flat.reshape(-1, DIGEST_BYTES)


def _check_numbers(columns: Mapping[str, np.ndarray]) -> None:
    """Raises UserError where a number is less than 0 or more than `MAX_LISTED`."""
    for name in (name for name, values in columns.items() if values.ndim == 1):
        bad = np.flatnonzero((columns[name] < 0) | (columns[name] > MAX_LISTED))
        if len(bad):
            found = f"{columns[name][bad[0]]:,} in row {bad[0]:,}"
            raise UserError(f"{name} is {found}; it must be from 0 to {MAX_LISTED:,}")


def _list_digest(columns: Mapping[str, np.ndarray], metadata: dict[str, Any]) -> str:
    """SHA-256 of the canonical JSON of `{"columns": …, "metadata": …}`: the digest of the columns, see
    `tensors.digest_of`, and all metadata but this."""
    return documents.digest_of({"columns": tensors.digest_of(columns), "metadata": metadata})


def ragged(rows: Sequence[np.ndarray], dtype: Any) -> pa.Array:
    """A list column of N rows from N arrays of any shape, each flattened.

    Raises:
        UserError: more values than a list column's offsets can count.
    """
    sizes = [np.size(row) for row in rows]
    if sum(sizes) > MAX_VALUES:
        raise UserError(
            f"one file would hold {sum(sizes):,} values in a column, more than {MAX_VALUES:,}: "
            "make units smaller (unit_sequences) or soft_labels.top_k"
        )
    offsets = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum(sizes, out=offsets[1:])
    values = np.concatenate([np.asarray(row, dtype=dtype).reshape(-1) for row in rows]) if rows else np.empty(0, dtype)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def unragged(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Values `[P]` and offsets `[N + 1]` of a list column.

    Raises:
        UserError: a value is missing.
    """
    array = column.combine_chunks()
    if array.null_count or array.values.null_count:
        raise UserError("a list column has rows or values that are missing")
    offsets = array.offsets.to_numpy()
    return array.values.to_numpy(zero_copy_only=False)[offsets[0] : offsets[-1]], offsets - offsets[0]


def split(values: np.ndarray, offsets: np.ndarray) -> list[np.ndarray]:
    """The N rows of a ragged column, as views."""
    return [values[start:stop] for start, stop in pairwise(offsets)]
