"""Targets as a student feels them, and how far the gradient that they make is from the exact one.

`teacher_cache.fidelity.measures.GradientError` for many codes at once: the exact gradient is computed once for all,
and targets that hold few tokens are never made dense.

Legend: K positions of a chunk, k tokens of a target, V vocabulary, d hidden size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from teacher_cache.fidelity.measures import kl

BLOCK_ROWS = 4096
"""Rows of a gradient that are held in float64 at once."""


@dataclass(frozen=True, kw_only=True)
class DenseRows:
    """Whole rows."""

    log_probabilities: torch.Tensor
    """`[K, V]`; each row sums to 1."""

    def target(self, student: torch.Tensor) -> torch.Tensor:
        """What a student of these probabilities `[K, V]` is pulled to."""
        return self.log_probabilities.exp()

    def kl(self, exact: torch.Tensor) -> torch.Tensor:
        """KL(exact || rebuilt) `[K]` in nats."""
        return kl(exact, self.log_probabilities)


@dataclass(frozen=True, kw_only=True)
class SparseRows:
    """Probabilities of some tokens, and what is done with the mass of all others."""

    ids: torch.Tensor
    """int64 `[K, k]`; with spread `none`, a token may come more than once: its probabilities add up."""
    probabilities: torch.Tensor
    """`[K, k]`; with spread `none` or `uniform`, they and the rest sum to 1."""
    rest: torch.Tensor
    """`[K]`: the mass of all other tokens."""
    spread: Literal["none", "uniform", "student"]
    """No such mass; evenly; or in proportion to the student's own probabilities: the gradient of a loss over the
    tokens and one bucket."""

    def target(self, student: torch.Tensor) -> torch.Tensor:
        """What a student of these probabilities `[K, V]` is pulled to; a target of mass m pulls with m * student."""
        if self.spread == "none":
            return torch.zeros_like(student).scatter_add(-1, self.ids, self.probabilities)
        target = torch.full_like(student, 1.0) * self.level(student.shape[1])[:, None]
        if self.spread == "student":
            target = student * self.scale(student)[:, None]
        return target.scatter(-1, self.ids, self.probabilities)

    def level(self, vocab_size: int) -> torch.Tensor:
        """`[K]`: what each of the other tokens gets by an even spread."""
        return self.rest / max(1, vocab_size - self.ids.shape[1])

    def scale(self, student: torch.Tensor) -> torch.Tensor:
        """`[K]`: by what the student's probabilities of the other tokens are multiplied."""
        outside = student.scatter(-1, self.ids, 0).sum(dim=-1)
        return self.rest / outside.clamp(min=torch.finfo(student.dtype).tiny)

    def kl(self, exact: torch.Tensor) -> torch.Tensor | None:
        """KL(exact || rebuilt) `[K]` in nats; None where tokens have no probability of their own."""
        if self.spread != "uniform":
            return None
        level = self.level(exact.shape[1])[:, None].expand_as(exact)
        return kl(exact, level.scatter(-1, self.ids, self.probabilities).clamp(min=1e-30).log())


Rows = DenseRows | SparseRows


@dataclass(frozen=True)
class Student:
    """A stand-in for a student at one chunk and temperature."""

    probabilities: torch.Tensor
    """`[K, V]`."""
    hidden: torch.Tensor
    """`[K, d]`."""


class ExactSums:
    """What all codes' gradients share at one temperature, summed over chunks, by name of the student."""

    def __init__(self, names: tuple[str, ...], vocab_size: int, hidden_size: int) -> None:
        self.gradients = {name: torch.zeros(vocab_size, hidden_size) for name in names}
        """(student - exact)^T · hidden."""
        self.moments = {name: torch.zeros(vocab_size, hidden_size) for name in names}
        """exact^T · hidden."""

    def add(self, exact: torch.Tensor, students: Mapping[str, Student]) -> None:
        for name, student in students.items():
            moment = exact.T @ student.hidden
            self.moments[name] += moment
            self.gradients[name].addmm_(student.probabilities.T, student.hidden).sub_(moment)


class Deviations:
    """Sums, over chunks of positions, what a code's gradient has beyond the exact one, at one temperature.

    With target r of mass m the gradient is (m * student - r)^T · hidden.
    """

    def __init__(self, names: tuple[str, ...], vocab_size: int, hidden_size: int) -> None:
        self._sums = {name: torch.zeros(vocab_size, hidden_size) for name in names}
        self._levels = {name: torch.zeros(hidden_size) for name in names}
        """Of even spreads: the same for all tokens."""
        self._is_sparse = False

    def add(self, rows: Rows, exact: torch.Tensor, students: Mapping[str, Student]) -> None:
        """Adds a chunk; `exact` `[K, V]` are the teacher's probabilities."""
        if isinstance(rows, DenseRows):
            difference = exact - rows.log_probabilities.exp()
            for name, student in students.items():
                self._sums[name].addmm_(difference.T, student.hidden)
            return
        self._is_sparse = True
        for name, student in students.items():
            self._add_sparse(name, rows, student)

    def _add_sparse(self, name: str, rows: SparseRows, student: Student) -> None:
        """Without the exact moment, which `error` adds."""
        values = rows.probabilities
        if rows.spread == "uniform":
            level = rows.level(student.probabilities.shape[1])[:, None]
            self._levels[name] -= (level * student.hidden).sum(dim=0)
            values = values - level
        elif rows.spread == "student":
            scale = rows.scale(student.probabilities)[:, None]
            mass = (rows.probabilities.sum(dim=-1) + rows.rest)[:, None]
            self._sums[name].addmm_(student.probabilities.T, (mass - 1 - scale) * student.hidden)
            values = values - scale * student.probabilities.gather(-1, rows.ids)
        pulled = values[:, :, None] * student.hidden[:, None, :]
        self._sums[name].index_add_(0, rows.ids.flatten(), pulled.flatten(0, 1), alpha=-1)

    def error(self, name: str, exact: ExactSums) -> float:
        """Norm of the deviation so far over the norm of the exact gradient (Frobenius), for one student."""
        deviation, squared = 0.0, 0.0
        for start in range(0, len(self._sums[name]), BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            values = self._sums[name][block].double() + self._levels[name]
            if self._is_sparse:
                values = values + exact.moments[name][block]
            deviation += float(values.square().sum())
            squared += float(exact.gradients[name][block].double().square().sum())
        return (deviation / squared) ** 0.5
