"""The loss against a teacher's logits, and its gradient, against a dense reference in float64."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from student_train.finetune.soft_loss import answer_mask, divergence, soft_loss

B, S, C = 3, 7, 4
LENGTHS = torch.tensor([7, 4, 5])


def draw(*shape: int, seed: int) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> float:
    """T² times the mean over rows of sum p log(p / q), both softened."""
    s, t = (values.double().numpy() / temperature for values in (student, teacher))
    rows = (softmax(t, -1) * (log_softmax(t, -1) - log_softmax(s, -1))).sum(-1)
    return float(temperature**2 * rows.mean())


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_divergence_is_the_papers(temperature):
    student, teacher = draw(B, C, seed=0).requires_grad_(), draw(B, C, seed=1)
    loss = divergence(student, teacher, temperature)
    assert loss.item() == pytest.approx(reference(student.detach(), teacher, temperature), rel=1e-5)
    loss.backward()
    expected = temperature * ((student / temperature).softmax(-1) - (teacher / temperature).softmax(-1)) / B
    torch.testing.assert_close(student.grad, expected.detach(), rtol=0, atol=1e-6)
    assert float(divergence(teacher, teacher, temperature)) == pytest.approx(0, abs=1e-6)


def test_tagging_counts_labelled_tokens_alone_and_each_alike():
    student, teacher = draw(B, S, C, seed=0), draw(B, S, C, seed=1)
    labels = torch.full((B, S), -100)
    labels[0, 2:6], labels[2, 1] = 1, 0
    mask = answer_mask("tagging", {"labels": labels, "attention_mask": torch.ones(B, S)})
    assert mask is not None
    loss = soft_loss("tagging", student, teacher, mask=mask, temperature=2.0)
    rows = [(0, 2), (0, 3), (0, 4), (0, 5), (2, 1)]
    chosen = [torch.stack([values[place] for place in rows]) for values in (student, teacher)]
    assert float(loss) == pytest.approx(reference(*chosen, 2.0), rel=1e-5)


def test_an_answers_start_and_end_are_looked_for_among_the_windows_tokens():
    student, teacher = draw(B, S, 2, seed=0).requires_grad_(), draw(B, S, 2, seed=1)
    attention_mask = (torch.arange(S) < LENGTHS[:, None]).long()
    mask = answer_mask("question_answering", {"attention_mask": attention_mask})
    loss = soft_loss("question_answering", student, teacher, mask=mask, temperature=2.0)
    expected = [
        reference(student.detach()[row, :length, side][None], teacher[row, :length, side][None], 2.0)
        for row, length in enumerate(LENGTHS)
        for side in (0, 1)
    ]
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-5)
    loss.backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert not student.grad[attention_mask == 0].any()
    assert student.grad[attention_mask == 1].all()


@pytest.mark.parametrize("temperature", [0.25, 0.5, 1.0])
def test_padding_is_nothing_at_low_temperatures(temperature):
    student, teacher = draw(B, S, 2, seed=0), draw(B, S, 2, seed=1)
    mask = torch.arange(S) < LENGTHS[:, None]
    loss = soft_loss("question_answering", student, teacher, mask=mask, temperature=temperature)
    expected = [
        reference(student[row, :length, side][None], teacher[row, :length, side][None], temperature)
        for row, length in enumerate(LENGTHS)
        for side in (0, 1)
    ]
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-4)


def test_regression_is_the_mean_squared_error_at_any_temperature():
    student, teacher = draw(B, 1, seed=0), draw(B, 1, seed=1)
    for temperature in (1.0, 4.0):
        loss = soft_loss("regression", student, teacher, mask=None, temperature=temperature)
        assert float(loss) == pytest.approx(float(((student - teacher) ** 2).mean()), rel=1e-6)


def test_half_precision_loses_nothing_in_the_softmax():
    student, teacher = (draw(B, C, seed=seed).bfloat16() for seed in (0, 1))
    loss = soft_loss("classification", student, teacher, mask=None, temperature=2.0)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(reference(student, teacher, 2.0), rel=1e-5)
