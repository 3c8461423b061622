"""A unit's objects where targets are packed and transform-coded."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from teacher_cache.errors import UserError
from teacher_cache.format.coder import Coder
from teacher_cache.format.row import Row
from teacher_cache.format.shard import BLOCK_SEQUENCES, ShardReader, encode
from teacher_cache.format.spec import Identity
from teacher_cache.targets.soft_labels import SoftLabels
from tests.teacher_cache.format.coded import HIDDEN_SIZE, SHA256, VOCABULARY, coded_identity, make_coder, make_rows
from tests.teacher_cache.format.samples import PLAIN

SPEC = coded_identity()
LAYERS = (0, 2, -1)


@pytest.fixture(scope="module")
def coder() -> Coder:
    return make_coder(SPEC)


def put(folder: Path, rows: list[Row], coder: Coder, spec: Identity = SPEC) -> tuple[Path, Path | None]:
    """A shard's files."""
    labels, hidden = encode(rows, spec, coder, metadata={"fingerprint": spec.fingerprint})
    (folder / "labels").write_bytes(labels)
    (folder / "hidden").write_bytes(hidden or b"")
    return folder / "labels", folder / "hidden"


def reader(folder: Path, rows: list[Row], coder: Coder, spec: Identity = SPEC, **options: Any) -> ShardReader:
    options = {"layers": spec.hidden.stored_layers} | options
    return ShardReader(*put(folder, rows, coder, spec), spec, coder, **options)


def assert_near(found: Row, expected: Row) -> None:
    for name in ("sequence_id", "document_id", "input_ids", "label_positions", "label_ids", "kept_positions", "rates"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_array_equal(found.topk_ids, expected.topk_ids, strict=True)
    highest = expected.topk_logits.max(axis=1, initial=-np.inf)
    np.testing.assert_allclose(found.topk_logits, expected.topk_logits - highest[:, None], rtol=0, atol=0.03126)
    assert found.rest_log_sum_exp.keys() == expected.rest_log_sum_exp.keys()
    for temperature, rest in found.rest_log_sum_exp.items():
        assert (rest.dtype, rest.shape) == (np.float32, highest.shape)
        np.testing.assert_allclose(
            rest, expected.rest_log_sum_exp[temperature] - highest / temperature, rtol=0, atol=0.0079
        )
    assert list(found.hidden) == list(expected.hidden)
    for layer, states in found.hidden.items():
        assert states.shape == expected.hidden[layer].shape


def cosine(left: list[Row], right: list[Row], layer: int) -> float:
    """Mean cosine of all their states."""
    states = [torch.from_numpy(np.concatenate([row.hidden[layer] for row in rows])) for rows in (left, right)]
    return float(torch.cosine_similarity(*states, dim=-1).mean())


def test_rows_of_several_blocks_come_back_near_what_they_were(tmp_path: Path, coder: Coder) -> None:
    rows = make_rows(1, SPEC, [4, 9, 2] * BLOCK_SEQUENCES, 0.4)[: 2 * BLOCK_SEQUENCES + 3]
    shard = reader(tmp_path, rows, coder)
    found = list(shard.rows())
    assert (shard.num_blocks, len(found)) == (3, len(rows))
    for left, right in zip(found, rows, strict=True):
        assert_near(left, right)
    assert {states.dtype for row in found for states in row.hidden.values()} == {np.dtype("f4")}
    assert all(cosine(found, rows, layer) > 0.98 for layer in LAYERS)
    assert [row.sequence_id for row in shard.block(2)] == [2 * BLOCK_SEQUENCES + place for place in range(3)]
    for left, right in zip(shard.block(2), found[-3:], strict=True):
        np.testing.assert_array_equal(left.topk_logits, right.topk_logits)
        np.testing.assert_array_equal(left.hidden[2], right.hidden[2])


@pytest.mark.parametrize(("lengths", "share"), [([1], 1.0), ([12, 1, 2], 0.1), ([3, 4], 0.0), ([7] * 129, 0.0)])
def test_few_positions_or_none_come_back(tmp_path: Path, coder: Coder, lengths: list[int], share: float) -> None:
    rows = make_rows(2, SPEC, lengths, share)
    for left, right in zip(reader(tmp_path, rows, coder).rows(), rows, strict=True):
        assert_near(left, right)


def test_a_block_without_any_kept_position_is_empty_beside_others(tmp_path: Path, coder: Coder) -> None:
    nothing = make_rows(0, SPEC, [6] * BLOCK_SEQUENCES, 0.0)
    rows = [*nothing, *make_rows(0, SPEC, [6], 1.0, first=BLOCK_SEQUENCES)]
    shard = reader(tmp_path, rows, coder)
    assert {row.topk_ids.shape for row in shard.block(0)} == {(0, 4)}
    assert {row.hidden[2].shape for row in shard.block(0)} == {(0, HIDDEN_SIZE)}
    assert_near(shard.block(1)[0], rows[-1])


@pytest.mark.parametrize(
    ("labels", "hidden"), [("packed", "none"), ("packed", "float16"), ("packed", "transform"), ("float32", "transform")]
)
def test_either_code_goes_without_the_other(tmp_path: Path, labels: str, hidden: str) -> None:
    spec = coded_identity(
        soft_labels={"top_k": 3, "temperatures": (4.0,), "code": labels}, hidden={"layers": (2,), "code": hidden}
    )
    dtypes = {"none": {}, "float16": {2: np.dtype("f2")}, "transform": {2: np.dtype("f4")}}[hidden]
    rows = make_rows(3, spec, [8, 9], 0.6)
    for left, right in zip(reader(tmp_path, rows, make_coder(spec), spec).rows(), rows, strict=True):
        if labels == "packed":
            assert_near(left, right)
        else:
            np.testing.assert_array_equal(left.topk_logits, right.topk_logits)
            np.testing.assert_array_equal(left.rest_log_sum_exp[4.0], right.rest_log_sum_exp[4.0])
        assert {layer: states.dtype for layer, states in left.hidden.items()} == dtypes


def test_a_whole_vocabulary_has_no_rest(tmp_path: Path) -> None:
    spec = coded_identity(top_k=VOCABULARY, hidden={"layers": (-1,), "code": "none"})
    rows = make_rows(4, spec, [5, 6], 0.7)
    for left, right in zip(reader(tmp_path, rows, make_coder(spec), spec).rows(), rows, strict=True):
        assert left.rest_log_sum_exp == {}
        assert_near(left, right)


def test_only_the_layers_asked_for_are_decoded(tmp_path: Path, coder: Coder) -> None:
    rows = make_rows(5, SPEC, [9, 9], 0.5)
    whole = list(reader(tmp_path, rows, coder).rows())
    for layers in ((2,), (-1, 0), ()):
        for left, right in zip(reader(tmp_path, rows, coder, layers=layers).rows(), whole, strict=True):
            assert tuple(left.hidden) == layers
            for layer in layers:
                np.testing.assert_array_equal(left.hidden[layer], right.hidden[layer])


@pytest.mark.parametrize("layer", LAYERS)
def test_levels_become_the_same_hidden_states(tmp_path: Path, coder: Coder, layer: int) -> None:
    rows = make_rows(6, SPEC, [9] * (BLOCK_SEQUENCES + 5), 0.3)
    whole = list(reader(tmp_path, rows, coder).rows())
    coded = list(reader(tmp_path, rows, coder, as_levels=True, source=7).rows())
    assert {row.source for row in coded} == {7}
    assert all(row.hidden == {} and list(row.levels) == list(LAYERS) for row in coded)
    levels = np.concatenate([row.levels[layer] for row in coded])
    assert levels.dtype == np.int16
    side = coder.side_information(coded, SoftLabels.of_rows(coded))
    decoded = coder.decode_hidden(layer, torch.from_numpy(levels), side).numpy()
    np.testing.assert_allclose(decoded, np.concatenate([row.hidden[layer] for row in whole]), rtol=0, atol=1e-4)


def test_equal_rows_give_equal_bytes(coder: Coder) -> None:
    first, again, other = (encode(make_rows(seed, SPEC, [5, 6], 0.5), SPEC, coder, metadata={}) for seed in (1, 1, 2))
    assert first == again
    assert all(left != right for left, right in zip(first, other, strict=True))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_state_that_is_not_finite_is_refused(coder: Coder, layer: int, value: float) -> None:
    rows = make_rows(7, SPEC, [5, 6], 1.0)
    rows[1].hidden[layer][2, 3] = value
    with pytest.raises(UserError, match=r"hidden states are not finite .* try teacher\.dtype: float32"):
        encode(rows, SPEC, coder, metadata={})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_soft_label_that_is_not_finite_is_refused(coder: Coder, value: float) -> None:
    for spoilt in (lambda row: row.topk_logits[1], lambda row: row.rest_log_sum_exp[2.0]):
        rows = make_rows(7, SPEC, [5, 6], 1.0)
        spoilt(rows[1])[2] = value
        with pytest.raises(UserError, match=r"answer is not finite .* try teacher\.dtype: float32"):
            encode(rows, SPEC, coder, metadata={})


def test_a_state_far_from_the_codebooks_is_refused(coder: Coder) -> None:
    rows = make_rows(8, SPEC, [5], 1.0)
    rows[0].hidden[0][1] *= 1e9
    with pytest.raises(UserError, match=r"far outside those .* use hidden\.code: float16"):
        encode(rows, SPEC, coder, metadata={})


def test_files_name_their_codebook_and_one_of_another_is_refused(tmp_path: Path, coder: Coder) -> None:
    labels, hidden = put(tmp_path, make_rows(9, SPEC, [5], 1.0), coder)
    assert ShardReader(labels, hidden, SPEC, coder).metadata["codebook"] == SHA256
    other = replace(coder, codebook=replace(coder.codebook, sha256="d" * 64))
    for wrong in (other, PLAIN):
        with pytest.raises(UserError, match=rf"labels does not go with .* another codebook: {SHA256}"):
            ShardReader(labels, hidden, SPEC, wrong, layers=LAYERS)


def test_packed_bytes_stand_once_a_block(tmp_path: Path, coder: Coder) -> None:
    """As the format's document says, for who reads without this package."""
    rows = make_rows(10, SPEC, [3] * (BLOCK_SEQUENCES + 2), 0.5)
    labels, hidden = put(tmp_path, rows, coder)
    table = pq.read_table(labels)
    assert set(table.column_names).isdisjoint({"topk_ids", "topk_logits", "rest"})
    held = [place for place, value in enumerate(table["soft_labels"]) if value.as_py() is not None]
    assert held == [0, BLOCK_SEQUENCES]
    states = pq.read_table(hidden)
    assert states.column_names == ["num_positions", "hidden_0", "hidden_2", "hidden_-1"]
    kept = [len(row.kept_positions) for row in rows]
    assert states["num_positions"].to_pylist() == [sum(kept[:BLOCK_SEQUENCES]), sum(kept[BLOCK_SEQUENCES:])]
