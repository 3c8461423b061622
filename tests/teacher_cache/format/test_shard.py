"""A unit's two objects, encoded and decoded."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacher_cache.errors import UserError
from teacher_cache.format.row import Row
from teacher_cache.format.shard import BLOCK_SEQUENCES, HIDDEN_DTYPES, ShardReader, encode
from teacher_cache.format.spec import Identity
from tests.teacher_cache.format.samples import PLAIN, identity

HIDDEN_SIZE = 3
KEEP = {"masked": 1.0, "unmasked": 0.25}


def make_row(random: np.random.Generator, sequence_id: int, spec: Identity, length: int, share: float) -> Row:
    """A row of random content, of which about a share of positions is masked, and about a share kept."""
    labels = np.flatnonzero(random.random(length) < share)
    kept = np.flatnonzero(random.random(length) < share)
    top_k = spec.soft_labels.top_k
    return Row(
        sequence_id=sequence_id,
        document_id=int(random.integers(2**40)),
        input_ids=random.integers(0, 2**31, length, dtype=np.int32),
        label_positions=labels,
        label_ids=random.integers(0, 2**31, len(labels), dtype=np.int32),
        kept_positions=kept,
        rates=np.where(np.isin(kept, labels), spec.keep.masked, spec.keep.unmasked).astype(np.float32),
        topk_ids=np.sort(random.integers(0, 2**31, (len(kept), top_k), dtype=np.int32)),
        topk_logits=random.normal(size=(len(kept), top_k)).astype(np.float32),
        rest_log_sum_exp={
            temperature: random.normal(size=len(kept)).astype(np.float32)
            for temperature in spec.soft_labels.temperatures
        },
        hidden={
            layer: random.normal(size=(len(kept), HIDDEN_SIZE)).astype(np.float32)
            for layer in spec.hidden.stored_layers
        },
    )


def make_rows(seed: int, spec: Identity, lengths: list[int], share: float, first: int = 0) -> list[Row]:
    random = np.random.default_rng(seed)
    return [make_row(random, first + place, spec, length, share) for place, length in enumerate(lengths)]


def put(folder: Path, rows: list[Row], spec: Identity, **metadata: Any) -> tuple[Path, Path | None]:
    """A shard's files."""
    labels, hidden = encode(rows, spec, PLAIN, metadata={"fingerprint": spec.fingerprint} | metadata)
    paths = folder / "labels", folder / "hidden"
    paths[0].write_bytes(labels)
    if hidden is None:
        return paths[0], None
    paths[1].write_bytes(hidden)
    return paths


def reader(folder: Path, rows: list[Row], spec: Identity) -> ShardReader:
    return ShardReader(*put(folder, rows, spec), spec, PLAIN, layers=spec.hidden.stored_layers)


def assert_same(found: Row, expected: Row, hidden_dtype: np.dtype[Any]) -> None:
    for field in dataclasses.fields(Row):
        left, right = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(right, dict):
            assert list(left) == list(right), field.name
            for name, values in right.items():
                wanted = values.astype(hidden_dtype) if field.name == "hidden" else values
                np.testing.assert_array_equal(left[name], wanted, strict=True)
        elif isinstance(right, np.ndarray):
            np.testing.assert_array_equal(left, right, strict=True)
        else:
            assert left == right, field.name


@given(
    seed=st.integers(0, 2**32),
    lengths=st.lists(st.integers(2, 12), min_size=1, max_size=6),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    layers=st.lists(st.integers(-2, 4), min_size=1, max_size=3, unique=True),
    code=st.sampled_from(["none", "float16", "float32"]),
    top_k=st.integers(1, 4),
    temperatures=st.lists(st.sampled_from([0.5, 1.0, 1 / 3, 4.0]), unique=True, max_size=3),
)
def test_rows_come_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    lengths: list[int],
    share: float,
    layers: list[int],
    code: str,
    top_k: int,
    temperatures: list[float],
) -> None:
    spec = identity(
        hidden={"layers": tuple(layers), "code": code},
        soft_labels={"top_k": top_k, "temperatures": tuple(temperatures), "code": "float32"},
        keep=KEEP,
    )
    rows = make_rows(seed, spec, lengths, share)
    found = list(reader(tmp_path_factory.mktemp("shard"), rows, spec).rows())
    assert len(found) == len(rows)
    for left, right in zip(found, rows, strict=True):
        assert_same(left, right, HIDDEN_DTYPES.get(code, np.dtype("f4")))


def test_blocks_are_decoded_by_themselves_in_lock_step(tmp_path: Path) -> None:
    spec = identity()
    rows = make_rows(0, spec, [4] * (2 * BLOCK_SEQUENCES + 3), 0.5)
    shard = reader(tmp_path, rows, spec)
    assert shard.num_blocks == 3
    last = shard.block(2)
    assert [row.sequence_id for row in last] == [2 * BLOCK_SEQUENCES + place for place in range(3)]
    for left, right in zip(last, rows[-3:], strict=True):
        assert_same(left, right, np.dtype("f4"))


def test_a_block_without_any_kept_position_keeps_the_hidden_size(tmp_path: Path) -> None:
    spec = identity()
    rows = make_rows(0, spec, [6] * BLOCK_SEQUENCES, 1.0) + make_rows(0, spec, [6], 0.0, first=BLOCK_SEQUENCES)
    (last,) = reader(tmp_path, rows, spec).block(1)
    assert last.hidden[-1].shape == (0, HIDDEN_SIZE)
    assert last.topk_ids.shape == (0, 2)


def test_equal_rows_give_equal_bytes() -> None:
    spec = identity()
    first, again, other = (encode(make_rows(seed, spec, [5, 6], 0.5), spec, PLAIN, metadata={}) for seed in (1, 1, 2))
    assert first == again != other


def test_metadata_comes_back(tmp_path: Path) -> None:
    spec = identity()
    labels, hidden = put(tmp_path, make_rows(0, spec, [5], 0.5), spec, view=3, unit=4, device="cpu")
    metadata = ShardReader(labels, hidden, spec, PLAIN).metadata
    assert {name: metadata[name] for name in ("fingerprint", "view", "unit", "device")} == {
        "fingerprint": spec.fingerprint,
        "view": 3,
        "unit": 4,
        "device": "cpu",
    }


def test_only_the_layers_asked_for_are_read(tmp_path: Path) -> None:
    spec = identity(hidden={"layers": (0, 2, -1), "code": "float32"})
    rows = make_rows(0, spec, [5], 1.0)
    (row,) = ShardReader(*put(tmp_path, rows, spec), spec, PLAIN, layers=(2,)).rows()
    assert list(row.hidden) == [2]
    np.testing.assert_array_equal(row.hidden[2], rows[0].hidden[2])


def test_without_layers_the_hidden_object_need_not_exist(tmp_path: Path) -> None:
    spec = identity()
    labels, _ = put(tmp_path, make_rows(0, spec, [5], 1.0), spec)
    for hidden, layers in ((None, (-1,)), (tmp_path / "missing", ())):
        (row,) = ShardReader(labels, hidden, spec, PLAIN, layers=layers).rows()
        assert row.hidden == {}
        assert len(row.topk_ids) == 5


def test_states_that_float16_cannot_hold_are_refused() -> None:
    spec = identity(hidden={"layers": (-1,), "code": "float16"})
    (row,) = make_rows(0, spec, [5], 1.0)
    row.hidden[-1][0, 0] = 70_000
    with pytest.raises(UserError, match=r"are not finite in float16; try hidden.code: float32"):
        encode([row], spec, PLAIN, metadata={})


def test_a_shard_of_another_cache_is_refused(tmp_path: Path) -> None:
    other = identity(unit_sequences=99)
    labels, hidden = put(tmp_path, make_rows(0, other, [5], 0.5), other)
    with pytest.raises(UserError, match=f"labels belongs to another cache: fingerprint {other.fingerprint}"):
        ShardReader(labels, hidden, identity(), PLAIN, layers=(-1,))


def test_labels_and_hidden_states_of_different_units_are_refused(tmp_path: Path) -> None:
    spec = identity()
    (tmp_path / "other").mkdir()
    labels, _ = put(tmp_path, make_rows(0, spec, [5], 1.0), spec)
    _, hidden = put(tmp_path / "other", make_rows(0, spec, [6], 1.0), spec)
    with pytest.raises(UserError, match="disagree about the kept positions"):
        list(ShardReader(labels, hidden, spec, PLAIN, layers=(-1,)).rows())


def test_any_parquet_reader_lists_the_labels(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    spec = identity()
    rows = make_rows(0, spec, [5, 7], 0.5)
    labels, _ = put(tmp_path, rows, spec)
    table = pq.read_table(labels)
    assert table["input_ids"].to_pylist() == [row.input_ids.tolist() for row in rows]
    assert table["kept_positions"].to_pylist() == [row.kept_positions.tolist() for row in rows]


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "labels").write_bytes(b"no Parquet")
    with pytest.raises(UserError, match="labels is damaged"):
        ShardReader(tmp_path / "labels", None, identity(), PLAIN)
