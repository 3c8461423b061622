"""Online distillation written plainly: a live teacher and all its dense rows, the published losses, the whole global
batch at once, in float64.

Legend: B sequences, S padded length, V vocabulary, d teacher's hidden size.
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForMaskedLM, PreTrainedModel

from teacher_cache.format.cache import Cache
from teacher_cache.format.row import Row
from teacher_cache.targets.batching import pad


@dataclass(frozen=True)
class OnlineDistillation:
    """The published recipe with the teacher in memory."""

    teacher: PreTrainedModel
    temperature: float = 2.0

    @classmethod
    def of(cls, cache: Cache) -> "OnlineDistillation":
        model = AutoModelForMaskedLM.from_pretrained(cache.teacher.folder, dtype=torch.float32)
        return cls(model.double().eval())

    def gradients(self, modules: nn.ModuleDict, rows: list[Row]) -> tuple[dict[str, float], torch.Tensor]:
        """Losses and the gradient, all parameters in one vector, of a whole global batch at the modules' values."""
        modules = copy.deepcopy(modules).double()
        modules.zero_grad()
        student, pad_id = modules["student"], self.teacher.config.pad_token_id
        input_ids, attention_mask = pad([row.input_ids for row in rows], pad_id)
        with torch.no_grad():
            taught = self.teacher(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
        learned = student(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
        states = learned.hidden_states[-1]
        if "projection" in modules:
            states = modules["projection"](states)
        is_token = attention_mask.bool()
        parts = {
            "soft_labels": self._soft_labels(taught.logits[is_token], learned.logits[is_token]),
            "masked_lm": F.cross_entropy(learned.logits.flatten(0, 1), labels_of(rows, input_ids.shape[1])),
            "cosine": (1 - F.cosine_similarity(states, taught.hidden_states[-1], dim=-1))[is_token].mean(),
        }
        total = 5 * parts["soft_labels"] + 2 * parts["masked_lm"] + 1 * parts["cosine"]
        total.backward()
        values = {name: value.item() for name, value in (parts | {"total": total}).items()}
        return values, torch.cat([parameter.grad.flatten() for parameter in modules.parameters()])

    def _soft_labels(self, taught: torch.Tensor, learned: torch.Tensor) -> torch.Tensor:
        """T² KL between rows `[N, V]`, its mean over them."""
        teacher = (taught / self.temperature).softmax(dim=-1)
        student = (learned / self.temperature).softmax(dim=-1)
        return self.temperature**2 * (teacher * (teacher.log() - student.log())).sum(dim=-1).mean()


def labels_of(rows: list[Row], length: int) -> torch.Tensor:
    """`[B * S]`: the true token at masked positions, elsewhere what `F.cross_entropy` ignores."""
    labels = torch.full((len(rows), length), -100)
    for place, row in enumerate(rows):
        labels[place, torch.tensor(row.label_positions)] = torch.tensor(row.label_ids).long()
    return labels.flatten()


def relative_error(gradient: torch.Tensor, expected: torch.Tensor) -> float:
    return float((gradient - expected).norm() / expected.norm())
