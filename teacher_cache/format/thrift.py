"""Structs of Apache Thrift's compact protocol, in which the headers and footers of Parquet files are written.

Only what is needed to hold them against each other. Stricter than Thrift: no field may come twice.
"""

from collections.abc import Mapping
from typing import Any

MAX_DEPTH = 12
MAX_LIST = 4096
"""Elements: bounds what a list of the smallest becomes in memory."""
BYTES, LIST, STRUCT = 8, 9, 12
_INTEGERS = (4, 5, 6)

Fields = Mapping[int, tuple[int, Any]]
"""By id: kind and value. Doubles come out as None."""


class ThriftError(ValueError):
    """The bytes are no struct, or not the one that was expected."""


def struct(data: bytes, place: int = 0) -> tuple[Fields, int]:
    """The struct at a place, and where it ends.

    Raises:
        ThriftError: there is none.
    """
    try:
        return _struct(data, place, MAX_DEPTH)
    except IndexError:
        raise ThriftError("a header or footer ends too early") from None


def get(fields: Fields, field: int, *kinds: int) -> Any:
    """A field's value, by default a whole number's.

    Raises:
        ThriftError: it is missing or of another kind.
    """
    kind, value = fields.get(field, (0, None))
    if kind not in (kinds or _INTEGERS):
        raise ThriftError(f"field {field} of a header or footer is missing or of another kind")
    return value


def _struct(data: bytes, place: int, depth: int) -> tuple[Fields, int]:
    if not depth:
        raise ThriftError("a header or footer is nested too deeply")
    fields: dict[int, tuple[int, Any]] = {}
    field = 0
    while head := data[place]:
        place += 1
        if head >> 4:
            field += head >> 4
        else:
            field, place = _zigzag(data, place)
        if field in fields:
            raise ThriftError(f"field {field} of a header or footer comes twice")
        kind = head & 15
        value, place = (kind == 1, place) if kind in (1, 2) else _value(data, place, kind, depth)
        fields[field] = kind, value
    return fields, place + 1


def _value(data: bytes, place: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (1, 2, 3):  # booleans in lists, and bytes
        return data[place], place + 1
    if kind in _INTEGERS:
        return _zigzag(data, place)
    if kind == 7:
        return None, place + 8
    if kind == BYTES:
        size, place = _varint(data, place)
        return data[place : place + size], place + size
    if kind == LIST:
        return _list(data, place, depth - 1)
    if kind == STRUCT:
        return _struct(data, place, depth - 1)
    raise ThriftError(f"a header or footer has a value of kind {kind}")  # sets and maps: Parquet has none


def _list(data: bytes, place: int, depth: int) -> tuple[list[Any], int]:
    size, kind = data[place] >> 4, data[place] & 15
    place += 1
    if size == 15:
        size, place = _varint(data, place)
    if size > MAX_LIST:
        raise ThriftError(f"a header or footer has a list of {size:,}, the most are {MAX_LIST:,}")
    values = []
    for _ in range(size):
        value, place = _value(data, place, kind, depth)
        values.append(value)
    return values, place


def _zigzag(data: bytes, place: int) -> tuple[int, int]:
    number, place = _varint(data, place)
    return (number >> 1) ^ -(number & 1), place


def _varint(data: bytes, place: int) -> tuple[int, int]:
    number = shift = 0
    while shift < 70:
        byte = data[place]
        number |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return number, place
    raise ThriftError("a header or footer has a number of more than 64 bits")
