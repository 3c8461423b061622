"""Plain codes of hidden states, replayed through the teacher's head as this package's code is.

Legend: N positions, d hidden size, b bits.
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from infra.bench.codes.answers import Answers
from infra.bench.codes.contenders import Encoded
from infra.bench.codes.ours import PackedLabels, replayed
from teacher_cache.targets.heads import OutputHead

STEPS = torch.linspace(0.05, 4, 80)
"""Steps that are tried for a uniform quantiser, in standard deviations of a component."""


class Quantiser(Protocol):
    """A fixed-rate code of vectors."""

    @property
    def name(self) -> str: ...

    @property
    def bytes_per_position(self) -> float: ...

    def round_trip(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 `[N, d]` after encoding and decoding."""


@dataclass(frozen=True)
class Float16:
    hidden_size: int
    name: str = "float16 hidden"

    @property
    def bytes_per_position(self) -> float:
        return 2 * self.hidden_size

    def round_trip(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.half().float()


@dataclass(frozen=True)
class Int8:
    """Each position's components in steps of its greatest magnitude / 127; that step in float16."""

    hidden_size: int
    name: str = "int8 hidden"

    @property
    def bytes_per_position(self) -> float:
        return self.hidden_size + 2

    def round_trip(self, hidden: torch.Tensor) -> torch.Tensor:
        steps = (hidden.abs().amax(dim=-1, keepdim=True) / 127).half().float()
        return (hidden / steps).round().clamp(-127, 127) * steps


@dataclass(frozen=True, kw_only=True)
class Rotated:
    """Principal components, each rounded to one of 2^b evenly spaced values around 0."""

    bits: int
    mean: torch.Tensor
    """`[d]`."""
    rotation: torch.Tensor
    """`[d, d]`: components in columns."""
    steps: torch.Tensor
    """`[d]`."""

    @property
    def name(self) -> str:
        return f"rotated {self.bits}-bit hidden"

    @property
    def bytes_per_position(self) -> float:
        return self.bits * len(self.mean) / 8

    @classmethod
    def fit(cls, hidden: torch.Tensor, bits: int) -> "Rotated":
        """Of a sample `[N, d]`; the steps are those of least squared error on it."""
        mean = hidden.mean(dim=0)
        rotation = torch.linalg.eigh((hidden - mean).T.double() @ (hidden - mean).double()).eigenvectors.float()
        components = (hidden - mean) @ rotation
        tried = components.std(dim=0) * STEPS[:, None].clamp(min=1e-9)
        errors = torch.stack([(_round(components, steps, bits) - components).square().mean(dim=0) for steps in tried])
        best = tried.gather(0, errors.argmin(dim=0)[None])[0]
        return cls(bits=bits, mean=mean, rotation=rotation, steps=best)

    def round_trip(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.mean + _round((hidden - self.mean) @ self.rotation, self.steps, self.bits) @ self.rotation.T


def _round(values: torch.Tensor, steps: torch.Tensor, bits: int) -> torch.Tensor:
    half = 2 ** (bits - 1)
    return ((values / steps).floor().clamp(-half, half - 1) + 0.5) * steps


@dataclass(frozen=True)
class Replayed:
    """Hidden states by some quantiser, with this package's packed soft labels put in as this package does."""

    quantiser: Quantiser
    labels: PackedLabels
    head: OutputHead

    @property
    def name(self) -> str:
        return f"{self.quantiser.name}, replay"

    @property
    def family(self) -> str:
        return "plain hidden states"

    def encode(self, answers: Answers) -> Encoded:
        label_bytes, soft_labels = self.labels.round_trip(answers)
        hidden = self.quantiser.round_trip(answers.states.hidden)
        return Encoded(
            hidden_bytes=self.quantiser.bytes_per_position * len(answers),
            label_bytes=label_bytes,
            rows=replayed(hidden, soft_labels, self.head),
            hidden=hidden,
        )
