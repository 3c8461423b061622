"""The triple loss (Sanh et al. 2019, arXiv 1910.01108, section 3) over sparse and replayed targets.

5 * T^2 * KL(teacher || student) at temperature T, 2 * masked-LM cross-entropy at T = 1, 1 * (1 - cosine) of the
last hidden states. Each is a sum over positions divided by a number of the whole optimiser step, so no split into
micro-batches or workers changes the step. The student's logits are never held whole: chunks of positions compute
loss and gradient together.

Legend: U positions that some head loss needs, K kept positions, C positions of a chunk, V vocabulary, w student
width, d teacher's hidden size.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from student_train.batch import MicroBatch
from student_train.config import LossConfig
from teacher_cache.targets.heads import OutputHead, head_logits
from teacher_cache.targets.soft_labels import SoftLabels, bucket_log_probabilities, replay_log_probabilities

CHUNK_POSITIONS = 512
"""Positions whose logits are held at once: 512 * 30,522 float32 are 63 MB."""


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


class TripleLoss:
    """Computes the weighted loss's gradients, and reports each part."""

    def __init__(self, config: LossConfig, teacher_head: OutputHead | None, projection: nn.Linear | None) -> None:
        self._config = config
        self._teacher_head = teacher_head
        self._projection = projection
        """Student width to teacher width, for the cosine term only."""

    def backward(self, hidden: torch.Tensor, head: OutputHead, batch: MicroBatch, step: Denominators) -> Losses:
        """Adds the gradients of this micro-batch to `hidden`'s graph `[B * S, w]` and to `head`'s parameters."""
        places, kept_row, labels = _union(batch)
        picked = hidden[places]
        leaf = picked.detach().requires_grad_()
        totals = {name: torch.zeros((), device=hidden.device) for name in ("soft_labels", "masked_lm", "cosine")}
        for start in range(0, len(places), CHUNK_POSITIONS):
            chunk = slice(start, start + CHUNK_POSITIONS)
            parts = self._head_losses(leaf[chunk], head, batch, kept_row[chunk], labels[chunk], step)
            _accumulate(totals, parts, self._weights())
        if self._config.weights.cosine and batch.hidden is not None:
            kept = kept_row >= 0
            parts = {"cosine": self._cosine(leaf[kept], batch, step)}
            _accumulate(totals, parts, self._weights())
        if leaf.grad is not None:
            picked.backward(leaf.grad)
        return Losses(**totals)

    def _weights(self) -> dict[str, float]:
        weights = self._config.weights
        return {"soft_labels": weights.soft_labels, "masked_lm": weights.masked_lm, "cosine": weights.cosine}

    def _head_losses(
        self,
        hidden: torch.Tensor,
        head: OutputHead,
        batch: MicroBatch,
        kept_row: torch.Tensor,
        labels: torch.Tensor,
        step: Denominators,
    ) -> dict[str, torch.Tensor]:
        """Soft-label and masked-LM shares of a chunk `[C, w]`; `kept_row` and `labels` are `[C]`, below 0 for none."""
        logits = head_logits(head, hidden).float()
        parts = {}
        labelled = labels >= 0
        if self._config.weights.masked_lm and labelled.any():
            cross_entropy = F.cross_entropy(logits[labelled], labels[labelled], reduction="sum")
            parts["masked_lm"] = cross_entropy / step.labels
        kept = kept_row >= 0
        if self._config.weights.soft_labels and kept.any():
            rows = kept_row[kept]
            teacher_hidden = batch.hidden[rows] if batch.hidden is not None else None
            divergence = self._divergence(logits[kept], batch.soft_labels[rows], teacher_hidden)
            squared = self._config.temperature**2
            parts["soft_labels"] = squared * (divergence * batch.weights[rows]).sum() / step.soft_positions
        return parts

    def _divergence(self, logits: torch.Tensor, soft: SoftLabels, hidden: torch.Tensor | None) -> torch.Tensor:
        temperature = self._config.temperature
        if self._config.soft_labels == "bucket":
            return bucket_divergence(logits, soft, temperature)
        assert self._teacher_head is not None, "replay needs the teacher's head"
        assert hidden is not None, "replay needs the teacher's hidden states"
        with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
            teacher = replay_log_probabilities(hidden, self._teacher_head, soft, temperature)
        return divergence(logits, teacher, temperature)

    def _cosine(self, hidden: torch.Tensor, batch: MicroBatch, step: Denominators) -> torch.Tensor:
        """Share of the mean of 1 - cosine between hidden states `[K, w]` and the teacher's `[K, d]`."""
        assert batch.hidden is not None
        states = self._projection(hidden) if self._projection is not None else hidden
        distance = 1 - F.cosine_similarity(states.float(), batch.hidden, dim=-1)
        return (distance * batch.weights).sum() / step.soft_positions


def divergence(logits: torch.Tensor, teacher_log_probabilities: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL(teacher || student) `[K]` between whole rows `[K, V]`, in nats."""
    student = (logits / temperature).log_softmax(dim=-1)
    return F.kl_div(student, teacher_log_probabilities, reduction="none", log_target=True).sum(dim=-1)


def bucket_divergence(logits: torch.Tensor, soft_labels: SoftLabels, temperature: float) -> torch.Tensor:
    """KL(teacher || student) `[K]` over the top k tokens and one bucket for the rest, in nats.

    Its gradient spreads the rest's error by the student's own tail.
    """
    scaled = logits / temperature
    teacher = bucket_log_probabilities(soft_labels, temperature)
    top = scaled.gather(-1, soft_labels.topk_ids)
    if soft_labels.rest_log_sum_exp:
        rest = scaled.scatter(-1, soft_labels.topk_ids, -torch.inf).logsumexp(dim=-1, keepdim=True)
        top = torch.cat([top, rest], dim=-1)
    return F.kl_div(top.log_softmax(dim=-1), teacher, reduction="none", log_target=True).sum(dim=-1)


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


def _union(batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Places `[U]` that are kept or labelled, ascending; for each its row among the kept ones and its label, or -1."""
    places = torch.cat([batch.kept_places, batch.label_places]).unique(sorted=True)
    kept_row = torch.full_like(places, -1)
    labels = torch.full_like(places, -1)
    kept_row[torch.searchsorted(places, batch.kept_places)] = torch.arange(len(batch.kept_places), device=places.device)
    labels[torch.searchsorted(places, batch.label_places)] = batch.label_ids
    return places, kept_row, labels


def _accumulate(totals: dict[str, torch.Tensor], parts: dict[str, torch.Tensor], weights: dict[str, float]) -> None:
    """Runs backward on the weighted sum of `parts`, and adds them to the totals."""
    if not parts:
        return
    weighted = torch.stack([weights[name] * value for name, value in parts.items()]).sum()
    weighted.backward()
    for name, value in parts.items():
        totals[name] += value.detach()
