"""Codes against exact rows: bytes, gradient errors and divergence of each, over the same positions.

Legend: N positions, K positions of a chunk, V vocabulary, d hidden size.
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from infra.bench.codes.answers import CHUNK_POSITIONS, Answers, chunks
from infra.bench.codes.contenders import OURS, Codec, Encoded
from infra.bench.codes.gradients import Deviations, ExactSums, Student
from teacher_cache.targets.heads import OutputHead, head_logits

STUDENTS = ("late", "early")
TEMPERATURES = (1.0, 2.0)
FEW_POSITIONS = 1536
"""Gradients are compared here and over all: the more positions are summed, the more of unbiased errors cancels."""
CODES_AT_ONCE = 12
"""Each needs `[V, d]` float32 four times: 190 MB at 30,522 * 384."""

Errors = dict[tuple[str, float, int], float]
"""By student, temperature and number of positions."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One code's figures; all but `kept_bytes` over masked positions."""

    name: str
    family: str
    hidden_bytes: float
    """A masked position."""
    label_bytes: float
    kept_bytes: float
    """A kept position, masked or not, at the rates of the kept ones in the text."""
    cosine: float | None
    """Mean, of decoded and true hidden states."""
    errors: Errors
    kl: dict[float, float]
    """Temperature to mean KL(teacher || rebuilt) in nats, where rows have full support."""

    @property
    def num_bytes(self) -> float:
        return self.hidden_bytes + self.label_bytes

    @property
    def is_ours(self) -> bool:
        return self.family == OURS

    def error(self, student: str, temperature: float, num_positions: int | None = None) -> float | None:
        """At a number of positions, by default the most."""
        found = {n: value for (name, at, n), value in self.errors.items() if (name, at) == (student, temperature)}
        return found.get(num_positions or max(found, default=0))


@dataclass(frozen=True, kw_only=True)
class Data:
    """Positions on which codes are measured."""

    masked: Answers
    unmasked: Answers
    """For bytes only."""
    masked_share: float
    """Of kept positions."""


@torch.no_grad()
def measure(codecs: Sequence[Codec], data: Data, head: OutputHead) -> list[Measured]:
    """Figures of all codes, in their order."""
    found = []
    for start in range(0, len(codecs), CODES_AT_ONCE):
        begin, group = time.perf_counter(), codecs[start : start + CODES_AT_ONCE]
        found += _measure(group, data, head)
        done = f"{start + len(group)} of {len(codecs)} codes"
        print(f"{done}, {time.perf_counter() - begin:.0f} s for the last {len(group)}", file=sys.stderr, flush=True)
    return found


def _measure(codecs: Sequence[Codec], data: Data, head: OutputHead) -> list[Measured]:
    encoded = [codec.encode(data.masked) for codec in codecs]
    unmasked_bytes = [codec.encode(data.unmasked).num_bytes / max(1, len(data.unmasked)) for codec in codecs]
    errors: list[Errors] = [{} for _ in codecs]
    divergences: list[dict[float, float]] = [{} for _ in codecs]
    for temperature in TEMPERATURES:
        _compare(encoded, data.masked, head, temperature, errors, divergences)
    num = len(data.masked)
    return [
        Measured(
            name=codec.name,
            family=codec.family,
            hidden_bytes=code.hidden_bytes / num,
            label_bytes=code.label_bytes / num,
            kept_bytes=data.masked_share * code.num_bytes / num + (1 - data.masked_share) * of_unmasked,
            cosine=_cosine(code, data.masked),
            errors=error,
            kl={temperature: value / num for temperature, value in divergence.items()},
        )
        for codec, code, of_unmasked, error, divergence in zip(
            codecs, encoded, unmasked_bytes, errors, divergences, strict=True
        )
    ]


def _compare(
    encoded: Sequence[Encoded],
    answers: Answers,
    head: OutputHead,
    temperature: float,
    errors: list[Errors],
    divergences: list[dict[float, float]],
) -> None:
    """Adds the figures of one temperature."""
    size = STUDENTS, head.decoder_weight.shape[0], answers.states.hidden.shape[1]
    sums, deviations = ExactSums(*size), [Deviations(*size) for _ in encoded]
    defined = [True for _ in encoded]
    for chunk, exact, students in _chunks(answers, head, temperature):
        sums.add(exact, students)
        for place, code in enumerate(encoded):
            rows = code.rows(chunk, temperature)
            if rows is None:
                defined[place] = False
                continue
            deviations[place].add(rows, exact, students)
            divergence = rows.kl(exact)
            if divergence is not None:
                total = divergences[place].get(temperature, 0.0)
                divergences[place][temperature] = total + float(divergence.double().sum())
        if chunk.stop in (FEW_POSITIONS, len(answers)):
            for place, deviation in enumerate(deviations):
                for name in STUDENTS if defined[place] else ():
                    errors[place][name, temperature, chunk.stop] = deviation.error(name, sums)


def _chunks(
    answers: Answers, head: OutputHead, temperature: float
) -> Iterator[tuple[slice, torch.Tensor, Mapping[str, Student]]]:
    """Each chunk with the teacher's probabilities `[K, V]` and the students."""

    def probabilities(hidden: torch.Tensor) -> torch.Tensor:
        return (head_logits(head, hidden) / temperature).softmax(dim=-1)

    for chunk in chunks(len(answers), CHUNK_POSITIONS):
        hidden = {"late": answers.late[chunk], "early": answers.states.early[chunk]}
        students = {name: Student(probabilities(hidden[name]), hidden[name]) for name in STUDENTS}
        yield chunk, probabilities(answers.states.hidden[chunk]), students


def _cosine(code: Encoded, answers: Answers) -> float | None:
    if code.hidden is None:
        return None
    return float(torch.cosine_similarity(code.hidden.double(), answers.states.hidden.double(), dim=-1).mean())
