"""What `teacher-cache fidelity CACHE --json` prints."""

from dataclasses import dataclass
from typing import Literal

Source = Literal["replay", "bucket"]
"""How rows are rebuilt: whole, from hidden states, or as the top k and one bucket."""


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """The error of the gradient of the soft-label loss by the decoder's weight that a student gets from the cache."""

    student: str
    """`early` or `late` in training."""
    num_positions: int
    error: float
    """Norm of the difference over the norm of the exact gradient."""
    angle_degrees: float


@dataclass(frozen=True, kw_only=True)
class AtTemperature:
    """All that depends on the temperature, over masked positions."""

    temperature: float
    kl: float
    """Mean KL(teacher || rebuilt) in nats; from `bucket`, over the top k and the bucket."""
    calibration_error_exact: float
    """Of the teacher's best token against the true one: expected calibration error, 0 to 1."""
    calibration_error_rebuilt: float
    gradients: tuple[Gradient, ...]


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Mean cosine of a layer's hidden states and the teacher's; None where no such position was read."""

    layer: int
    masked: float | None
    unmasked: float | None
    kept: float | None
    """Over both."""


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """How true a cache is, over a sample."""

    cache: str
    fingerprint: str
    soft_labels: Source
    """How rows were rebuilt."""
    num_positions: int
    """Masked positions that were compared."""
    num_sequences: int
    """Rows that were read for them; all their kept positions count in `cosines`."""
    temperatures: tuple[AtTemperature, ...]
    cosines: tuple[Cosine, ...]
    bytes_per_kept_position: dict[str, float]
    """By part of the shards that were read from, and their `total`; what a cache holds once does not count."""
    notes: tuple[str, ...]
    """What was left out, and why."""
