"""What a user asks of a sweep: `SweepConfig`, one YAML file."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic.dataclasses import dataclass

from student_train.config import Positive
from teacher_cache.format.spec import Url
from teacher_cache.shell.settings import STRICT

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Dimension:
    """The values of one key: each in turn, or drawn between two bounds."""

    choose: Annotated[tuple[Any, ...], Field(min_length=1)] | None = None
    uniform: Range | None = None
    log_uniform: Range | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> "Dimension":
        if sum(kind is not None for kind in (self.choose, self.uniform, self.log_uniform)) != 1:
            raise ValueError("give one of choose, uniform and log_uniform")
        if self.bounds and not self.bounds[0] < self.bounds[1]:
            raise ValueError("the first bound must be below the second")
        if self.log_uniform and self.log_uniform[0] <= 0:
            raise ValueError("log_uniform needs bounds above 0")
        return self

    @property
    def bounds(self) -> Range | None:
        """Between which values are drawn; None: they are chosen."""
        return self.uniform or self.log_uniform


def _dotted(space: Any, prefix: str = "") -> Any:
    """Nested keys as dotted ones, so that overrides, which nest, name what the file wrote either way."""
    if not isinstance(space, Mapping):
        return space
    flat: dict[str, Any] = {}
    for key, value in space.items():
        is_inner = isinstance(value, Mapping) and any(isinstance(inner, Mapping) for inner in value.values())
        flat |= _dotted(value, f"{prefix}{key}.") if is_inner else {f"{prefix}{key}": value}
    return flat


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SweepConfig:
    student: dict[str, Any]
    """What all students share: a `StudentSpec` without `output`. Each trains in one process of its own, with the
    resources that `execution` gives a worker; `execution.address` is where."""
    output: Url
    """Folder or URL; each student's run lies in a folder of its own below."""
    space: Annotated[dict[str, Dimension], BeforeValidator(_dotted), Field(min_length=1)]
    """Dotted keys of a `StudentSpec`. Chosen values are combined each with each."""
    num_samples: Positive = 1
    """Draws of the random dimensions, the same for each combination of the chosen ones."""
    scheduler: Literal["none", "asha"] = "none"
    """`asha` stops students early: after a ninth and a third of its steps each must be among the best third of those
    that came so far (asynchronous successive halving, arXiv 1810.05934)."""
    max_concurrent: Positive | None = None
    """Students at a time; None: as many as the cluster has room for."""
    seed: Annotated[int, Field(ge=0, lt=2**53)] = 56
    """Of the draws; the students' own is `student.seed`."""

    @model_validator(mode="after")
    def _fits_together(self) -> "SweepConfig":
        if "output" in self.student or "output" in self.space:
            raise ValueError("a student's output is its folder below `output`: name none in student or space")
        if self.num_samples > 1 and not any(dimension.bounds for dimension in self.space.values()):
            raise ValueError(f"num_samples is {self.num_samples}, but nothing in space is drawn: it chooses only")
        return self
