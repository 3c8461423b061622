"""The triple loss (Sanh et al. 2019, arXiv 1910.01108, section 3) over sparse and replayed targets.

5 * T^2 * KL(teacher || student) at temperature T, 2 * masked-LM cross-entropy at T = 1, 1 * (1 - cosine) of the
last hidden states. Each is a sum over positions divided by a number of the whole optimiser step, so no split into
micro-batches or workers changes the step. The student's logits are never held whole: chunks of positions compute
loss and gradient together, see `divergence`.

Legend: U positions that some loss needs, of which the first K are kept and the last L labelled; C positions of a chunk,
V vocabulary, w student width, d teacher's hidden size.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from student_train.batch import MicroBatch
from student_train.config import LossConfig
from student_train.divergence import LossAndGradient, bucket_divergence, cross_entropy, divergence
from teacher_cache.targets.heads import OutputHead, head_features, head_logits
from teacher_cache.targets.soft_labels import SoftLabels, rebuilt_, rows_at_once

CHUNK_POSITIONS = 256
"""Positions whose logits are held at once: 256 * 30,522 float32 are 31 MB, and on a GPU up to five such buffers are in
use; a CPU takes few rows at a time through all but the matrix products, and holds two."""


@dataclass(frozen=True, kw_only=True)
class Denominators:
    """Numbers of the whole optimiser step, over all workers."""

    soft_positions: float
    """Positions that may be kept: all non-pad ones, or the masked ones where no other is ever kept."""
    labels: float
    """Masked positions."""


@dataclass(frozen=True, kw_only=True)
class Losses:
    """This micro-batch's share of each mean, unweighted, detached."""

    soft_labels: torch.Tensor
    masked_lm: torch.Tensor
    cosine: torch.Tensor
    accuracy: torch.Tensor
    """Of the masked positions whose token the student ranks first; 0 while training."""


class TripleLoss:
    """Computes the weighted loss's gradients, and reports each part."""

    def __init__(self, config: LossConfig, teacher_head: OutputHead | None, projection: nn.Linear | None) -> None:
        self._config, self._weights = config, config.weights
        self._teacher_head = teacher_head
        self._projection = projection
        """Student width to teacher width, for the cosine term only."""

    def backward(self, hidden: torch.Tensor, head: OutputHead, batch: MicroBatch, step: Denominators) -> Losses:
        """Adds the gradients of this micro-batch to `hidden`'s graph `[B * S, w]` and to `head`'s parameters."""
        picked = hidden[batch.places]
        features = head_features(head, picked)
        of_features = torch.zeros_like(features)
        totals = _zeros(hidden.device)
        for chunk in _chunks(*self._needed(batch)):
            with torch.no_grad():
                logits = F.linear(features[chunk], head.decoder_weight, head.decoder_bias)
                self._to_gradient_(logits, chunk.start, batch, step, totals)
                of_features[chunk] = _decoder_backward(head, features[chunk], logits)
        outcomes, gradients = [features], [of_features]
        if self._weights.cosine and batch.hidden is not None:
            cosine = self._cosine(picked[: batch.num_kept], batch, step)
            outcomes.append(cosine)
            gradients.append(torch.full_like(cosine, self._weights.cosine))
            totals["cosine"] += cosine.detach()
        torch.autograd.backward(outcomes, gradients)
        return Losses(**totals)

    @torch.no_grad()
    def measure(self, hidden: torch.Tensor, head: OutputHead, batch: MicroBatch, step: Denominators) -> Losses:
        """The same losses and the accuracy, without gradients."""
        picked = hidden[batch.places]
        features = head_features(head, picked)
        totals = _zeros(hidden.device)
        for chunk in _chunks(0, len(features)):
            logits = F.linear(features[chunk], head.decoder_weight, head.decoder_bias)
            labelled, labels = _labelled(logits, chunk.start, batch)
            totals["accuracy"] += (labelled.argmax(dim=-1) == labels).sum() / step.labels
            self._to_gradient_(logits, chunk.start, batch, step, totals)
        if self._weights.cosine and batch.hidden is not None:
            totals["cosine"] += self._cosine(picked[: batch.num_kept], batch, step)
        return Losses(**totals)

    def _needed(self, batch: MicroBatch) -> tuple[int, int]:
        """From where to where of `batch.places` logits have a gradient."""
        first = 0 if self._weights.soft_labels else batch.first_label
        last = batch.num_kept if self._weights.soft_labels else first
        return first, len(batch.places) if self._weights.masked_lm else last

    def _to_gradient_(
        self, logits: torch.Tensor, start: int, batch: MicroBatch, step: Denominators, totals: dict[str, torch.Tensor]
    ) -> None:
        """Turns a chunk's logits `[C, V]` into their weighted gradient; adds its shares to `totals`."""
        num_rows = rows_at_once(logits)
        with torch.autocast(logits.device.type, enabled=False):
            teacher = self._teacher_logits(batch, slice(start, start + len(logits)))
            for first in range(0, len(logits), num_rows):
                rows = slice(first, first + num_rows)
                gradient = self._head_losses(logits[rows], teacher[rows], start + first, batch, step, totals)
                logits[rows] = 0 if gradient is None else gradient

    def _teacher_logits(self, batch: MicroBatch, chunk: slice) -> torch.Tensor:
        """Of a chunk's kept positions, rebuilt from hidden states, float32 `[K, V]`; `[0]` where no loss needs them."""
        kept = slice(chunk.start, min(chunk.stop, batch.num_kept))
        if not self._weights.soft_labels or self._config.soft_labels == "bucket" or kept.start >= kept.stop:
            return torch.empty(0)
        assert self._teacher_head is not None, "replay needs the teacher's head"
        assert batch.hidden is not None, "replay needs the teacher's hidden states"
        return head_logits(self._teacher_head, batch.hidden[kept]).float()

    def _head_losses(
        self,
        logits: torch.Tensor,
        teacher_logits: torch.Tensor,
        start: int,
        batch: MicroBatch,
        step: Denominators,
        totals: dict[str, torch.Tensor],
    ) -> torch.Tensor | None:
        """Adds the shares of some rows to `totals`; the weighted gradient for their logits `[C, V]`, None for zero."""
        gradient = None
        num_kept = min(max(batch.num_kept - start, 0), len(logits))
        if self._weights.soft_labels and num_kept:
            kept = slice(start, start + num_kept)
            loss, gradient = self._divergence(logits[:num_kept], teacher_logits, batch.soft_labels[kept])
            share = self._config.temperature**2 / step.soft_positions * batch.weights[kept]
            totals["soft_labels"] += (loss * share).sum()
            gradient *= self._weights.soft_labels * share[:, None]
            gradient = F.pad(gradient, (0, 0, 0, len(logits) - num_kept)) if num_kept < len(logits) else gradient
        labelled, labels = _labelled(logits, start, batch)
        if self._weights.masked_lm and len(labels):
            loss, of_labels = cross_entropy(labelled, labels)
            totals["masked_lm"] += loss.sum() / step.labels
            gradient = torch.zeros_like(logits, dtype=torch.float32) if gradient is None else gradient
            gradient[len(logits) - len(labels) :].add_(of_labels, alpha=self._weights.masked_lm / step.labels)
        return gradient

    def _divergence(self, logits: torch.Tensor, teacher_logits: torch.Tensor, soft: SoftLabels) -> LossAndGradient:
        """Of kept positions."""
        temperature = self._config.temperature
        if self._config.soft_labels == "bucket":
            return bucket_divergence(logits, soft, temperature)
        return divergence(logits, rebuilt_(teacher_logits, soft, temperature), temperature)

    def _cosine(self, hidden: torch.Tensor, batch: MicroBatch, step: Denominators) -> torch.Tensor:
        """Share of the mean of 1 - cosine between hidden states `[K, w]` and the teacher's `[K, d]`."""
        assert batch.hidden is not None
        states = self._projection(hidden) if self._projection is not None else hidden
        distance = 1 - F.cosine_similarity(states.float(), batch.hidden, dim=-1)
        return (distance * batch.weights).sum() / step.soft_positions


def _decoder_backward(head: OutputHead, features: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """The gradient of `features` `[C, e]` from that of their logits `[C, V]`; adds the decoder's to its own.

    By hand, because autograd would make a new `[V, e]` for each chunk.
    """
    weight, bias = head.decoder_weight, head.decoder_bias
    for parameter in (weight, bias):
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if bias.grad is not None:
        bias.grad += gradient.sum(dim=0, dtype=bias.dtype)
    if weight.grad is not None and gradient.dtype == weight.dtype:
        weight.grad.addmm_(gradient.T, features)
    elif weight.grad is not None:
        weight.grad += gradient.T @ features.to(gradient.dtype)
    return gradient @ weight.to(gradient.dtype)


def _chunks(first: int, last: int) -> list[slice]:
    return [slice(start, min(start + CHUNK_POSITIONS, last)) for start in range(first, last, CHUNK_POSITIONS)]


def _labelled(logits: torch.Tensor, start: int, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """The labelled positions of a chunk that begins at `start`: logits, always its last ones, and labels."""
    first = max(batch.first_label - start, 0)
    begin = start + first - batch.first_label
    labels = batch.label_ids[begin : begin + max(len(logits) - first, 0)]
    return logits[len(logits) - len(labels) :], labels


def _zeros(device: torch.device) -> dict[str, torch.Tensor]:
    return {name: torch.zeros((), device=device) for name in ("soft_labels", "masked_lm", "cosine", "accuracy")}


def step_denominators(num_tokens: float, num_labels: float, unmasked_rate: float) -> Denominators:
    """The published denominators: all non-pad positions, or the masked ones where targets are restricted to them."""
    soft = num_tokens if unmasked_rate > 0 else num_labels
    return Denominators(soft_positions=max(soft, 1), labels=max(num_labels, 1))


def teacher_parts(config: LossConfig) -> set[Literal["hidden", "head"]]:
    """Which parts of the teacher the losses need: hidden states of the cache, and the output head."""
    parts: set[Literal["hidden", "head"]] = set()
    if config.weights.cosine:
        parts.add("hidden")
    if config.weights.soft_labels and config.soft_labels == "replay":
        parts |= {"hidden", "head"}
    return parts
