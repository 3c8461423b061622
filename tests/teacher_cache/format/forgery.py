"""What a hostile author may do to files: footers and page headers that lie, tables and documents of any content."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra.bench.sandbox import in_sandbox
from teacher_cache.errors import UserError
from teacher_cache.format import parquet, thrift

MEMORY = 64 * 2**20
"""Bytes that a reader of a hostile file may take; the bombs are larger."""
HUGE = 2**31 - 1


def read_in_little_memory(read: Callable[[], Any]) -> Any:
    """What `read` gives, in a process of its own that may not take `MEMORY`; of a `UserError`, its message."""

    def guarded(_: None) -> Any:
        try:
            return read()
        except UserError as error:
            return str(error)

    (result,) = in_sandbox([None], guarded, max_bytes=MEMORY)
    return result


def rewrite(data: bytes, change: Callable[[pa.Table], pa.Table], *, row_group_rows: int = 128, **how: Any) -> bytes:
    """A Parquet file of a changed table, with its metadata, and checksums that are right."""
    table = change(pq.read_table(pa.BufferReader(data)))
    metadata = pq.read_schema(pa.BufferReader(data)).metadata
    sink = pa.BufferOutputStream()
    options = {"compression": "zstd", "write_statistics": False, "write_page_checksum": True} | how
    pq.write_table(table.replace_schema_metadata(metadata), sink, row_group_size=row_group_rows, **options)
    return bytes(sink.getvalue().to_pybytes())


def forge_footer(data: bytes, change: Callable[[dict[int, Any]], None]) -> bytes:
    """A Parquet file whose footer is changed, by the numbers of its fields."""
    size = int.from_bytes(data[-8:-4], "little")
    fields = _plain(thrift.struct(data[-8 - size : -8])[0])
    kept = {field: fields[field] for field in (1, 2, 3, 4, 5)}
    for group in kept[4][1]:
        for column in group[1][1]:
            column[3] = thrift.STRUCT, {f: v for f, v in column[3][1].items() if f in (1, 2, 3, 4, 5, 6, 7, 9, 11)}
            for field in set(column) - {2, 3}:
                del column[field]
    change(kept)
    footer = encode(kept)
    return data[: -8 - size] + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def column_metadata(fields: dict[int, Any], *, column: int, group: int = 0) -> dict[int, Any]:
    """Of a footer's column: 5 is its number of values, 6 and 7 are its bytes, 9 and 11 where its pages start."""
    found: dict[int, Any] = fields[4][1][group][1][1][column][3][1]
    return found


def forge_page(data: bytes, change: Callable[[dict[int, Any]], None]) -> bytes:
    """A Parquet file in which the header of the last column's first page is changed; all else fits."""
    chunk = parquet.open_file(data, name="x")[0].groups[-1][-1]
    header, size = thrift.struct(data[chunk.start : chunk.start + 200])
    fields = _plain(header)
    change(fields)
    forged = encode(fields)
    whole = data[: chunk.start] + forged + data[chunk.start + size :]

    def move(footer: dict[int, Any]) -> None:
        last = column_metadata(footer, column=-1, group=-1)
        last[7] = last[7][0], last[7][1] + len(forged) - size
        if 11 in last:
            last[9] = last[9][0], last[9][1] + len(forged) - size

    return forge_footer(whole, move)


def _plain(value: Any) -> Any:
    """With dictionaries and lists that can be changed."""
    if isinstance(value, dict):
        return {field: (kind, _plain(item)) for field, (kind, item) in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def encode(fields: dict[int, Any]) -> bytes:
    """A struct of Thrift's compact protocol."""
    return b"".join(_field(field, *fields[field]) for field in sorted(fields)) + b"\0"


def _field(field: int, kind: int, value: Any) -> bytes:
    return bytes([kind]) + _varint(2 * field) + (b"" if kind in (1, 2) else _value(kind, value))


def _value(kind: int, value: Any) -> bytes:
    if kind == thrift.STRUCT:
        return encode(value)
    if kind == thrift.BYTES:
        return _varint(len(value)) + value
    if kind == thrift.LIST:
        inner = thrift.STRUCT if value and isinstance(value[0], dict) else 5
        inner = thrift.BYTES if value and isinstance(value[0], bytes) else inner
        return bytes([0xF0 | inner]) + _varint(len(value)) + b"".join(_value(inner, item) for item in value)
    return bytes([value]) if kind == 3 else _varint(value << 1 ^ value >> 63)


def _varint(number: int) -> bytes:
    encoded = b""
    while number > 127:
        encoded, number = encoded + bytes([number & 127 | 128]), number >> 7
    return encoded + bytes([number])
