"""One unit of work: sequences in, rows out. Plain torch, no Ray.

Legend: B sequences, S padded length, K kept positions, d hidden size, V vocabulary; all of one micro-batch.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from teacher_cache.errors import UserError
from teacher_cache.format.row import Row
from teacher_cache.format.sequences import StoredSequence
from teacher_cache.format.spec import Identity
from teacher_cache.masking import MaskedSequence, Vocabulary, mask_sequence
from teacher_cache.targets.batching import group_by_tokens, pad
from teacher_cache.targets.soft_labels import SoftLabels, keep_top
from teacher_cache.teacher import Teacher

HEAD_POSITIONS = 1024
"""Positions whose whole logits are held at once: 1,024 * 30,522 float32 are 125 MB."""


def compute_unit(
    sequences: Sequence[StoredSequence],
    view: int,
    *,
    teacher: Teacher,
    vocabulary: Vocabulary,
    pad_id: int,
    identity: Identity,
    batch_tokens: int,
) -> list[Row]:
    """Masks sequences for a view and asks the teacher; rows in the order of the sequences.

    Raises:
        UserError: the teacher's answer is not finite.
    """
    masked = [
        mask_sequence(
            sequence.input_ids,
            sequence.sequence_id,
            view,
            masking=identity.masking,
            keep=identity.keep,
            vocabulary=vocabulary,
        )
        for sequence in sequences
    ]
    rows: dict[int, Row] = {}
    for group in group_by_tokens([len(sequence.input_ids) for sequence in sequences], batch_tokens):
        inputs = [masked[place] for place in group]
        hidden, soft_labels = _ask(inputs, teacher=teacher, pad_id=pad_id, identity=identity)
        stops = np.cumsum([len(sequence.kept_positions) for sequence in inputs])
        starts = np.concatenate([[0], stops])
        for place, start, stop in zip(group, starts, stops, strict=False):
            rows[place] = _row(sequences[place], masked[place], hidden, soft_labels, slice(start, stop))
    return [rows[place] for place in range(len(sequences))]


def _ask(
    inputs: Sequence[MaskedSequence], *, teacher: Teacher, pad_id: int, identity: Identity
) -> tuple[dict[int, torch.Tensor], SoftLabels]:
    """Hidden states by layer `[K, d]` and soft labels `[K, …]`, float32 on CPU, sequence after sequence."""
    input_ids, attention_mask = pad([sequence.input_ids for sequence in inputs], pad_id)
    length = input_ids.shape[1]
    places = np.concatenate([row * length + sequence.kept_positions for row, sequence in enumerate(inputs)])
    kept = torch.from_numpy(places).to(teacher.device)
    layers = identity.hidden.stored_layers
    with torch.inference_mode():
        states = teacher.encode(input_ids.to(teacher.device), attention_mask.to(teacher.device), (*layers, -1))
        hidden = {layer: state.flatten(0, 1)[kept] for layer, state in states.items()}
        soft_labels = _soft_labels(teacher, hidden[-1], identity)
    answers = (*hidden.values(), soft_labels.topk_logits)
    if not all(torch.isfinite(values).all() for values in answers):
        raise UserError("the teacher's answer is not finite (NaN or infinity); try teacher.dtype: float32")
    return {layer: hidden[layer].float().cpu() for layer in layers}, soft_labels


def _soft_labels(teacher: Teacher, hidden: torch.Tensor, identity: Identity) -> SoftLabels:
    config = identity.soft_labels
    chunks = [
        keep_top(teacher.logits(chunk), top_k=config.top_k, temperatures=config.temperatures)
        for chunk in hidden.split(HEAD_POSITIONS)
    ]
    return SoftLabels.concatenate(chunks).to(torch.device("cpu"))


def _row(
    sequence: StoredSequence, masked: MaskedSequence, hidden: dict[int, torch.Tensor], soft: SoftLabels, kept: slice
) -> Row:
    return Row(
        sequence_id=sequence.sequence_id,
        document_id=sequence.document_id,
        input_ids=masked.input_ids,
        label_positions=masked.label_positions,
        label_ids=masked.label_ids,
        kept_positions=masked.kept_positions,
        rates=masked.rates,
        topk_ids=soft.topk_ids[kept].numpy().astype(np.int32),
        topk_logits=soft.topk_logits[kept].numpy(),
        rest_log_sum_exp={temperature: rest[kept].numpy() for temperature, rest in soft.rest_log_sum_exp.items()},
        hidden={layer: states[kept].numpy() for layer, states in hidden.items()},
    )


def vocabulary_of(tokenizer: Any, mask_probability: np.ndarray | None = None) -> Vocabulary:
    """What masking must know of a tokenizer."""
    return Vocabulary(
        size=len(tokenizer),
        mask_id=tokenizer.mask_token_id,
        special_ids=tuple(sorted(tokenizer.all_special_ids)),
        mask_probability=mask_probability,
    )
