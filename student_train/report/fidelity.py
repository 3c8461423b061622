"""How true the caches are, from what `teacher-cache fidelity CACHE --json` printed."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from teacher_cache.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """The error of the gradient that a student gets from the cache."""

    student: str
    num_positions: int
    error: float
    """Norm of the difference over the norm of the exact gradient."""
    angle_degrees: float


@dataclass(frozen=True, kw_only=True)
class AtTemperature:
    temperature: float
    kl: float
    """Mean KL(teacher || cache), in nats a masked position."""
    calibration_error_exact: float
    calibration_error_rebuilt: float
    gradients: tuple[Gradient, ...]


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Mean cosine of a layer's hidden states and the teacher's; None where no such position was read."""

    layer: int
    masked: float | None
    unmasked: float | None
    kept: float | None


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """What is shown of the command's result; other keys of it are left aside."""

    fingerprint: str
    soft_labels: str
    num_positions: int
    """Masked positions that were compared."""
    temperatures: tuple[AtTemperature, ...]
    cosines: tuple[Cosine, ...]
    bytes_per_kept_position: dict[str, float]
    notes: tuple[str, ...]


def read_fidelity(path: str) -> Fidelity:
    """Reads the command's result.

    Raises:
        UserError: the file cannot be read, or is no such result.
    """
    try:
        return TypeAdapter(Fidelity).validate_json(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"--fidelity {path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(
            f"--fidelity {path} is no result of `teacher-cache fidelity CACHE --json`: {where}: {first['msg']}"
        ) from None
