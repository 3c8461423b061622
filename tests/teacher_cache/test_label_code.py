"""The packed code of soft labels: ids exactly, values within a step, and nothing but refusals of what is damaged."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from teacher_cache.errors import UserError
from teacher_cache.targets.label_code import LOGIT_STEP, REST_STEP, LabelCode
from teacher_cache.targets.soft_labels import SoftLabels, bucket_log_probabilities, keep_top

TEMPERATURES = (1.0, 2.0, 4.0)

unhurried = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])


def make_labels(
    num_positions: int,
    top_k: int,
    vocab_size: int,
    *,
    seed: int = 0,
    scale: float = 3.0,
    temperatures: tuple[float, ...] = TEMPERATURES,
) -> SoftLabels:
    """Of rows of a few kinds, each with likely tokens of its own, as a teacher's are."""
    random = np.random.default_rng(seed)
    kinds = random.normal(size=(4, vocab_size)) - np.log1p(np.arange(vocab_size)) / 2
    rows = kinds[random.integers(4, size=num_positions)] + random.normal(size=(num_positions, vocab_size)) / 2
    logits = torch.from_numpy((rows * scale + random.normal(size=(num_positions, 1)) * 5).astype(np.float32))
    return keep_top(logits, top_k=top_k, temperatures=temperatures)


def check_close(found: SoftLabels, labels: SoftLabels) -> None:
    """Whether a round trip gave the same sets, and values that are off by half a step at most."""
    assert found.topk_ids.dtype == torch.int64
    assert found.topk_logits.dtype == torch.float32
    assert torch.equal(found.topk_ids, labels.topk_ids)
    assert list(found.rest_log_sum_exp) == list(labels.rest_log_sum_exp)
    highest = labels.topk_logits.double().amax(dim=1)
    expected = labels.topk_logits.double() - highest[:, None]
    torch.testing.assert_close(found.topk_logits.double(), expected, rtol=1e-6, atol=LOGIT_STEP / 2 + 1e-4)
    assert (found.topk_logits.amax(dim=1) == 0).all()
    for temperature, rest in found.rest_log_sum_exp.items():
        assert rest.dtype == torch.float32
        expected = labels.rest_log_sum_exp[temperature].double() - highest / temperature
        torch.testing.assert_close(rest.double(), expected, rtol=1e-6, atol=REST_STEP / 2 + 1e-4)


def check_same(found: SoftLabels, expected: SoftLabels) -> None:
    assert torch.equal(found.topk_ids, expected.topk_ids)
    assert torch.equal(found.topk_logits, expected.topk_logits)
    for temperature, rest in expected.rest_log_sum_exp.items():
        assert torch.equal(found.rest_log_sum_exp[temperature], rest)


def check_sound(labels: SoftLabels, num_positions: int, vocab_size: int) -> None:
    """Whether these are soft labels, if perhaps not those that were meant."""
    assert len(labels) == num_positions
    assert (labels.topk_ids >= 0).all()
    assert (labels.topk_ids < vocab_size).all()
    assert (labels.topk_ids.diff(dim=1) > 0).all()


@pytest.fixture(scope="module")
def sample() -> SoftLabels:
    return make_labels(600, 8, 500)


@pytest.fixture(scope="module")
def code(sample: SoftLabels) -> LabelCode:
    return LabelCode.fit(sample, vocab_size=500)


class TestRoundTrip:
    @unhurried
    @given(st.data())
    def test_any_shape(self, data: st.DataObject) -> None:
        vocab_size = data.draw(st.integers(2, 40))
        top_k = data.draw(st.integers(1, vocab_size))
        temperatures = tuple(data.draw(st.lists(st.floats(0.5, 8), max_size=3, unique=True)))
        sample_size, num_positions = data.draw(st.integers(1, 50)), data.draw(st.integers(1, 50))
        scale = data.draw(st.sampled_from([0.0, 1e-3, 1.0, 30.0]))
        seed = data.draw(st.integers(0, 1000))
        sample = make_labels(sample_size, top_k, vocab_size, seed=seed, temperatures=temperatures)
        labels = make_labels(num_positions, top_k, vocab_size, seed=seed + 1, scale=scale, temperatures=temperatures)
        code = LabelCode.fit(sample, vocab_size=vocab_size)
        check_close(code.decode(code.encode(labels), num_positions), labels)

    @pytest.mark.parametrize("vocab_size", [65_536, 65_537, 70_001])
    def test_large_vocabularies(self, vocab_size: int) -> None:
        labels = make_labels(12, 5, vocab_size)
        code = LabelCode.fit(labels, vocab_size=vocab_size)
        other = make_labels(9, 5, vocab_size, seed=1)
        last = SoftLabels(
            topk_ids=vocab_size - 5 + torch.arange(5).expand(9, 5),
            topk_logits=other.topk_logits,
            rest_log_sum_exp=other.rest_log_sum_exp,
        )
        for unseen in (other, last):
            check_close(code.decode(code.encode(unseen), 9), unseen)

    @pytest.mark.parametrize("num_positions", [0, 1, 2, 3, 11, 12, 13, 97, 500])
    def test_any_number_of_positions(self, code: LabelCode, num_positions: int) -> None:
        labels = make_labels(num_positions, 8, 500, seed=5)
        check_close(code.decode(code.encode(labels), num_positions), labels)

    def test_a_sample_of_one_position_codes_all_others(self) -> None:
        code = LabelCode.fit(make_labels(1, 8, 500), vocab_size=500)
        labels = make_labels(50, 8, 500, seed=5)
        check_close(code.decode(code.encode(labels), 50), labels)

    def test_equal_logits_and_ties(self, code: LabelCode) -> None:
        labels = make_labels(20, 8, 500, scale=0.0)
        assert (labels.topk_logits == labels.topk_logits[:, :1]).all()
        check_close(code.decode(code.encode(labels), 20), labels)
        tied = make_labels(20, 8, 500).topk_logits.round()
        labels = SoftLabels(topk_ids=labels.topk_ids, topk_logits=tied, rest_log_sum_exp=labels.rest_log_sum_exp)
        check_close(code.decode(code.encode(labels), 20), labels)

    @pytest.mark.parametrize("far", [1e2, 1e4])
    def test_huge_ranges(self, code: LabelCode, far: float) -> None:
        labels = make_labels(20, 8, 500)
        labels.topk_logits[:, ::3] -= far
        labels.rest_log_sum_exp[2.0] -= far
        check_close(code.decode(code.encode(labels), 20), labels)
        code = LabelCode.fit(labels, vocab_size=500)
        check_close(code.decode(code.encode(labels), 20), labels)

    def test_logits_beyond_all_ranges_keep_a_probability_of_zero(self, code: LabelCode) -> None:
        labels = make_labels(3, 8, 500)
        labels.topk_logits[:, 1] = -3e38
        found = code.decode(code.encode(labels), 3)
        assert (bucket_log_probabilities(found, 4.0)[:, 1].exp() == 0).all()

    def test_the_level_of_a_row_is_not_stored(self, code: LabelCode) -> None:
        labels = make_labels(50, 8, 500, seed=2)
        raised = SoftLabels(
            topk_ids=labels.topk_ids,
            topk_logits=labels.topk_logits + 64,
            rest_log_sum_exp={key: rest + 64 / key for key, rest in labels.rest_log_sum_exp.items()},
        )
        check_close(code.decode(code.encode(raised), 50), labels)

    def test_coding_what_was_decoded_changes_nothing(self, code: LabelCode, sample: SoftLabels) -> None:
        data = code.encode(sample)
        found = code.decode(data, len(sample))
        assert code.encode(found) == data
        check_same(code.decode(code.encode(found), len(sample)), found)

    def test_the_same_sample_gives_the_same_code(self, code: LabelCode, sample: SoftLabels) -> None:
        again = LabelCode.fit(sample, vocab_size=500)
        for name, values in code.tensors().items():
            np.testing.assert_array_equal(again.tensors()[name], values)
        assert again.encode(sample) == code.encode(sample) == code.encode(sample)


class TestWorth:
    def test_errors_are_small_in_probabilities(self, code: LabelCode) -> None:
        labels = make_labels(400, 8, 500, seed=3)
        found = code.decode(code.encode(labels), 400)
        for temperature in TEMPERATURES:
            true, coded = (bucket_log_probabilities(part, temperature) for part in (labels, found))
            assert (coded - true).abs().mean() <= 0.02
            assert (true.exp() * (true - coded)).sum(dim=1).mean() < 2e-4

    def test_it_takes_fewer_bytes_than_a_set_and_eight_bits_a_value(self, code: LabelCode) -> None:
        labels = make_labels(2000, 8, 500, seed=4)
        set_bits = sum(np.log2((500 - place) / (8 - place)) for place in range(8))
        assert len(code.encode(labels)) / 2000 < set_bits / 8 + 8 + 3 * 2


class TestRefusals:
    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
    @pytest.mark.parametrize("of_rest", [False, True])
    def test_values_that_are_not_finite(self, code: LabelCode, value: float, of_rest: bool) -> None:
        labels = make_labels(5, 8, 500)
        (labels.rest_log_sum_exp[2.0][3:4] if of_rest else labels.topk_logits[3, 4:5]).fill_(value)
        with pytest.raises(UserError, match="not finite"):
            code.encode(labels)

    def test_truncated_and_lengthened_bytes(self, code: LabelCode) -> None:
        data = code.encode(make_labels(20, 8, 500))
        for wrong in (*(data[:size] for size in range(len(data))), data + b"\0\0"):
            with pytest.raises(UserError, match="damaged"):
                code.decode(wrong, 20)

    def test_bytes_for_no_positions(self, code: LabelCode) -> None:
        data = code.encode(make_labels(20, 8, 500))
        with pytest.raises(UserError, match="damaged"):
            code.decode(data, 0)

    @unhurried
    @given(st.integers(0, 2**32 - 1), st.integers(1, 255))
    def test_flipped_bits_give_a_refusal_or_soft_labels(self, code: LabelCode, place: int, flipped: int) -> None:
        data = bytearray(code.encode(make_labels(20, 8, 500)))
        data[place % len(data)] ^= flipped
        try:
            found = code.decode(bytes(data), 20)
        except UserError:
            return
        check_sound(found, 20, 500)

    @unhurried
    @given(st.binary(max_size=400), st.integers(0, 30))
    def test_any_bytes_give_a_refusal_or_soft_labels(self, code: LabelCode, data: bytes, num_positions: int) -> None:
        try:
            found = code.decode(data, num_positions)
        except UserError:
            return
        check_sound(found, num_positions, 500)


class TestTensors:
    def test_they_give_the_same_code(self, code: LabelCode, sample: SoftLabels) -> None:
        again = LabelCode.from_tensors(code.tensors(), top_k=8, temperatures=TEMPERATURES, vocab_size=500)
        data = code.encode(sample)
        assert again.encode(sample) == data
        check_same(again.decode(data, len(sample)), code.decode(data, len(sample)))

    def test_no_rests_where_all_tokens_are_kept(self) -> None:
        labels = make_labels(30, 12, 12)
        code = LabelCode.fit(labels, vocab_size=12)
        again = LabelCode.from_tensors(code.tensors(), top_k=12, temperatures=TEMPERATURES, vocab_size=12)
        check_close(again.decode(code.encode(labels), 30), labels)

    def test_a_missing_one_is_named(self, code: LabelCode) -> None:
        for name in code.tensors():
            others = {key: values for key, values in code.tensors().items() if key != name}
            with pytest.raises(UserError, match=rf"labels\.{name} is missing"):
                LabelCode.from_tensors(others, top_k=8, temperatures=TEMPERATURES, vocab_size=500)

    @pytest.mark.parametrize(
        "change",
        [
            lambda values: values.astype(np.float32),
            lambda values: values[:-1],
            lambda values: values[None],
            lambda values: values[:0],
            lambda values: np.full_like(values, -1 if np.issubdtype(values.dtype, np.signedinteger) else 255),
            lambda values: np.full_like(values, 120),
        ],
        ids=["dtype", "shorter", "dimensions", "empty", "low or high", "all alike"],
    )
    def test_what_cannot_be_is_refused_or_harmless(
        self, code: LabelCode, change: Callable[[np.ndarray], np.ndarray]
    ) -> None:
        labels = make_labels(20, 8, 500)
        for name, values in code.tensors().items():
            changed = {**code.tensors(), name: change(values)}
            try:
                wrong = LabelCode.from_tensors(changed, top_k=8, temperatures=TEMPERATURES, vocab_size=500)
                found = wrong.decode(wrong.encode(labels), 20)
            except UserError:
                continue
            assert torch.equal(found.topk_ids, labels.topk_ids)

    @pytest.mark.parametrize("wrong", [{"top_k": 8, "vocab_size": 501}, {"top_k": 501, "vocab_size": 500}])
    def test_another_spec_is_refused(self, code: LabelCode, wrong: dict[str, int]) -> None:
        with pytest.raises(UserError, match="codebook: "):
            LabelCode.from_tensors(code.tensors(), temperatures=TEMPERATURES, **wrong)
