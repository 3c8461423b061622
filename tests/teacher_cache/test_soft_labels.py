"""Soft labels: what is kept of a row of logits, and the two ways to use it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from teacher_cache.errors import UserError
from teacher_cache.targets.heads import OutputHead, head_logits, head_of
from teacher_cache.targets.soft_labels import (
    SoftLabels,
    bucket_log_probabilities,
    keep_top,
    replay_log_probabilities,
)
from tests import families

TEMPERATURES = (1.0, 2.0, 4.0)
TOP_K = 8

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # machines are shared
logits_arrays = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=20),
    elements=st.floats(-80, 80, width=32),
)
temperatures_lists = st.lists(st.floats(0.5, 8), min_size=1, max_size=3, unique=True)


@pytest.fixture(scope="module", params=families.FAMILIES)
def answer(request: pytest.FixtureRequest) -> tuple[torch.Tensor, OutputHead]:
    """Last hidden states `[23, d]` of a real model's input, and the head that they feed."""
    model = families.make_model(request.param)
    input_ids, attention_mask = families.make_batch(request.param)
    with torch.inference_mode():
        states = model.base_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        head = head_of(model)
    return states[attention_mask.bool()], head


def exact(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    return (logits.double() / temperature).softmax(-1)


@torch.inference_mode()
def kept(hidden: torch.Tensor, head: OutputHead, top_k: int = TOP_K) -> tuple[torch.Tensor, SoftLabels]:
    logits = head_logits(head, hidden)
    return logits, keep_top(logits, top_k=top_k, temperatures=TEMPERATURES)


@torch.inference_mode()
def replayed(hidden: torch.Tensor, head: OutputHead, soft_labels: SoftLabels, temperature: float) -> torch.Tensor:
    return replay_log_probabilities(hidden, head, soft_labels, temperature).double().exp()


class TestKeepTop:
    @unhurried
    @given(logits_arrays, st.data())
    def test_the_largest_are_kept_as_an_ascending_set(self, logits: np.ndarray, data: st.DataObject) -> None:
        top_k = data.draw(st.integers(1, logits.shape[1]))
        soft_labels = keep_top(torch.from_numpy(logits), top_k=top_k, temperatures=TEMPERATURES)
        ids = soft_labels.topk_ids.numpy()
        assert ids.shape == (len(logits), top_k)
        assert (np.diff(ids, axis=1) > 0).all()
        np.testing.assert_array_equal(soft_labels.topk_logits.numpy(), np.take_along_axis(logits, ids, axis=1))
        largest = np.sort(logits, axis=1)[:, -top_k:]  # which of equal logits are kept does not matter
        np.testing.assert_array_equal(np.sort(soft_labels.topk_logits.numpy(), axis=1), largest)

    @unhurried
    @given(logits_arrays, temperatures_lists, st.data())
    def test_the_rest_is_the_log_sum_exp_of_all_others(
        self, logits: np.ndarray, temperatures: list[float], data: st.DataObject
    ) -> None:
        top_k = data.draw(st.integers(1, logits.shape[1] - 1))
        soft_labels = keep_top(torch.from_numpy(logits), top_k=top_k, temperatures=temperatures)
        others = np.sort(logits.astype(np.float64), axis=1)[:, :-top_k]
        assert list(soft_labels.rest_log_sum_exp) == temperatures
        for temperature, rest in soft_labels.rest_log_sum_exp.items():
            expected = np.logaddexp.reduce(others / temperature, axis=1)
            np.testing.assert_allclose(rest.numpy(), expected, rtol=1e-6, atol=1e-6)

    @unhurried
    @given(logits_arrays)
    def test_all_tokens_leave_no_rest_and_give_exact_rows(self, logits: np.ndarray) -> None:
        rows = torch.from_numpy(logits)
        soft_labels = keep_top(rows, top_k=logits.shape[1], temperatures=TEMPERATURES)
        assert soft_labels.rest_log_sum_exp == {}
        assert torch.equal(soft_labels.topk_logits, rows)
        for temperature in (*TEMPERATURES, 3.0):  # any: nothing is missing
            found = bucket_log_probabilities(soft_labels, temperature).double().exp()
            torch.testing.assert_close(found, exact(rows, temperature), rtol=0, atol=1e-6)

    def test_low_precision_rows_are_kept_in_float32(self) -> None:
        logits = torch.randn(3, 30, generator=torch.Generator().manual_seed(0)).bfloat16()
        soft_labels = keep_top(logits, top_k=4, temperatures=(1.0,))
        assert soft_labels.topk_logits.dtype == soft_labels.rest_log_sum_exp[1.0].dtype == torch.float32

    def test_parts_are_joined_in_order(self) -> None:
        logits = torch.randn(7, 30, generator=torch.Generator().manual_seed(0))
        whole = keep_top(logits, top_k=4, temperatures=TEMPERATURES)
        parts = [keep_top(chunk, top_k=4, temperatures=TEMPERATURES) for chunk in logits.split(3)]
        for joined in (SoftLabels.concatenate(parts), SoftLabels.concatenate([whole[:3], whole[3:]])):
            assert torch.equal(joined.topk_ids, whole.topk_ids)
            assert torch.equal(joined.topk_logits, whole.topk_logits)
            for temperature in TEMPERATURES:
                assert torch.equal(joined.rest_log_sum_exp[temperature], whole.rest_log_sum_exp[temperature])


class TestBucket:
    @unhurried
    @given(logits_arrays, st.sampled_from(TEMPERATURES), st.data())
    def test_it_is_the_teachers_row_with_the_rest_summed(
        self, logits: np.ndarray, temperature: float, data: st.DataObject
    ) -> None:
        top_k = data.draw(st.integers(1, logits.shape[1] - 1))
        rows = torch.from_numpy(logits)
        soft_labels = keep_top(rows, top_k=top_k, temperatures=TEMPERATURES)
        found = bucket_log_probabilities(soft_labels, temperature)
        assert found.isfinite().all()
        expected = exact(rows, temperature).gather(-1, soft_labels.topk_ids)
        torch.testing.assert_close(found.double().exp()[:, :-1], expected, rtol=0, atol=3e-6)
        torch.testing.assert_close(found.double().exp()[:, -1], 1 - expected.sum(-1), rtol=0, atol=3e-6)
        torch.testing.assert_close(found.double().exp().sum(-1), torch.ones(len(rows)).double(), rtol=0, atol=3e-6)

    def test_a_temperature_that_is_not_stored_is_refused_with_those_that_are(self) -> None:
        soft_labels = keep_top(torch.zeros(1, 30), top_k=4, temperatures=(1.0, 2.5))
        with pytest.raises(UserError, match=r"stores \(1, 2\.5\), not 2; use one of these, or soft_labels: replay"):
            bucket_log_probabilities(soft_labels, 2.0)


class TestReplay:
    @pytest.mark.parametrize("temperature", [*TEMPERATURES, 0.7, 3.0])
    def test_exact_states_give_the_teachers_rows(
        self, answer: tuple[torch.Tensor, OutputHead], temperature: float
    ) -> None:
        hidden, head = answer
        logits, soft_labels = kept(hidden, head)
        found = replayed(hidden, head, soft_labels, temperature)
        torch.testing.assert_close(found, exact(logits, temperature), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("temperature", [*TEMPERATURES, 3.0])
    def test_half_precision_states_give_nearly_the_teachers_rows(
        self, answer: tuple[torch.Tensor, OutputHead], temperature: float
    ) -> None:
        hidden, head = answer
        logits, soft_labels = kept(hidden, head)
        found = replayed(hidden.half().float(), head, soft_labels, temperature)
        torch.testing.assert_close(found, exact(logits, temperature), rtol=0, atol=1e-3)

    @pytest.mark.parametrize("temperature", TEMPERATURES)
    def test_wrong_states_spoil_only_how_the_rest_is_shared_out(
        self, answer: tuple[torch.Tensor, OutputHead], temperature: float
    ) -> None:
        hidden, head = answer
        logits, soft_labels = kept(hidden, head)
        found = replayed(hidden.flip(0), head, soft_labels, temperature)
        expected = exact(logits, temperature)
        for rows in (found, expected):
            torch.testing.assert_close(rows.sum(-1), torch.ones(len(rows)).double(), rtol=0, atol=1e-5)
        stored = soft_labels.topk_ids
        torch.testing.assert_close(found.gather(-1, stored), expected.gather(-1, stored), rtol=0, atol=2e-6)
        assert (found - expected).abs().max() > 1e-3, "other states must give another tail"

    def test_stored_logits_keep_their_ratios_at_any_temperature(self, answer: tuple[torch.Tensor, OutputHead]) -> None:
        hidden, head = answer
        _, soft_labels = kept(hidden, head)
        with torch.inference_mode():
            found = replay_log_probabilities(hidden.flip(0), head, soft_labels, 3.0).gather(-1, soft_labels.topk_ids)
        expected = soft_labels.topk_logits / 3.0
        torch.testing.assert_close(found - found[:, :1], expected - expected[:, :1], rtol=0, atol=1e-5)

    def test_all_tokens_need_no_states(self, answer: tuple[torch.Tensor, OutputHead]) -> None:
        hidden, head = answer
        logits, soft_labels = kept(hidden, head, top_k=families.VOCAB_SIZE)
        found = replayed(torch.full_like(hidden, torch.nan), head, soft_labels, 2.0)
        torch.testing.assert_close(found, exact(logits, 2.0), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("temperature", [1.0, 2.0, 0.7])
    def test_extreme_logits_stay_finite(self, temperature: float) -> None:
        model = families.make_model()
        head, hidden = head_of(model), torch.randn(9, 32, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            scale = 80 / head_logits(replace(head, decoder_bias=head.decoder_bias * 0), hidden).abs().max()
            loud = replace(head, decoder_weight=head.decoder_weight * scale, decoder_bias=head.decoder_bias * 0)
        logits, soft_labels = kept(hidden, loud, top_k=2)
        assert logits.abs().max() == pytest.approx(80, rel=1e-4)
        with torch.inference_mode():
            assert replay_log_probabilities(hidden, loud, soft_labels, temperature).isfinite().all()
        found = replayed(hidden, loud, soft_labels, temperature)
        torch.testing.assert_close(found, exact(logits, temperature), rtol=0, atol=1e-5)
