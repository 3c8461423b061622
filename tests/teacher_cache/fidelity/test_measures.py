"""Measures against values by hand and dense maths in float64. K positions, V vocabulary, d hidden size."""

import math

import pytest
import torch

from teacher_cache.fidelity.measures import (
    LATE_NOISE,
    GradientError,
    bucket_target,
    early_student,
    expected_calibration_error,
    kl,
    late_student_hidden,
)
from tests import families

K, V, D = 40, 7, 3


def probabilities(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*(shape or (K, V)), generator=generator, dtype=torch.float64).mul(2).softmax(-1).to(dtype)


def states(seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(K, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def summed(*chunks: tuple[torch.Tensor, ...], dtype: torch.dtype = torch.float64) -> GradientError:
    error = GradientError(V, D, dtype=dtype)
    for chunk in chunks:
        error.add(*chunk)
    return error


def angle_between(left: torch.Tensor, right: torch.Tensor) -> float:
    """In degrees."""
    cosine = (left * right).sum() / (left.norm() * right.norm())
    return math.degrees(math.acos(cosine))


class TestGradientError:
    def test_it_is_that_of_the_dense_gradients(self) -> None:
        student, exact, rebuilt, hidden = probabilities(0), probabilities(1), probabilities(2), states(3)
        gradient, other = (student - exact).T @ hidden, (student - rebuilt).T @ hidden
        found = summed((student, exact, rebuilt, hidden)).result()
        assert found.error == pytest.approx(float((other - gradient).norm() / gradient.norm()), rel=1e-12)
        assert found.angle_degrees == pytest.approx(angle_between(gradient, other), rel=1e-9)

    def test_it_is_the_gradient_of_the_cross_entropy_by_the_decoder(self) -> None:
        """With a truncated target, whose mass is not 1, too."""
        hidden, exact = states(0), probabilities(1)
        truncated = exact * (exact > exact.median())
        decoder = torch.randn(V, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
        gradients = []
        for target in (exact, truncated):
            loss = -(target * (hidden @ decoder.T).log_softmax(-1)).sum()
            gradients.append(torch.autograd.grad(loss, decoder)[0])
        student = (hidden @ decoder.T).softmax(-1).detach()
        found = summed((student, exact, truncated, hidden)).result()
        assert found.error == pytest.approx(float((gradients[1] - gradients[0]).norm() / gradients[0].norm()), rel=1e-9)
        assert found.angle_degrees == pytest.approx(angle_between(*gradients), rel=1e-9)

    def test_chunks_add_up_and_positions_weigh_alike(self) -> None:
        whole = probabilities(0), probabilities(1), probabilities(2), states(3)
        chunks = [tuple(part[rows] for part in whole) for rows in (slice(0, 1), slice(1, 30), slice(30, K))]
        assert summed(*chunks).result().error == pytest.approx(summed(whole).result().error, rel=1e-12)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_equal_targets_give_exactly_nothing(self, dtype: torch.dtype) -> None:
        exact = probabilities(1, dtype=dtype)
        found = summed((probabilities(0, dtype=dtype), exact, exact.clone(), states(3, dtype)), dtype=dtype).result()
        assert (found.error, found.angle_degrees) == (0.0, 0.0)

    @pytest.mark.parametrize(
        ("rebuilt_gradient", "error", "angle"), [(0.9, 0.1, 0), (1.5, 0.5, 0), (-1, 2, 180), (0, 1, 0)]
    )
    def test_a_gradient_of_another_length_or_sign(self, rebuilt_gradient: float, error: float, angle: float) -> None:
        """A target that is a mixture of teacher and student scales the gradient."""
        student, exact = probabilities(0), probabilities(1)
        rebuilt = rebuilt_gradient * exact + (1 - rebuilt_gradient) * student
        found = summed((student, exact, rebuilt, states(3))).result()
        assert found.error == pytest.approx(error, rel=1e-9)
        if rebuilt_gradient:  # nothing has no direction
            assert found.angle_degrees == pytest.approx(angle, abs=1e-5)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_a_target_scaled_by_nine_tenths(self, dtype: torch.dtype) -> None:
        """Its gradient is that of 0.9 times the loss."""
        exact = probabilities(1, dtype=dtype)
        found = summed((probabilities(0, dtype=dtype), exact, 0.9 * exact, states(3, dtype)), dtype=dtype).result()
        assert found.error == pytest.approx(0.1, rel=1e-5)
        assert found.angle_degrees == pytest.approx(0, abs=1e-4)

    @pytest.mark.parametrize("angle", [1e-9, 1e-6, 1e-3, 1.0, 89.0, 91.0, 179.999])
    def test_angles_of_all_sizes(self, angle: float) -> None:
        """The gradient is turned by a known angle: (g, 0) to (g cos, g sin), two tokens' rows of one component."""
        radians = math.radians(angle)
        student, exact = torch.zeros(1, 2).double(), torch.tensor([[1.0, 0.0]]).double()
        turned = torch.tensor([[math.cos(radians), math.sin(radians)]]).double()
        error = GradientError(2, 1, dtype=torch.float64)
        error.add(student, exact, turned, torch.ones(1, 1).double())
        assert error.result().angle_degrees == pytest.approx(angle, rel=1e-6)

    def test_a_small_deviation_survives_large_sums_in_float32(self) -> None:
        student, exact, hidden = probabilities(0), probabilities(1), states(3)
        rebuilt = exact + 1e-6 * (probabilities(2) - exact)
        gradient = (student - exact).T @ hidden
        expected = ((exact - rebuilt).T @ hidden).norm() / gradient.norm()
        chunk = tuple(values.float() for values in (student, exact, rebuilt, hidden))
        found = summed(*[chunk] * 50, dtype=torch.float32).result()
        assert found.error == pytest.approx(float(expected), rel=0.05), "what float32 probabilities themselves lose"

    def test_blocks_of_rows_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = probabilities(0), probabilities(1), probabilities(2), states(3)
        expected = summed(whole).result()
        monkeypatch.setattr("teacher_cache.fidelity.measures._BLOCK_ROWS", 2)
        found = summed(whole).result()
        assert (found.error, found.angle_degrees) == pytest.approx((expected.error, expected.angle_degrees), rel=1e-12)

    def test_no_gradient_is_no_measure(self) -> None:
        with pytest.raises(ValueError, match="the exact gradient is 0"):
            GradientError(V, D).result()


class TestDivergence:
    def test_it_is_the_plain_sum(self) -> None:
        exact, rebuilt = probabilities(0), probabilities(1)
        plain = (exact * (exact / rebuilt).log()).sum(-1)
        torch.testing.assert_close(kl(exact, rebuilt.log()), plain, rtol=1e-12, atol=0)

    def test_by_hand(self) -> None:
        found = kl(torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.75]]).log())
        assert float(found) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))

    def test_impossible_tokens(self) -> None:
        """A token that neither allows, one that only the cache allows, one that only the teacher allows."""
        exact, rebuilt = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.5, 0.5, 0.0]])
        assert float(kl(exact, rebuilt.log())) == pytest.approx(math.log(2))
        assert float(kl(rebuilt, exact.log())) == math.inf

    @pytest.mark.parametrize("size", [1e-2, 1e-3, 1e-4])
    def test_float32_is_enough_for_small_ones(self, size: float) -> None:
        """About size^2 / 2: at 1e-4 the plain float32 sum is wrong by more than the value."""
        logits = torch.randn(20, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        other = logits + size * torch.randn(20, 1000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        exact, rebuilt = logits.log_softmax(-1), other.log_softmax(-1)
        expected = (exact.exp() * (exact - rebuilt)).sum(-1)
        found = kl(logits.float().softmax(-1), other.float().log_softmax(-1)).double()
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=0)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_it_is_never_negative(self, dtype: torch.dtype) -> None:
        exact = probabilities(0, 50, 300, dtype=dtype)
        assert (kl(exact, exact.log()) == 0).all()
        assert (kl(exact, (exact * (1 + 1e-6)).log()) >= 0).all()

    def test_a_wild_ratio_does_not_overflow(self) -> None:
        exact = torch.tensor([[1.0, 1e-44]])
        assert float(kl(exact, torch.tensor([[-120.0, 0.0]]))) == pytest.approx(120, rel=0.02)


class TestCalibration:
    def test_by_hand(self) -> None:
        """Two bins: (0, 0.5] with gap |1/2 - 0.4|, (0.5, 1] with gap |1/3 - 0.8|; shares 2/5 and 3/5."""
        confidences = torch.tensor([0.3, 0.5, 0.6, 0.8, 1.0])
        correct = torch.tensor([True, False, False, True, False])
        expected = 2 / 5 * abs(1 / 2 - 0.4) + 3 / 5 * abs(1 / 3 - 0.8)
        assert expected_calibration_error(confidences, correct, bins=2) == pytest.approx(expected)

    def test_opposite_errors_in_different_bins_do_not_cancel(self) -> None:
        confidences, correct = torch.tensor([0.2, 0.8]), torch.tensor([True, False])
        assert expected_calibration_error(confidences, correct) == pytest.approx(0.8)
        assert expected_calibration_error(confidences, correct, bins=1) == pytest.approx(0, abs=1e-7)

    @pytest.mark.parametrize(("confidence", "correct", "expected"), [(1.0, True, 0), (1.0, False, 1), (0.0, False, 0)])
    def test_the_ends_are_in_bins(self, confidence: float, correct: bool, expected: float) -> None:
        assert expected_calibration_error(torch.tensor([confidence]), torch.tensor([correct])) == expected


class TestBucketTarget:
    def test_the_rest_is_spread_as_the_student_spreads_it(self) -> None:
        student = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
        bucketed = torch.tensor([[0.5, 0.2, 0.3]]).log()
        target = bucket_target(student, torch.tensor([[0, 3]]), bucketed)
        torch.testing.assert_close(target, torch.tensor([[0.5, 0.3 * 0.4, 0.3 * 0.6, 0.2]]))

    def test_the_whole_vocabulary_has_no_rest(self) -> None:
        exact = probabilities(0)
        torch.testing.assert_close(bucket_target(probabilities(1), torch.arange(V).expand(K, V), exact.log()), exact)

    def test_a_student_without_a_tail_gets_finite_targets(self) -> None:
        target = bucket_target(torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0]]), torch.tensor([[0.9, 0.1]]).log())
        assert torch.isfinite(target).all()


class TestStudents:
    def test_the_late_one_is_the_teacher_with_noise_of_known_size(self) -> None:
        hidden = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5.0])
        std = hidden.std(dim=0)
        noisy = late_student_hidden(hidden, std, torch.Generator().manual_seed(1))
        torch.testing.assert_close((noisy - hidden).std(dim=0), LATE_NOISE * std, rtol=0.02, atol=0)
        assert LATE_NOISE == 0.35
        again = late_student_hidden(hidden, std, torch.Generator().manual_seed(1))
        torch.testing.assert_close(noisy, again, rtol=0, atol=0)

    @pytest.mark.parametrize("family", families.FAMILIES)
    @pytest.mark.parametrize(("num_layers", "kept"), [(4, [0, 2]), (3, [0, 2]), (1, [0])])
    def test_the_early_one_has_every_other_layer(self, family: str, num_layers: int, kept: list[int]) -> None:
        layers = {"n_layers" if family == "distilbert" else "num_hidden_layers": num_layers}
        teacher = families.make_model(family, **layers)
        expected = families.make_model(family, **{name: len(kept) for name in layers})
        weights = teacher.state_dict()
        for name in expected.state_dict():
            place = next((part for part in name.split(".") if part.isdecimal()), None)
            if family != "albert" and place is not None:
                old = name.replace(f".layer.{place}.", f".layer.{kept[int(place)]}.")
                expected.state_dict()[name].copy_(weights[old])
            else:
                expected.state_dict()[name].copy_(weights[name])
        input_ids, attention_mask = families.make_batch(family)
        before = {name: value.clone() for name, value in weights.items()}
        with torch.no_grad():
            student = early_student(teacher)
            found, right = (
                model(input_ids=input_ids, attention_mask=attention_mask).logits for model in (student, expected)
            )
        torch.testing.assert_close(found, right)
        assert teacher.config.num_hidden_layers == num_layers
        assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
