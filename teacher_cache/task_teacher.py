"""A fine-tuned model of the BERT family as a teacher of its task: what it answers at given places.

Shapes: B sequences, S positions, P places, C outputs of the task.
"""

import copy
import inspect
from typing import Any

import torch
from torch import nn

from teacher_cache.format.spec import Identity, TaskKind
from teacher_cache.tasks.segments import segments_of
from teacher_cache.teacher import LoadedTeacher, Teacher


def teacher_of(loaded: LoadedTeacher, identity: Identity, device: torch.device) -> "Teacher | TaskTeacher":
    """The teacher that a cache's identity asks for, on a device."""
    dtype = getattr(torch, identity.teacher.dtype)
    if identity.task is None:
        return Teacher(loaded, dtype, device)
    return TaskTeacher(loaded, identity.task.kind, dtype, device)


class TaskTeacher:
    """A loaded teacher cast to a dtype on a device, for inference; its head computes in float32."""

    def __init__(self, loaded: LoadedTeacher, kind: TaskKind, dtype: torch.dtype, device: torch.device | str) -> None:
        model: Any = copy.deepcopy(loaded.model)
        model.to(device=device, dtype=dtype)
        for name, part in loaded.model.named_children():
            if part is not loaded.model.base_model:  # 8 bits of a bfloat16 logit would tie the classes
                exact = copy.deepcopy(part).to(device=device, dtype=torch.float32)
                exact.register_forward_pre_hook(_in_float32)
                setattr(model, name, exact)
        self.device = torch.device(device)
        self._model, self._kind = model, kind
        self._sep_id = loaded.tokenizer.sep_token_id if _takes_segments(loaded) else None

    @torch.inference_mode()
    def answers(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """[B, S] token ids and mask (0 at padding), [P] places in the flattened batch → [P, C] float32 logits.

        A model that answers of a whole sequence says the same at each of its places.
        """
        input_ids, attention_mask = input_ids.to(self.device), attention_mask.to(self.device)
        places, segments = places.to(self.device), {}
        if self._sep_id is not None:
            segments["token_type_ids"] = segments_of(input_ids, self._sep_id) * attention_mask  # padding has segment 0
        said = self._model(input_ids=input_ids, attention_mask=attention_mask, **segments)
        if self._kind == "question_answering":
            logits = torch.stack([said.start_logits, said.end_logits], dim=-1)
        else:
            logits = said.logits
        length = input_ids.shape[1]
        if logits.ndim == 2:
            logits = logits[:, None].expand(-1, length, -1)
        return logits[places // length, places % length].float()


def _takes_segments(loaded: LoadedTeacher) -> bool:
    parameters = inspect.signature(loaded.model.forward).parameters
    return "token_type_ids" in parameters and "token_type_ids" in loaded.tokenizer.model_input_names


def _in_float32(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(values.float() for values in inputs)
