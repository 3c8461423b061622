"""One unit: what the teacher is asked, and which answer goes into which row."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from teacher_cache.errors import UserError
from teacher_cache.format.row import Row
from teacher_cache.format.sequences import StoredSequence
from teacher_cache.format.spec import (
    CorpusIdentity,
    HiddenConfig,
    Identity,
    KeepConfig,
    MaskingConfig,
    SoftLabelsConfig,
    TeacherIdentity,
)
from teacher_cache.masking import mask_sequence
from teacher_cache.plan.asking import threads
from teacher_cache.teacher import LoadedTeacher, Teacher, load_teacher
from teacher_cache.units import ask_unit, mask_unit, vocabulary_of
from tests import families

FIRST_ID, VIEW = 40, 3
LENGTHS = (12, 3, 30, 7, 30, 5, 22, 3)


def identity(*, layers: tuple[int, ...] = (-1,), unmasked: float = 0.3) -> Identity:
    return Identity(
        objective="masked_lm",
        corpus=CorpusIdentity(
            files=(), text_field="text", sequence_length=32, packing="documents", tokenizer_sha256="0" * 64
        ),
        teacher=TeacherIdentity(sha256="0" * 64, dtype="float32"),
        masking=MaskingConfig(rate=0.3),
        keep=KeepConfig(unmasked=unmasked),
        soft_labels=SoftLabelsConfig(top_k=6),
        hidden=HiddenConfig(layers=layers, code="float32"),
        unit_sequences=8,
    )


def unit() -> list[StoredSequence]:
    """Sequences of mixed lengths, so that batches are padded and not in the order of the unit."""
    rng = np.random.default_rng(0)
    return [
        StoredSequence(
            sequence_id=FIRST_ID + place,
            document_id=place // 2,
            input_ids=np.array([2, *rng.integers(5, families.VOCAB_SIZE, length - 2), 3], dtype=np.int32),
        )
        for place, length in enumerate(LENGTHS)
    ]


def compute(loaded: LoadedTeacher, asked: Identity, batch_tokens: int = 64) -> list[Row]:
    return ask_unit(
        mask_unit(unit(), VIEW, identity=asked, vocabulary=vocabulary_of(loaded.tokenizer)),
        teacher=Teacher(loaded, torch.float32, "cpu"),
        pad_id=loaded.tokenizer.pad_token_id,
        identity=asked,
        batch_tokens=batch_tokens,
    )


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> LoadedTeacher:
    return load_teacher(str(families.save_pretrained(tmp_path_factory.mktemp("bert"))))


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_rows_are_what_the_model_says_of_each_masked_sequence_alone(family: str, tmp_path: Path) -> None:
    loaded = load_teacher(str(families.save_pretrained(tmp_path, family)))
    asked = identity(layers=(2, -1))
    rows = compute(loaded, asked)
    vocabulary = vocabulary_of(loaded.tokenizer)
    for sequence, row in zip(unit(), rows, strict=True):
        masked = mask_sequence(
            sequence.input_ids,
            sequence.sequence_id,
            VIEW,
            masking=asked.masking,
            keep=asked.keep,
            vocabulary=vocabulary,
        )
        assert (row.sequence_id, row.document_id) == (sequence.sequence_id, sequence.document_id)
        for name in ("input_ids", "label_positions", "label_ids", "kept_positions", "rates"):
            np.testing.assert_array_equal(getattr(row, name), getattr(masked, name))
        with torch.no_grad():
            output = loaded.model(
                input_ids=torch.from_numpy(masked.input_ids).long()[None],
                attention_mask=torch.ones(1, len(masked.input_ids), dtype=torch.long),
                output_hidden_states=True,
            )
        logits = output.logits[0].numpy()[row.kept_positions]
        best = np.sort(np.argsort(-logits, axis=1)[:, :6], axis=1)
        np.testing.assert_array_equal(row.topk_ids, best)
        np.testing.assert_allclose(row.topk_logits, np.take_along_axis(logits, best, 1), rtol=0, atol=1e-4)
        others = logits.astype(np.float64)
        np.put_along_axis(others, best, -np.inf, 1)
        for temperature, rest in row.rest_log_sum_exp.items():
            np.testing.assert_allclose(rest, np.logaddexp.reduce(others / temperature, axis=1), rtol=0, atol=1e-4)
        for layer in (2, -1):
            expected = output.hidden_states[layer][0].numpy()[row.kept_positions]
            np.testing.assert_allclose(row.hidden[layer], expected, rtol=0, atol=1e-5)
    assert sum(len(row.kept_positions) for row in rows) > 30, "the comparison must be of something"


def assert_equal_but_for_rounding(left: list[Row], right: list[Row]) -> None:
    for one, other in zip(left, right, strict=True):
        assert one.sequence_id == other.sequence_id
        for name in ("input_ids", "label_positions", "label_ids", "kept_positions", "rates", "topk_ids"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        np.testing.assert_allclose(one.topk_logits, other.topk_logits, rtol=0, atol=1e-4)
        np.testing.assert_allclose(one.hidden[-1], other.hidden[-1], rtol=0, atol=1e-5)


def test_the_size_of_micro_batches_changes_only_rounding(bert: LoadedTeacher) -> None:
    asked = identity()
    assert_equal_but_for_rounding(compute(bert, asked, batch_tokens=1), compute(bert, asked, batch_tokens=10_000))


def test_threads_of_a_cpu_ask_side_by_side_each_with_its_own_micro_batch(
    bert: LoadedTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = compute(bert, identity())
    both, seen = threading.Barrier(2, timeout=30), []
    encode = Teacher.encode

    def together(*arguments: Any) -> dict[int, torch.Tensor]:
        seen.append((torch.get_num_threads(), arguments[1].numel()))
        if len(seen) <= 2:
            both.wait()
        return encode(*arguments)

    monkeypatch.setattr(Teacher, "encode", together)
    with threads(2):
        assert_equal_but_for_rounding(compute(bert, identity()), expected)
        assert torch.get_num_threads() == 2
        assert fresh_thread(torch.get_num_threads) == 2, "threads that begin later have all of them again"
    assert {number for number, _ in seen} == {1}
    assert max(tokens for _, tokens in seen) <= 64 // 2


def fresh_thread(work: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def test_the_head_is_asked_in_chunks_that_change_nothing(bert: LoadedTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compute(bert, identity(unmasked=1), batch_tokens=10_000)
    monkeypatch.setattr("teacher_cache.units.HEAD_POSITIONS", 7)
    for left, right in zip(whole, compute(bert, identity(unmasked=1), batch_tokens=10_000), strict=True):
        np.testing.assert_array_equal(left.topk_ids, right.topk_ids)
        np.testing.assert_allclose(left.topk_logits, right.topk_logits, rtol=0, atol=1e-4)
        np.testing.assert_allclose(left.rest_log_sum_exp[2.0], right.rest_log_sum_exp[2.0], rtol=0, atol=1e-4)


def test_layers_are_named_as_hidden_states_are(bert: LoadedTeacher) -> None:
    layers = (0, -2, 4, -1)
    for row in compute(bert, identity(layers=layers), batch_tokens=1):
        with torch.no_grad():
            states = bert.model(
                input_ids=torch.from_numpy(row.input_ids).long()[None], output_hidden_states=True
            ).hidden_states
        assert tuple(row.hidden) == layers
        for layer in layers:
            expected = states[layer][0].numpy()[row.kept_positions]
            np.testing.assert_allclose(row.hidden[layer], expected, rtol=0, atol=1e-5)


def test_rows_have_the_types_that_are_promised(bert: LoadedTeacher) -> None:
    for row in compute(bert, identity()):
        kept = len(row.kept_positions)
        assert (row.topk_ids.dtype, row.topk_ids.shape) == (np.int32, (kept, 6))
        assert (row.topk_logits.dtype, row.topk_logits.shape) == (np.float32, (kept, 6))
        assert (row.hidden[-1].dtype, row.hidden[-1].shape) == (np.float32, (kept, 32))
        assert {rest.shape for rest in row.rest_log_sum_exp.values()} == {(kept,)}
        assert row.input_ids.dtype == row.label_ids.dtype == np.int32


def test_a_unit_that_keeps_no_position_has_empty_rows(bert: LoadedTeacher) -> None:
    rows = compute(bert, replace(identity(), keep=KeepConfig(masked=0, unmasked=1e-12)))
    assert [row.sequence_id for row in rows] == list(range(FIRST_ID, FIRST_ID + len(LENGTHS)))
    assert {row.topk_ids.shape for row in rows} == {(0, 6)}
    assert {row.hidden[-1].shape for row in rows} == {(0, 32)}


@pytest.mark.parametrize("name", ["bert.encoder.layer.3.output.dense.weight", "cls.predictions.bias"])
def test_an_answer_that_is_not_finite_is_refused(name: str, tmp_path: Path) -> None:
    model = families.make_model()
    with torch.no_grad():
        model.get_parameter(name).view(-1)[7] = torch.nan
    model.save_pretrained(tmp_path)
    families.make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"answer is not finite .* try teacher\.dtype: float32"):
        compute(load_teacher(str(tmp_path)), identity())


def test_a_stored_layer_that_is_not_finite_is_refused(bert: LoadedTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = Teacher.encode

    def spoilt(*arguments: Any) -> dict[int, torch.Tensor]:
        return {layer: state * (torch.nan if layer == 2 else 1) for layer, state in encode(*arguments).items()}

    monkeypatch.setattr(Teacher, "encode", spoilt)
    assert compute(bert, identity())
    with pytest.raises(UserError, match="answer is not finite"):
        compute(bert, identity(layers=(2, -1)))
