"""Teaching one small student from some code's targets, and asking how good it has become.

The loss is DistilBERT's (arXiv 1910.01108, section 3), as `student_train.losses` has it, over the targets of any code.

Legend: K kept positions of a batch, L masked positions, V vocabulary, d hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from infra.bench.codes.answers import Answers, Teacher, ask, chunks, places_of, rank
from infra.bench.codes.contenders import Encoded
from infra.bench.codes.gradients import DenseRows, Rows
from student_train.config import LossWeights, OptimizerConfig, StudentConfig
from student_train.optimizer import make_optimizer, schedule
from student_train.student import build_student, encode_student
from teacher_cache.masking import MaskedSequence
from teacher_cache.targets.batching import pad
from teacher_cache.targets.heads import head_logits, head_of

BATCH_SEQUENCES = 16
OPTIMIZER = OptimizerConfig(lr=3e-4, warmup_share=0.1)
WEIGHTS = LossWeights()
LEAST_SHARE = 1e-30
"""Of a bucket's mass, where its logarithm is taken."""


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """Batches in order, and what the teacher says at all their kept positions."""

    batches: Sequence[Sequence[MaskedSequence]]
    answers: Answers

    @classmethod
    def draw(cls, masked: Sequence[MaskedSequence], teacher: Teacher, *, steps: int, seed: int, at: float) -> "Lesson":
        """`seed` decides the sequences and their order; samples are drawn at temperature `at`."""
        order = np.random.default_rng(seed).permutation(len(masked))
        chosen = [masked[place] for place in np.resize(order, steps * BATCH_SEQUENCES).tolist()]
        batches = [chosen[start : start + BATCH_SEQUENCES] for start in range(0, len(chosen), BATCH_SEQUENCES)]
        states = ask(teacher, chosen, with_early=False)
        generator = torch.Generator().manual_seed(seed)
        return cls(batches=batches, answers=rank(states, teacher.head, generator, draw_at=(at,)))


@dataclass(frozen=True, kw_only=True)
class Examination:
    """Masked positions of held-out sequences."""

    batches: Sequence[Sequence[MaskedSequence]]
    teacher_hidden: torch.Tensor
    """`[L, d]` of all batches."""

    @classmethod
    def of(cls, masked: Sequence[MaskedSequence], teacher: Teacher) -> "Examination":
        batches = [masked[start : start + BATCH_SEQUENCES] for start in range(0, len(masked), BATCH_SEQUENCES)]
        states = ask(teacher, masked, with_early=False)
        return cls(batches=batches, teacher_hidden=states.hidden[states.is_masked])


def teach(
    lesson: Lesson, taught: Encoded | None, teacher: Teacher, *, temperature: float, cosine: bool
) -> PreTrainedModel:
    """A student after the lesson; None teaches it from the text alone."""
    num_layers = teacher.model.config.num_hidden_layers
    spec = StudentConfig(teacher_layers=tuple(range(0, num_layers, 2)), dropout=0.0)
    student = build_student(teacher.folder, spec).train()
    optimizer = make_optimizer(student, OPTIMIZER)
    start = 0
    for step, batch in enumerate(lesson.batches):
        rate = OPTIMIZER.lr * schedule(step, len(lesson.batches), OPTIMIZER.warmup_share)
        for group in optimizer.param_groups:
            group["lr"] = rate
        stop = start + sum(len(sequence.kept_positions) for sequence in batch)
        optimizer.zero_grad(set_to_none=True)
        add_gradients(student, batch, taught, slice(start, stop), temperature=temperature, cosine=cosine)
        nn.utils.clip_grad_norm_(student.parameters(), OPTIMIZER.clip_norm)
        optimizer.step()
        start = stop
    return student.eval()


def add_gradients(
    student: PreTrainedModel,
    batch: Sequence[MaskedSequence],
    taught: Encoded | None,
    kept: slice,
    *,
    temperature: float,
    cosine: bool,
) -> None:
    """Adds a batch's gradients; `kept` are its positions among those of `taught`. Logits are held in chunks only."""
    picked = _encode(student, batch, [sequence.kept_positions for sequence in batch])
    num_tokens = sum(len(sequence.input_ids) for sequence in batch)
    leaf = picked.detach().requires_grad_()
    labels = _labels(batch)
    weights = torch.from_numpy(1 / np.concatenate([sequence.rates for sequence in batch]))
    for chunk in chunks(len(leaf)):
        logits, of_chunk = head_logits(head_of(student), leaf[chunk]), labels[chunk]
        guessed = F.cross_entropy(logits[of_chunk >= 0], of_chunk[of_chunk >= 0], reduction="sum")
        loss = WEIGHTS.masked_lm * guessed / max(1, int((labels >= 0).sum()))
        if taught is not None:
            rows = taught.rows(slice(kept.start + chunk.start, kept.start + chunk.stop), temperature)
            assert rows is not None, "a code without a target at this temperature"
            pulled = (cross_entropy(rows, logits, temperature) * weights[chunk]).sum() / num_tokens
            loss = loss + WEIGHTS.soft_labels * temperature**2 * pulled
        loss.backward()
    if cosine:
        assert taught is not None, "no teacher"
        assert taught.hidden is not None, "a code without hidden states"
        distance = 1 - F.cosine_similarity(leaf, taught.hidden[kept], dim=-1)
        (WEIGHTS.cosine * (distance * weights).sum() / num_tokens).backward()
    picked.backward(leaf.grad)


def cross_entropy(rows: Rows, logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """`[K]`: the soft-label loss, but for what no student can change: its gradient is that of `rows.target`."""
    said = (logits / temperature).log_softmax(dim=-1)
    if isinstance(rows, DenseRows):
        return -(rows.log_probabilities.exp() * said).sum(dim=-1)
    inside = -(rows.probabilities * said.gather(-1, rows.ids)).sum(dim=-1)
    if rows.spread == "none":
        return inside
    outside = said.scatter(-1, rows.ids, -torch.inf)
    if rows.spread == "student":
        return inside - rows.rest * outside.logsumexp(dim=-1).clamp(min=np.log(LEAST_SHARE))
    return inside - rows.level(logits.shape[1]) * outside.nan_to_num(neginf=0).sum(dim=-1)


@torch.no_grad()
def examine(student: PreTrainedModel, examination: Examination, teacher: Teacher) -> dict[str, float]:
    """Masked-LM loss and KL(teacher || student) at T = 1, both in nats a masked position."""
    loss, divergence, start = 0.0, 0.0, 0
    for batch in examination.batches:
        hidden = _encode(student, batch, [sequence.label_positions for sequence in batch])
        labels = torch.from_numpy(np.concatenate([sequence.label_ids for sequence in batch])).long()
        for chunk in chunks(len(hidden)):
            said = head_logits(head_of(student), hidden[chunk]).log_softmax(dim=-1)
            of_teacher = examination.teacher_hidden[start + chunk.start : start + chunk.stop]
            exact = head_logits(teacher.head, of_teacher).log_softmax(dim=-1)
            loss += float(F.nll_loss(said, labels[chunk], reduction="sum"))
            divergence += float(F.kl_div(said, exact, reduction="sum", log_target=True))
        start += len(hidden)
    return {"loss": loss / start, "kl": divergence / start}


def _encode(student: PreTrainedModel, batch: Sequence[MaskedSequence], positions: Sequence[np.ndarray]) -> torch.Tensor:
    """Last hidden states at some positions of each sequence, one sequence after the other."""
    input_ids, attention_mask = pad([sequence.input_ids for sequence in batch], student.config.pad_token_id)
    hidden = encode_student(student, input_ids, attention_mask).flatten(0, 1)
    return hidden[places_of(positions, input_ids.shape[1])]


def _labels(batch: Sequence[MaskedSequence]) -> torch.Tensor:
    """int64 `[K]`: the true token at each kept position that is masked, otherwise -1."""
    parts = []
    for sequence in batch:
        labels = np.full(len(sequence.input_ids), -1, dtype=np.int64)
        labels[sequence.label_positions] = sequence.label_ids
        parts.append(labels[sequence.kept_positions])
    return torch.from_numpy(np.concatenate(parts))
