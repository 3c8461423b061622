"""Learning a task from a fine-tuned teacher's logits: pure functions of tensors.

The second step of distillation (arXiv 1910.01108, section 3), as the authors' `run_squad_w_distillation.py` does it.

Legend: N answers, C outputs of the task, B features, S tokens.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional as F

from teacher_cache.tasks.record import Kind
from teacher_cache.tasks.tagging import IGNORED


def soft_loss(
    kind: Kind, student: torch.Tensor, teacher: torch.Tensor, *, mask: torch.Tensor | None, temperature: float
) -> torch.Tensor:
    """What a student's logits lack of the teacher's, of the same shape, on average over answers.

    Args:
        student: [B, C]; of tagging and question answering [B, S, C].
        mask: [B, S] of these two, where there is an answer (tagging) or can be one; otherwise None.
        temperature: divides both sides' logits; of regression, whose loss is the mean squared error, of no effect.
    """
    if kind == "regression":
        return F.mse_loss(student.float(), teacher.float())
    if kind == "classification":
        return divergence(student, teacher, temperature)
    assert mask is not None
    if kind == "tagging":
        return divergence(student[mask], teacher[mask], temperature)
    start, end = (
        divergence(_only(student[..., side] / temperature, mask), _only(teacher[..., side] / temperature, mask), 1.0)
        for side in (0, 1)
    )
    return temperature**2 * (start + end) / 2


def task_logits(outputs: Any) -> torch.Tensor:
    """[B, C] or [B, S, C] of a model's outputs; start and end of an answer are two outputs."""
    if "start_logits" in outputs:
        return torch.stack([outputs["start_logits"], outputs["end_logits"]], dim=-1)
    logits: torch.Tensor = outputs["logits"]
    return logits


def answer_mask(kind: Kind, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """[B, S]: where a batch has labels (tagging), or tokens (question answering)."""
    if kind == "tagging":
        return inputs["labels"] != IGNORED
    return inputs["attention_mask"].bool() if kind == "question_answering" else None


def divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """T² KL(teacher ‖ student) of logits [N, C] at a temperature T, on average over N (arXiv 1503.02531, section 2)."""
    found = F.kl_div(
        (student.float() / temperature).log_softmax(dim=-1),
        (teacher.float() / temperature).log_softmax(dim=-1),
        reduction="batchmean",
        log_target=True,
    )
    return temperature**2 * found


def _only(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[B, S] logits, such that the softmax has nothing outside the mask."""
    logits = logits.float()
    return logits.masked_fill(~mask, torch.finfo(logits.dtype).min)  # infinity less infinity would be no number
