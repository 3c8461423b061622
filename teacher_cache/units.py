"""One unit of work: sequences in, rows out. Plain torch, no Ray.

Legend: B sequences, S padded length, K kept positions, d hidden size, V vocabulary; all of one micro-batch.
"""

import contextlib
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch

from teacher_cache.errors import UserError
from teacher_cache.format.row import Row
from teacher_cache.format.sequences import StoredSequence
from teacher_cache.format.spec import Identity
from teacher_cache.masking import MaskedSequence, Vocabulary, mask_sequence, unmasked
from teacher_cache.targets.batching import group_by_tokens, pad
from teacher_cache.targets.soft_labels import SoftLabels, keep_top
from teacher_cache.task_teacher import TaskTeacher
from teacher_cache.teacher import Teacher

Item = TypeVar("Item")
Result = TypeVar("Result")

HEAD_POSITIONS = 1024
"""Positions whose whole logits are held at once: 1,024 * 30,522 float32 are 125 MB."""


MaskedUnit = Sequence[tuple[StoredSequence, MaskedSequence]]
"""Each sequence of a unit, and how a view has it."""


def mask_unit(
    sequences: Sequence[StoredSequence], view: int, *, identity: Identity, vocabulary: Vocabulary
) -> MaskedUnit:
    """Each sequence as a view has it: a task's inputs as they are."""
    if identity.task:
        return [(sequence, unmasked(sequence, identity.task.kind)) for sequence in sequences]
    options: Any = {"masking": identity.masking, "keep": identity.keep, "vocabulary": vocabulary}
    return [
        (sequence, mask_sequence(sequence.input_ids, sequence.sequence_id, view, **options)) for sequence in sequences
    ]


def ask_unit(
    unit: MaskedUnit, *, teacher: Teacher | TaskTeacher, pad_id: int, identity: Identity, batch_tokens: int
) -> list[Row]:
    """What the teacher says of a masked unit; rows in its order.

    Raises:
        UserError: the teacher's answer is not finite.
    """
    rows: dict[int, Row] = {}
    max_tokens = micro_batch_tokens(batch_tokens, teacher.device)
    groups = group_by_tokens([len(masked.input_ids) for _, masked in unit], max_tokens)

    def ask(group: list[int]) -> _Answer:
        return _ask([unit[place][1] for place in group], teacher, pad_id, identity)

    # A GPU computes on while an answer is taken apart.
    asked = _by_threads(groups, ask) if teacher.device.type == "cpu" else _one_ahead(map(ask, groups))
    with contextlib.closing(asked) as answers:
        for group, answer in zip(groups, answers, strict=True):
            answer.wait()
            stops = np.cumsum([len(unit[place][1].kept_positions) for place in group])
            for place, kept in zip(group, map(slice, [0, *stops], stops), strict=False):
                rows[place] = _row(*unit[place], answer, kept)
    return [rows[place] for place in range(len(unit))]


def micro_batch_tokens(batch_tokens: int, device: torch.device) -> int:
    """Of `batch_tokens`, what a micro-batch has: on a CPU as many are under way as this thread may use threads."""
    return max(1, batch_tokens // torch.get_num_threads()) if device.type == "cpu" else batch_tokens


def _by_threads(items: Sequence[Item], work: Callable[[Item], Result]) -> Generator[Result, None, None]:
    """Results in the items' order, each made by one thread alone: threads that share an item wait for each other at
    every operation."""
    num_threads = torch.get_num_threads()

    def alone(item: Item) -> Result:
        torch.set_num_threads(1)  # of this thread, and of those that begin after it
        return work(item)

    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="ask")
    try:
        yield from pool.map(alone, items)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(num_threads)


def _one_ahead(items: Iterable[Item]) -> Generator[Item, None, None]:
    """The same items, each once the next one is made."""
    left = iter(items)
    held = list(islice(left, 1))
    for item in left:
        yield held.pop()
        held.append(item)
    yield from held


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """Of a micro-batch, sequence after sequence, in CPU memory once waited for."""

    hidden: dict[int, torch.Tensor]
    """Layer to float32 `[K, d]`."""
    soft_labels: SoftLabels
    copied: torch.cuda.Event | None

    def wait(self) -> None:
        if self.copied:
            self.copied.synchronize()
        if not all(torch.isfinite(values).all() for values in (*self.hidden.values(), self.soft_labels.topk_logits)):
            raise UserError("the teacher's answer is not finite (NaN or infinity); try teacher.dtype: float32")


def _ask(inputs: Sequence[MaskedSequence], teacher: Teacher | TaskTeacher, pad_id: int, identity: Identity) -> _Answer:
    """Asks about one micro-batch; on a GPU without waiting for the answer."""
    input_ids, attention_mask = pad([sequence.input_ids for sequence in inputs], pad_id)
    length = input_ids.shape[1]
    places = np.concatenate([row * length + sequence.kept_positions for row, sequence in enumerate(inputs)])
    is_cuda = teacher.device.type == "cuda"
    tensors = (input_ids, attention_mask, torch.from_numpy(places))
    ids, mask, kept = ((t.pin_memory() if is_cuda else t).to(teacher.device, non_blocking=True) for t in tensors)
    cpu = torch.device("cpu")
    with torch.inference_mode():
        soft_labels, hidden = _said(teacher, ids, mask, kept, identity)
        return _Answer(
            soft_labels=soft_labels.to(cpu),
            hidden={layer: states.float().to(cpu, non_blocking=True) for layer, states in hidden.items()},
            copied=torch.cuda.current_stream(teacher.device).record_event() if is_cuda else None,
        )


def _said(
    teacher: Teacher | TaskTeacher, ids: torch.Tensor, mask: torch.Tensor, kept: torch.Tensor, identity: Identity
) -> tuple[SoftLabels, dict[int, torch.Tensor]]:
    """What the teacher says at kept places of a padded batch, and the hidden states to be stored, by layer."""
    if isinstance(teacher, TaskTeacher):
        return keep_top(teacher.answers(ids, mask, kept), top_k=identity.soft_labels.top_k, temperatures=()), {}
    layers = identity.hidden.stored_layers
    states = teacher.encode(ids, mask, (*layers, -1))
    hidden = {layer: state.flatten(0, 1)[kept] for layer, state in states.items()}
    return _soft_labels(teacher, hidden[-1], identity), {layer: hidden[layer] for layer in layers}


def _soft_labels(teacher: Teacher, hidden: torch.Tensor, identity: Identity) -> SoftLabels:
    config = identity.soft_labels
    chunks = [
        keep_top(teacher.logits(chunk), top_k=config.top_k, temperatures=config.temperatures)
        for chunk in hidden.split(HEAD_POSITIONS)
    ]
    return SoftLabels.concatenate(chunks)


def _row(sequence: StoredSequence, masked: MaskedSequence, answer: _Answer, kept: slice) -> Row:
    soft = answer.soft_labels
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
        hidden={layer: states[kept].numpy() for layer, states in answer.hidden.items()},
    )


def vocabulary_of(tokenizer: Any, mask_probability: np.ndarray | None = None) -> Vocabulary:
    """What masking must know of a tokenizer."""
    return Vocabulary(
        size=len(tokenizer),
        mask_id=tokenizer.mask_token_id,
        special_ids=tuple(sorted(tokenizer.all_special_ids)),
        mask_probability=mask_probability,
    )
