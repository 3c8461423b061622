"""Parquet as this format writes and reads it: zstd, page checksums, metadata as JSON, ragged columns.

Legend: N rows, P values over all rows.
"""

import json
from collections.abc import Sequence
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from teacher_cache.errors import UserError
from teacher_cache.format import documents

METADATA_KEY = b"teacher_cache"
ZSTD_LEVEL = 3
MAX_VALUES = 2**31 - 1
"""Offsets of list columns are int32."""


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


def open_file(source: Path | bytes, *, name: str) -> tuple[pq.ParquetFile, dict[str, Any]]:
    """A Parquet file with page checksums verified on reading, and its metadata.

    Raises:
        UserError: it is no Parquet file of this format.
    """
    try:
        reader = pq.ParquetFile(
            BytesIO(source) if isinstance(source, bytes) else source, page_checksum_verification=True, memory_map=True
        )
        metadata = json.loads((reader.schema_arrow.metadata or {})[METADATA_KEY])
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise UserError(f"{name} is damaged or not part of a teacher cache: {error}") from None
    return reader, metadata


def write_list(rows: list[dict[str, Any]], schema: pa.Schema, *, metadata: dict[str, Any]) -> bytes:
    """A manifest: few columns of numbers and names. Its digest is among its metadata, as footers have no checksum."""
    table = pa.Table.from_pylist(rows, schema)
    return write(table, metadata={**metadata, "sha256": _list_digest(rows, metadata)}, row_group_rows=65_536)


def read_list(data: bytes, *, name: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and metadata of a manifest.

    Raises:
        UserError: it is damaged.
    """
    reader, metadata = open_file(data, name=name)
    try:
        claimed = metadata.pop("sha256")
        rows = reader.read().to_pylist()
        intact = claimed == _list_digest(rows, metadata)
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{name} is damaged: {error}") from None
    if not intact:
        raise UserError(f"{name} is damaged: its content does not match its own SHA-256")
    return rows, metadata


def _list_digest(rows: list[dict[str, Any]], metadata: dict[str, Any]) -> str:
    return documents.sha256(json.dumps([rows, metadata], sort_keys=True).encode())


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


def unragged(column: pa.ChunkedArray | pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Values `[P]` and offsets `[N + 1]` of a list column."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # combine_chunks keeps a ChunkedArray when there are no chunks
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    offsets = array.offsets.to_numpy()
    return array.values.to_numpy(zero_copy_only=False)[offsets[0] : offsets[-1]], offsets - offsets[0]


def split(values: np.ndarray, offsets: np.ndarray) -> list[np.ndarray]:
    """The N rows of a ragged column, as views."""
    return [values[start:stop] for start, stop in pairwise(offsets)]
