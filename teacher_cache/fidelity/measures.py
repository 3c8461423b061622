"""How far rebuilt soft labels are from exact ones: pure torch, no files.

Legend: N positions, K positions of a chunk, V vocabulary, d hidden size, D components that are compared.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

LATE_NOISE = 0.35
"""Of each component's standard deviation: how far a student late in training is taken to be from its teacher."""

_BLOCK_ROWS = 4096
"""Rows of a gradient that are held in float64 at once."""


@dataclass(frozen=True, kw_only=True)
class GradientDifference:
    """How a gradient with rebuilt targets differs from the one with exact targets."""

    error: float
    """Norm of the difference over the norm of the exact gradient (Frobenius)."""
    angle_degrees: float
    """Between the two, 0 to 180."""


class GradientError:
    """Sums, over chunks of positions, the soft-label loss's gradient with exact and with rebuilt targets.

    The gradient is (student probabilities - target)^T · student hidden states, `[V, d]`, summed over positions and
    divided by nothing. Beside the exact one, only the *deviation* of the rebuilt one is summed: a difference of
    two large sums would be lost in float32.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._exact = torch.zeros(vocab_size, hidden_size, device=device, dtype=dtype)
        self._deviation = torch.zeros_like(self._exact)

    def add(
        self,
        student_probabilities: torch.Tensor,
        exact: torch.Tensor,
        rebuilt: torch.Tensor,
        student_hidden: torch.Tensor,
    ) -> None:
        """Adds a chunk: probabilities at the loss's temperature `[K, V]`, and the student's hidden states `[K, d]`.

        Rows of `exact` sum to 1. Those of `rebuilt` need not: a target t of mass m pulls with m · student - t, as the
        cross-entropy with a truncated target does.
        """
        self._exact.addmm_((student_probabilities - exact).T, student_hidden)
        difference = rebuilt - exact
        # The mass beyond 1 is that of the differences: equal targets then give exactly 0, however their sum is rounded.
        mass = difference.sum(dim=-1, keepdim=True)
        self._deviation.addmm_((student_probabilities * mass - difference).T, student_hidden)

    def result(self) -> GradientDifference:
        """The difference of the sums so far.

        Raises:
            ValueError: the exact gradient is 0, so there is nothing to compare with.
        """
        squared = sum(_squared_norm(exact) for exact, _ in self._blocks())
        if not squared:
            raise ValueError("the exact gradient is 0: no positions were added, or the student is the teacher")
        # deviation = along * exact + a part across. The arc cosine of nearly parallel gradients would lose the angle.
        along = sum(float((exact * deviation).sum()) for exact, deviation in self._blocks()) / squared
        across_squared = sum(_squared_norm(deviation - along * exact) for exact, deviation in self._blocks())
        across = math.sqrt(across_squared / squared)
        return GradientDifference(
            error=math.hypot(along, across), angle_degrees=math.degrees(math.atan2(across, 1 + along))
        )

    def _blocks(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Rows of the exact gradient and of the deviation, in float64."""
        pairs = zip(self._exact.split(_BLOCK_ROWS), self._deviation.split(_BLOCK_ROWS), strict=True)
        return ((exact.double(), deviation.double()) for exact, deviation in pairs)


def _squared_norm(values: torch.Tensor) -> float:
    return float(values.square().sum())


def kl(exact: torch.Tensor, rebuilt_log_probabilities: torch.Tensor) -> torch.Tensor:
    """KL(exact || rebuilt) `[K]` in nats, of probabilities and log-probabilities `[K, D]` whose rows each sum to 1.

    Summed as t * (r/t - 1 - log(r/t)), which is never negative and whose extra part sums to 0: near equality the plain
    sum of t * log(t/r) drowns in the roundings of its terms of both signs.
    """
    possible = exact > 0
    log_ratio = torch.where(possible, rebuilt_log_probabilities - exact.log(), 0.0)
    excess = torch.where(
        possible & (log_ratio.abs() < 1), exact * log_ratio.expm1(), rebuilt_log_probabilities.exp() - exact
    )
    return (excess - exact * log_ratio).sum(dim=-1)


def expected_calibration_error(confidences: torch.Tensor, correct: torch.Tensor, bins: int = 15) -> float:
    """Mean distance of confidence and accuracy over equal bins of confidence, each weighed by its share of positions.

    As Guo et al. 2017 (arXiv 1706.04599, section 3): bin m holds the confidences in ((m - 1)/bins, m/bins].
    `confidences` and `correct` are `[N]`: the probability of the best token, and whether it is the true one.
    """
    confidences = confidences.double()
    places = ((confidences * bins).ceil().long() - 1).clamp(0, bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64, device=places.device)
    gaps.index_add_(0, places, correct.double() - confidences)
    return float(gaps.abs().sum() / len(confidences))


def bucket_target(
    student_probabilities: torch.Tensor, topk_ids: torch.Tensor, log_probabilities: torch.Tensor
) -> torch.Tensor:
    """The dense target `[K, V]` that has the gradient of the KL over k tokens `[K, k]` and a bucket for the rest.

    `log_probabilities` `[K, k + 1]` are the teacher's, the rest's last (`[K, V]` where k = V). The rest is spread in
    proportion to the student's own probabilities outside the top k.
    """
    top_k = topk_ids.shape[-1]
    target = torch.zeros_like(student_probabilities)
    if log_probabilities.shape[-1] > top_k:
        outside = student_probabilities.scatter(-1, topk_ids, 0)
        share = outside / outside.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(outside.dtype).tiny)
        target = share * log_probabilities[:, top_k:].exp()
    return target.scatter(-1, topk_ids, log_probabilities[:, :top_k].exp())


def late_student_hidden(hidden: torch.Tensor, std: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Last hidden states `[N, d]` as of a student late in training: the teacher's with Gaussian noise of `LATE_NOISE`.

    `std` `[d]` is the standard deviation of each component over positions.
    """
    return hidden + LATE_NOISE * std * torch.randn(hidden.shape, generator=generator, dtype=hidden.dtype)


def early_student(model: PreTrainedModel) -> PreTrainedModel:
    """As of a student early in training: a copy of the teacher cut to its layers 0, 2, 4, …, with the teacher's head.

    ALBERT shares its layers: there the copy runs through them half as often.
    """
    student = copy.deepcopy(model)
    for module in list(student.base_model.modules()):
        layers = getattr(module, "layer", None)
        if isinstance(layers, nn.ModuleList):
            module.layer = layers[::2]
    student.config.num_hidden_layers = -(-student.config.num_hidden_layers // 2)
    return student
