"""What a build is held against: a loop that only asks the teacher, and the script that people write first.

Legend: B sequences, S padded length, K kept positions, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from teacher_cache.masking import MaskedSequence
from teacher_cache.targets.batching import group_by_tokens, pad
from teacher_cache.teacher import Teacher
from teacher_cache.units import HEAD_POSITIONS

TOP_K = 8
SCRIPT_SEQUENCES = 32
"""Of a batch of the usual script."""


def bare_loop(teacher: Teacher, inputs: Sequence[MaskedSequence], *, pad_id: int, batch_tokens: int) -> None:
    """The forward pass of a build, thrown away: encoder everywhere, head at kept positions, the same micro-batches."""
    for group in group_by_tokens([len(masked.input_ids) for masked in inputs], batch_tokens):
        batch = [inputs[place] for place in group]
        input_ids, attention_mask = pad([masked.input_ids for masked in batch], pad_id)
        length = input_ids.shape[1]
        kept = np.concatenate([row * length + masked.kept_positions for row, masked in enumerate(batch)])
        hidden = teacher.encode(input_ids, attention_mask)[-1].flatten(0, 1)[torch.from_numpy(kept)]
        for chunk in hidden.split(HEAD_POSITIONS):
            teacher.logits(chunk)
    _wait(teacher.device)


def usual_script(model: Any, inputs: Sequence[MaskedSequence], folder: Path, *, pad_id: int) -> None:
    """Whole logits at every position `[B, S, V]`, their top k saved by `torch.save`; batches as the text comes."""
    for number, batch in enumerate(_batches(inputs)):
        input_ids, attention_mask = pad([masked.input_ids for masked in batch], pad_id)
        with torch.inference_mode():
            logits = model(input_ids.to(model.device), attention_mask.to(model.device)).logits
            values, ids = logits.topk(TOP_K, dim=-1)
        torch.save({"values": values.half().cpu(), "ids": ids.int().cpu()}, folder / f"{number}.pt")


def _batches(inputs: Sequence[MaskedSequence]) -> Iterator[list[MaskedSequence]]:
    left = iter(inputs)
    while batch := list(islice(left, SCRIPT_SEQUENCES)):
        yield batch


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
