"""Parquet as the format writes it."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from teacher_cache.errors import UserError
from teacher_cache.format import parquet

DTYPES = [np.uint16, np.int32, np.float32]


def bit_pattern(rows: list[np.ndarray]) -> list[bytes]:
    return [np.ascontiguousarray(row).tobytes() for row in rows]


@given(data=st.data(), dtype=st.sampled_from(DTYPES), group=st.integers(1, 4))
def test_ragged_rows_come_back_bit_for_bit(data: st.DataObject, dtype: Any, group: int) -> None:
    shapes = hnp.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=4)
    rows = data.draw(st.lists(hnp.arrays(dtype, shapes), max_size=9))
    written = parquet.write(pa.table({"x": parquet.ragged(rows, dtype)}), metadata={}, row_group_rows=group)
    reader, _ = parquet.open_file(written, name="x")
    found = parquet.split(*parquet.unragged(reader.reader.read()["x"]))
    assert bit_pattern(found) == bit_pattern(rows)
    assert all(row.dtype == dtype and row.ndim == 1 for row in found)


@given(
    hnp.arrays(np.int32, st.integers(0, 5)).map(lambda row: [row, row[:2], row]), st.integers(0, 3), st.integers(0, 3)
)
def test_a_slice_of_a_ragged_column_gives_its_own_rows(rows: list[np.ndarray], start: int, length: int) -> None:
    sliced = pa.chunked_array([parquet.ragged(rows, np.int32)]).slice(start, length)
    found = parquet.split(*parquet.unragged(sliced))
    assert bit_pattern(found) == bit_pattern(rows[start : start + length])


def test_more_values_than_offsets_can_count_are_refused() -> None:
    half = np.broadcast_to(np.int32(0), 2**30)  # takes no memory
    with pytest.raises(UserError, match=r"2,147,483,648 values in a column.*unit_sequences"):
        parquet.ragged([half, half], np.int32)


def test_equal_input_gives_equal_bytes() -> None:
    def write(metadata: dict[str, Any]) -> bytes:
        return parquet.write(pa.table({"x": [1, 2]}), metadata=metadata, row_group_rows=1)

    assert write({"a": 1, "b": 2}) == write({"b": 2, "a": 1}) != write({"a": 1, "b": 3})


def test_metadata_and_row_groups_come_back(tmp_path: Path) -> None:
    metadata = {"view": 3, "temperatures": [0.5, 2.0], "device": "cpu"}
    path = tmp_path / "x.parquet"
    path.write_bytes(parquet.write(pa.table({"x": range(5)}), metadata=metadata, row_group_rows=2))
    reader, found = parquet.open_file(path, name="x")
    assert found == metadata
    assert [
        reader.reader.read_row_group(group)["x"].to_pylist() for group in range(reader.metadata.num_row_groups)
    ] == [
        [0, 1],
        [2, 3],
        [4],
    ]


def test_a_damaged_page_is_not_read() -> None:
    values = list(range(10_000))
    written = bytearray(parquet.write(pa.table({"x": values}), metadata={}, row_group_rows=10_000))
    written[len(written) // 2] ^= 1
    reader, _ = parquet.open_file(bytes(written), name="x")
    with pytest.raises(OSError, match="CRC checksum verification failed"):
        reader.reader.read()


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" * 100, b"text" * 100])
def test_what_is_no_parquet_file_is_refused(data: bytes) -> None:
    with pytest.raises(UserError, match="here/x is damaged or not part of a teacher cache"):
        parquet.open_file(data, name="here/x")


def test_a_parquet_file_of_another_program_is_refused() -> None:
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.table({"x": [1]}), sink)
    with pytest.raises(UserError, match="here/x is damaged or not part of a teacher cache"):
        parquet.open_file(sink.getvalue().to_pybytes(), name="here/x")
