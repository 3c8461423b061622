"""Other systems' codes of teacher outputs, written anew from their descriptions.

Every one is given the best reading of what it leaves open: masses of the rest are exact at the temperature in use,
and samples are drawn at the temperature in use.

Legend: N positions, k tokens of a target, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from infra.bench.codes.answers import Answers
from infra.bench.codes.contenders import Encoded
from infra.bench.codes.gradients import SparseRows

Term = int | Literal["sqrt"]
VALUE_BITS = 16
"""Of a log-probability in float16 or bfloat16."""
COEFFICIENT_BITS = 32
SMALLEST_SINGULAR_VALUE = 1e-5
"""Of DistillKit's least squares; smaller ones count as 0."""
LEAST_MISSING = 1e-8
"""Of the mass that DistillKit's loss takes to be missing."""
SAMPLE_BYTES = 3
"""An entry of random sampling KD: token id and count (arXiv 2503.16870)."""


def id_bits(vocab_size: int) -> int:
    return math.ceil(math.log2(vocab_size))


@dataclass(frozen=True)
class TopK:
    """The k most probable tokens: ids at ceil(log2 V) bits and log-probabilities in float16.

    What else there is goes nowhere (`none`: the top k renormalised), evenly to all other tokens (`uniform`), or into
    one bucket (`student`); the latter two store the mass of the rest in another float16.
    """

    top_k: int
    spread: Literal["none", "uniform", "student"]
    vocab_size: int

    @property
    def name(self) -> str:
        return (
            f"top-{self.top_k} " + {"none": "renormalised", "uniform": "uniform tail", "student": "bucket"}[self.spread]
        )

    @property
    def family(self) -> str:
        return "top-k " + {"none": "renormalised", "uniform": "uniform tail", "student": "bucket"}[self.spread]

    @property
    def bytes_per_position(self) -> int:
        bits = self.top_k * (id_bits(self.vocab_size) + VALUE_BITS)
        return math.ceil(bits / 8) + (0 if self.spread == "none" else VALUE_BITS // 8)

    def encode(self, answers: Answers) -> Encoded:
        def rows(chunk: slice, temperature: float) -> SparseRows:
            part = answers[chunk]
            values = part.log_probabilities(temperature, self.top_k).half().float()
            rest = part.log_sum_exp(temperature, self.top_k) - part.log_sum_exp(temperature)
            return bucketed(part.ranked_ids[:, : self.top_k], values, rest.half().float(), self.spread)

        return Encoded(hidden_bytes=0, label_bytes=self.bytes_per_position * len(answers), rows=rows)


def bucketed(
    ids: torch.Tensor,
    log_probabilities: torch.Tensor,
    log_rest: torch.Tensor,
    spread: Literal["none", "uniform", "student"],
) -> SparseRows:
    """Rows of k tokens `[N, k]` and the rest `[N]`, made to sum to 1; with spread `none` the rest is dropped."""
    if spread == "none":
        return SparseRows(
            ids=ids, probabilities=log_probabilities.softmax(dim=-1), rest=torch.zeros(len(ids)), spread=spread
        )
    shares = torch.cat([log_probabilities, log_rest[:, None]], dim=-1).softmax(dim=-1)
    return SparseRows(ids=ids, probabilities=shares[:, :-1], rest=shares[:, -1], spread=spread)


@dataclass(frozen=True)
class RandomSampling:
    """Random sampling KD (arXiv 2503.16870): tokens drawn with replacement from the row, target count / draws.

    Bytes are `SAMPLE_BYTES` a unique token, as published. The paper distils at the temperature of the draws. For a
    higher one there is no target; here it gets one by importance weights, normalised, from logits of the drawn tokens
    that the published code does not hold.
    """

    num_draws: int
    drawn_at: float

    @property
    def name(self) -> str:
        return f"random sampling KD, {self.num_draws} draws at T = {self.drawn_at:g}"

    @property
    def family(self) -> str:
        return f"random sampling KD, drawn at T = {self.drawn_at:g}"

    def encode(self, answers: Answers) -> Encoded:
        drawn_ids = answers.drawn_ids[self.drawn_at][:, : self.num_draws]
        drawn_logits = answers.drawn_logits[self.drawn_at][:, : self.num_draws]

        def rows(chunk: slice, temperature: float) -> SparseRows | None:
            if temperature < self.drawn_at:
                return None
            # Equal weights at the temperature of the draws.
            weights = (drawn_logits[chunk] * (1 / temperature - 1 / self.drawn_at)).softmax(dim=-1)
            return SparseRows(
                ids=drawn_ids[chunk], probabilities=weights, rest=torch.zeros(len(weights)), spread="none"
            )

        num_unique = int(unique_per_row(drawn_ids).sum())
        return Encoded(hidden_bytes=0, label_bytes=SAMPLE_BYTES * num_unique, rows=rows)


def unique_per_row(ids: torch.Tensor) -> torch.Tensor:
    """int64 `[N]`: how many different values each row of `[N, D]` has."""
    ordered = ids.sort(dim=-1).values
    return (ordered[:, 1:] != ordered[:, :-1]).sum(dim=-1) + 1


@dataclass(frozen=True, kw_only=True)
class DistillKit:
    """DistillKit's log-probabilities: some exact in bfloat16, a least-squares curve over rank for the others.

    Curve and loss as in its version 1.0. Nothing is stored of what lies outside the top k. `zero` renormalises the
    top k at the temperature in use; `symmetric_uniform` puts the rest into one bucket, 1 - the sum of the rebuilt
    probabilities, which at another temperature is treated as if it were one token.
    """

    setting: str
    top_k: int
    exact_k: int
    terms: tuple[Term, ...]
    normalize_t: bool
    """Ranks run from 0 to 1 instead of from 0 to their number: far better conditioned, and not the default."""
    tail: Literal["zero", "symmetric_uniform"]
    vocab_size: int

    @property
    def name(self) -> str:
        ranks = "ranks normalised" if self.normalize_t else "as documented"
        return f"DistillKit {self.setting}, {ranks}, {self.tail}"

    @property
    def family(self) -> str:
        return f"DistillKit, {self.tail}"

    @property
    def bytes_per_position(self) -> int:
        values = self.exact_k * VALUE_BITS + len(self.terms) * COEFFICIENT_BITS
        return math.ceil(values / 8) + math.ceil(self.top_k * id_bits(self.vocab_size) / 8)

    def encode(self, answers: Answers) -> Encoded:
        values = self.round_trip(answers.log_probabilities(1.0, self.top_k))

        def rows(chunk: slice, temperature: float) -> SparseRows:
            scaled = values[chunk] / temperature
            ids = answers.ranked_ids[chunk, : self.top_k]
            if self.tail == "zero":
                return bucketed(ids, scaled, torch.empty(0), "none")
            missing = (1 - values[chunk].exp().sum(dim=-1)).clamp(0, 1) ** (1 / temperature)
            total = torch.ones(()) if temperature == 1 else scaled.exp().sum(dim=-1) + missing
            probabilities = scaled.exp() / total[..., None]
            rest = (1 - probabilities.sum(dim=-1)).clamp(LEAST_MISSING, 1 - LEAST_MISSING)
            return SparseRows(ids=ids, probabilities=probabilities, rest=rest, spread="student")

        return Encoded(hidden_bytes=0, label_bytes=self.bytes_per_position * len(answers), rows=rows)

    def round_trip(self, log_probabilities: torch.Tensor) -> torch.Tensor:
        """Log-probabilities float32 `[N, k]`, best first, after encoding and decoding."""
        exact = log_probabilities[:, : self.exact_k].bfloat16().float()
        design = rank_terms(self.terms, self.top_k - self.exact_k, normalize_t=self.normalize_t)
        coefficients = least_squares(design, log_probabilities[:, self.exact_k :])
        return torch.cat([exact, coefficients @ design.T], dim=-1)


def rank_terms(terms: Sequence[Term], num_ranks: int, *, normalize_t: bool) -> torch.Tensor:
    """float32 `[ranks, terms]`: each term at each rank from 0."""
    ranks = torch.linspace(0, 1, num_ranks) if normalize_t else torch.arange(num_ranks, dtype=torch.float32)
    return torch.stack([ranks.sqrt() if term == "sqrt" else ranks**term for term in terms], dim=-1)


def least_squares(design: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Coefficients `[N, terms]` for values `[N, ranks]`, by a singular value decomposition in float32."""
    left, sizes, right = torch.linalg.svd(design, full_matrices=False)
    inverse = torch.where(sizes > SMALLEST_SINGULAR_VALUE, 1 / sizes, 0)
    return (values @ left * inverse) @ right


def recommended(vocab_size: int, *, normalize_t: bool, tail: Literal["zero", "symmetric_uniform"]) -> DistillKit:
    """Its README's setting for new captures."""
    return DistillKit(
        setting="recommended",
        top_k=128,
        exact_k=16,
        terms=(0, 1, 2, 3, 4, "sqrt"),
        normalize_t=normalize_t,
        tail=tail,
        vocab_size=vocab_size,
    )


def budget(vocab_size: int, *, normalize_t: bool, tail: Literal["zero", "symmetric_uniform"]) -> DistillKit:
    """Its README's setting for little storage."""
    return DistillKit(
        setting="budget",
        top_k=50,
        exact_k=1,
        terms=(0, 1, "sqrt"),
        normalize_t=normalize_t,
        tail=tail,
        vocab_size=vocab_size,
    )
