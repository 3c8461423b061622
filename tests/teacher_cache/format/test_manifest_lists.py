"""Lists of objects in Parquet, as manifests are written."""

import hashlib
from collections.abc import Mapping
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
from teacher_cache.format.objects import create_list
from teacher_cache.storage.store import Store

Columns = Mapping[str, np.ndarray]


def some(num_rows: int = 20) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(num_rows)
    digests = draw.integers(0, 256, (num_rows, 32), dtype=np.uint8)
    return {"sha256": digests, "num_bytes": draw.integers(0, parquet.MAX_LISTED, num_rows, endpoint=True)}


def plain(columns: Columns) -> dict[str, Any]:
    return {name: (str(values.dtype), values.tolist()) for name, values in columns.items()}


@pytest.mark.parametrize("group_rows", [7, parquet.LIST_GROUP_ROWS])
@pytest.mark.parametrize("num_rows", [0, 1, 20])
def test_a_list_comes_back_with_its_metadata(num_rows: int, group_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "LIST_GROUP_ROWS", group_rows)
    columns, metadata = parquet.read_list(parquet.write_list(some(num_rows), metadata={"view": 1}), name="x")
    assert metadata == {"view": 1}
    assert list(columns) == ["sha256", "num_bytes"]
    assert all(np.array_equal(columns[name], values) for name, values in some(num_rows).items())


def test_a_flipped_bit_anywhere_in_a_list_is_refused_or_changes_nothing() -> None:
    """Footers have no checksum in Parquet: names, types and metadata lie there."""
    written = parquet.write_list(some(), metadata={"view": 1})
    refused = 0
    for place in range(len(written)):
        damaged = bytearray(written)
        damaged[place] ^= 1 << place % 8
        try:
            columns, metadata = parquet.read_list(bytes(damaged), name="here/x")
            assert (plain(columns), metadata) == (plain(some()), {"view": 1}), place
        except UserError:
            refused += 1
    assert refused > len(written) / 2


def write_anyhow(table: pa.Table, columns: Columns | None = None) -> bytes:
    """A list whose own digest is right, if it is one of `columns`, but which `write_list` would not write."""
    digest = parquet._list_digest(columns or {}, {})
    return parquet.write(table, metadata={"sha256": digest}, row_group_rows=65_536)


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"num_bytes": pa.array([1, 2], pa.int32())}),
        pa.table({"num_bytes": pa.array([1.0])}),
        pa.table({"key": pa.array(["a"])}),
        pa.table({"sha256": pa.array(["0" * 64])}),
        pa.table({"sha256": pa.array([b"0" * 32], pa.binary())}),
        pa.table({"sha256": pa.array([b"0" * 16], pa.binary(16))}),
        pa.table([pa.array([1]), pa.array([1])], names=["n", "n"]),
    ],
)
def test_columns_of_other_types_or_twice_the_same_are_refused(table: pa.Table) -> None:
    with pytest.raises(UserError, match=r"here/x is refused: its columns are .*; move it away"):
        parquet.read_list(write_anyhow(table), name="here/x")


@pytest.mark.parametrize("value", [-1, -(2**63), parquet.MAX_LISTED + 1, 2**63 - 1])
def test_numbers_out_of_bounds_are_neither_written_nor_read(value: int) -> None:
    columns = {"n": np.array([0, 1, value])}
    told = rf"n is {value:,} in row 2; it must be from 0 to 68,719,476,735"
    with pytest.raises(UserError, match=told):
        parquet.write_list(columns, metadata={})
    with pytest.raises(UserError, match=f"here/x is refused: {told}"):
        parquet.read_list(write_anyhow(pa.table({"n": columns["n"]}), columns), name="here/x")


def test_a_missing_value_is_refused() -> None:
    table = pa.table({"n": pa.array([1, None], pa.int64())})
    with pytest.raises(UserError, match="here/x is refused: it lists objects of which something is missing"):
        parquet.read_list(write_anyhow(table), name="here/x")


def test_more_rows_than_the_bytes_can_list_are_refused_before_memory_is_taken() -> None:
    """Equal digests compress to almost nothing, but no two objects have one."""
    columns = {"sha256": np.zeros((1_000_000, 32), np.uint8), "n": np.zeros(1_000_000, np.int64)}
    written = parquet.write_list(columns, metadata={})
    assert len(written) < 100_000
    with pytest.raises(UserError, match=r"here/x is refused: .*(the most are|cannot list)"):
        parquet.read_list(written, name="here/x")


DIGESTS = st.integers(1, 3).flatmap(lambda rows: hnp.arrays(np.uint8, (rows, 32)))


@given(one=DIGESTS, other=DIGESTS, name=st.sampled_from(["sha256", "a_sha256"]))
def test_other_content_has_another_digest(one: np.ndarray, other: np.ndarray, name: str) -> None:
    is_same = name == "sha256" and np.array_equal(one, other)
    digests = parquet._list_digest({"sha256": one}, {}), parquet._list_digest({name: other}, {})
    assert (digests[0] == digests[1]) == is_same
    assert parquet._list_digest({"sha256": one}, {"view": 1}) != digests[0]


def test_the_digest_is_as_the_format_describes_it() -> None:
    """Written out once more, by hand: others must be able to check it."""
    columns = {"sha256": np.arange(64, dtype=np.uint8).reshape(2, 32), "n": np.array([1, 2])}
    described = b'[["n","int64",[2]],["sha256","uint8",[2,32]]]'
    content = described + (1).to_bytes(8, "little") + (2).to_bytes(8, "little") + bytes(range(64))
    whole = b'{"columns":"%s","metadata":{"view":1}}' % hashlib.sha256(content).hexdigest().encode()
    _, metadata = parquet.open_file(parquet.write_list(columns, metadata={"view": 1}), name="x")
    assert metadata == {"view": 1, "sha256": hashlib.sha256(whole).hexdigest()}


def test_the_same_list_as_another_version_of_arrow_writes_it_is_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, columns = Store(str(tmp_path)), {"number": np.arange(3)}
    monkeypatch.setattr(parquet, "ZSTD_LEVEL", 1 + parquet.ZSTD_LEVEL)
    monkeypatch.setattr(parquet, "LIST_GROUP_ROWS", 2)
    assert create_list(store, "list.parquet", columns, metadata={"view": 0})
    monkeypatch.undo()
    assert store.read("list.parquet", max_bytes=10_000) != parquet.write_list(columns, metadata={"view": 0})
    assert create_list(store, "list.parquet", columns, metadata={"view": 0})
    assert not create_list(store, "list.parquet", columns, metadata={"view": 1})
    assert not create_list(store, "list.parquet", {"number": np.arange(4)}, metadata={"view": 0})
    assert not create_list(store, "list.parquet", {"other": np.arange(3)}, metadata={"view": 0})
