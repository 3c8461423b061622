"""What a teacher says about positions of a text: all that any code under test may store, computed once.

Whole rows of logits are never kept: through the teacher's head they follow exactly from the last hidden states.

Legend: N positions, K positions of a chunk, R ranks, D draws, V vocabulary, d hidden size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel

from teacher_cache.corpus.sequences import sequences
from teacher_cache.fidelity.measures import early_student, late_student_hidden
from teacher_cache.format.spec import KeepConfig, MaskingConfig
from teacher_cache.masking import MaskedSequence, mask_sequence
from teacher_cache.targets.batching import pad
from teacher_cache.targets.heads import OutputHead, head_from_tensors, head_logits
from teacher_cache.targets.side_information import SideInformation, gather
from teacher_cache.targets.soft_labels import SoftLabels, keep_top
from teacher_cache.units import vocabulary_of

SEQUENCE_LENGTH = 128
KEEP = KeepConfig(masked=1.0, unmasked=0.1)
TEMPERATURES = (1.0, 2.0, 4.0)
"""At which the mass of the rest is stored."""
MAX_RANKS = 128
NUM_DRAWS = 200
CHUNK_POSITIONS = 256
"""Positions whose whole rows are held at once: 256 * 30,522 float32 are 31 MB."""
BATCH_SEQUENCES = 32


@dataclass(frozen=True)
class Teacher:
    """A masked-LM teacher in float32 on the CPU."""

    folder: Path
    model: PreTrainedModel
    tokenizer: Any

    @classmethod
    def load(cls, folder: Path) -> "Teacher":
        model = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
        return cls(folder, model, AutoTokenizer.from_pretrained(folder))

    @property
    def head(self) -> OutputHead:
        """Its tensors take no gradient."""
        return head_from_tensors(self.model.config.to_dict(), lambda name: self.model.get_parameter(name).detach())

    @property
    def vocab_size(self) -> int:
        return int(self.model.config.vocab_size)


@dataclass(frozen=True, kw_only=True)
class States:
    """Hidden states at N positions, and what a reader knows of these besides."""

    hidden: torch.Tensor
    """float32 `[N, d]`: the teacher's last."""
    early: torch.Tensor
    """float32 `[N, d]`: those of a student early in training; see `measures.early_student`."""
    is_masked: torch.Tensor
    """bool `[N]`."""
    token_ids: torch.Tensor
    """int64 `[N, 3]`: see `SideInformation`."""

    def __len__(self) -> int:
        return len(self.hidden)

    def __getitem__(self, rows: Any) -> "States":
        return States(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What the teacher says at N positions."""

    states: States
    late: torch.Tensor
    """float32 `[N, d]`: hidden states of a student late in training; see `measures.late_student_hidden`."""
    ranked_ids: torch.Tensor
    """int64 `[N, R]`: the most probable tokens, best first."""
    ranked_logits: torch.Tensor
    """float32 `[N, R]`."""
    beyond: dict[float, torch.Tensor]
    """Temperature to `[N]`: log-sum-exp of all logits beyond the ranks; minus infinity where there are none."""
    drawn_ids: dict[float, torch.Tensor]
    """Temperature to int64 `[N, D]`: tokens drawn with replacement from the row at that temperature; may be empty."""
    drawn_logits: dict[float, torch.Tensor]
    """Their logits."""

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, rows: Any) -> "Answers":
        def picked(values: dict[float, torch.Tensor]) -> dict[float, torch.Tensor]:
            return {temperature: value[rows] for temperature, value in values.items()}

        return Answers(
            states=self.states[rows],
            late=self.late[rows],
            ranked_ids=self.ranked_ids[rows],
            ranked_logits=self.ranked_logits[rows],
            beyond=picked(self.beyond),
            drawn_ids=picked(self.drawn_ids),
            drawn_logits=picked(self.drawn_logits),
        )

    def log_sum_exp(self, temperature: float, start: int = 0) -> torch.Tensor:
        """`[N]`: of logits / temperature, of all ranks from `start` on; exact, as nothing is subtracted."""
        ranked = (self.ranked_logits[:, start:] / temperature).logsumexp(dim=-1)
        return torch.logaddexp(ranked, self.beyond[temperature])

    def log_probabilities(self, temperature: float, top_k: int) -> torch.Tensor:
        """Of the best k tokens, float32 `[N, k]`, best first."""
        return self.ranked_logits[:, :top_k] / temperature - self.log_sum_exp(temperature)[:, None]

    def soft_labels(self, top_k: int) -> SoftLabels:
        """As `keep_top` gives them."""
        ids, order = self.ranked_ids[:, :top_k].sort(dim=-1)
        return SoftLabels(
            topk_ids=ids,
            topk_logits=self.ranked_logits[:, :top_k].gather(-1, order),
            rest_log_sum_exp={temperature: self.log_sum_exp(temperature, top_k) for temperature in self.beyond},
        )

    def side(self, soft_labels: SoftLabels) -> SideInformation:
        return SideInformation(
            is_masked=self.states.is_masked, token_ids=self.states.token_ids, soft_labels=soft_labels
        )


def read_text(path: Path, teacher: Teacher, *, seed: int) -> list[MaskedSequence]:
    """A text's sequences, tokenised and packed as in `held_out.py`, masked by `seed`."""
    stream = sequences(
        str(path),
        format="text",
        text_field="text",
        tokenizer=teacher.tokenizer,
        sequence_length=min(SEQUENCE_LENGTH, teacher.model.config.max_position_embeddings),
        packing="full",
    )
    vocabulary = vocabulary_of(teacher.tokenizer)
    masking = MaskingConfig(seed=seed)
    return [
        mask_sequence(sequence.input_ids, place, 0, masking=masking, keep=KEEP, vocabulary=vocabulary)
        for place, sequence in enumerate(stream)
    ]


def spread(masked: Sequence[MaskedSequence], count: int) -> list[MaskedSequence]:
    """About `count` sequences, or all, evenly spread over the text."""
    count = min(count, len(masked))
    return [masked[(2 * place + 1) * len(masked) // (2 * count)] for place in range(count)]


@torch.no_grad()
def ask(teacher: Teacher, masked: Sequence[MaskedSequence], *, with_early: bool = True) -> States:
    """Hidden states at the kept positions, sequence after sequence; `early` is the teacher's where it is not wanted."""
    early = early_student(teacher.model) if with_early else None
    parts = []
    for start in range(0, len(masked), BATCH_SEQUENCES):
        batch = masked[start : start + BATCH_SEQUENCES]
        input_ids, attention_mask = pad([sequence.input_ids for sequence in batch], teacher.tokenizer.pad_token_id)
        parts.append(_ask(teacher.model, early, batch, input_ids, attention_mask))
    return States(**{field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(States)})


def _ask(
    model: PreTrainedModel,
    early: PreTrainedModel | None,
    batch: Sequence[MaskedSequence],
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
) -> States:
    kept = places_of([sequence.kept_positions for sequence in batch], input_ids.shape[1])
    side = gather(
        input_ids,
        attention_mask,
        label_places=places_of([sequence.label_positions for sequence in batch], input_ids.shape[1]),
        kept_places=kept,
        soft_labels=_none(len(kept)),
    )
    hidden = _encode(model, input_ids, attention_mask)[kept]
    of_early = _encode(early, input_ids, attention_mask)[kept] if early is not None else hidden
    return States(hidden=hidden, early=of_early, is_masked=side.is_masked, token_ids=side.token_ids)


def _encode(model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Last hidden states `[B * S, d]`."""
    states: torch.Tensor = model.base_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    return states.flatten(0, 1)


def _none(num_positions: int) -> SoftLabels:
    """Soft labels of no token: the head has not run yet."""
    empty = torch.empty(num_positions, 0)
    return SoftLabels(topk_ids=empty.long(), topk_logits=empty, rest_log_sum_exp={})


def places_of(positions: Sequence[np.ndarray], length: int) -> torch.Tensor:
    """int64: places in rows that are padded to `length` and flattened."""
    return torch.from_numpy(np.concatenate([row * length + places for row, places in enumerate(positions)]))


@torch.no_grad()
def rank(states: States, head: OutputHead, generator: torch.Generator, *, draw_at: Sequence[float] = ()) -> Answers:
    """Runs the head on hidden states, and samples rows at some temperatures.

    `generator` decides draws and the late student's noise.
    """
    parts = [_rank(states[chunk].hidden, head, generator, draw_at) for chunk in chunks(len(states))]

    def joined(name: str) -> dict[float, torch.Tensor]:
        return {key: torch.cat([part[name][key] for part in parts]) for key in parts[0][name]}

    return Answers(
        states=states,
        late=late_student_hidden(states.hidden, states.hidden.std(dim=0), generator),
        ranked_ids=torch.cat([part["ids"] for part in parts]),
        ranked_logits=torch.cat([part["logits"] for part in parts]),
        beyond=joined("beyond"),
        drawn_ids=joined("drawn_ids"),
        drawn_logits=joined("drawn_logits"),
    )


def _rank(
    hidden: torch.Tensor, head: OutputHead, generator: torch.Generator, draw_at: Sequence[float]
) -> dict[str, Any]:
    rows = head_logits(head, hidden)
    num_ranks = min(MAX_RANKS, rows.shape[1] - 1)
    top = keep_top(rows, top_k=num_ranks, temperatures=TEMPERATURES)
    logits, order = top.topk_logits.sort(dim=-1, descending=True)
    drawn = {
        temperature: (rows / temperature).softmax(dim=-1).multinomial(NUM_DRAWS, replacement=True, generator=generator)
        for temperature in draw_at
    }
    return {
        "ids": top.topk_ids.gather(-1, order),
        "logits": logits,
        "beyond": top.rest_log_sum_exp,
        "drawn_ids": drawn,
        "drawn_logits": {temperature: rows.gather(-1, ids) for temperature, ids in drawn.items()},
    }


def chunks(num_positions: int, size: int = CHUNK_POSITIONS) -> Iterator[slice]:
    for start in range(0, num_positions, size):
        yield slice(start, min(start + size, num_positions))
