"""From a sweep's configuration to its students: pure, the same list each time."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import rfc8785

from student_train.config import StudentSpec
from student_train.sweep.config import Dimension, SweepConfig
from teacher_cache.errors import UserError
from teacher_cache.format import documents, philox
from teacher_cache.shell.settings import parse
from teacher_cache.storage.urls import normal_url

MAX_NAME = 120
"""Characters: a name is a folder's."""

Point = dict[str, Any]
"""A value for each dotted key of the space."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One student of a sweep."""

    name: str
    spec: StudentSpec


def trials(config: SweepConfig) -> list[Trial]:
    """All students of a sweep.

    Raises:
        UserError: one is not valid; the message names it and the key.
    """
    points = distinct_points(config)
    width = max(3, len(str(len(points) - 1)))
    labels = short_keys(list(config.space))
    found = [_trial(config, f"{index:0{width}}-{describe(point, labels)}", point) for index, point in enumerate(points)]
    if config.scheduler == "asha" and not share_held_out_rows(found):
        raise UserError(
            "space: the students differ in caches or held_out_sequences, so that other rows are held out from each; "
            "scheduler: asha would stop some for that, set scheduler: none"
        )
    return found


def share_held_out_rows(trials: Sequence[Trial]) -> bool:
    """Whether the same rows are held out from all students: only then do their figures on these compare."""
    return len({(trial.spec.caches, trial.spec.held_out_sequences) for trial in trials}) <= 1


def places(config: SweepConfig) -> dict[str, Sequence[str]]:
    """Files and URLs that all machines must find, by key.

    Raises:
        UserError: a student is not valid.
    """
    specs = [trial.spec for trial in trials(config)]
    found = {f"student.{key}": sorted({url for spec in specs for url in spec.reads[key]}) for key in specs[0].reads}
    return {**found, "output": [config.output]}


def distinct_points(config: SweepConfig) -> list[Point]:
    """The points of the space without repetitions: for each combination of chosen values, every draw.

    Raises:
        UserError: a value has no place in JSON.
    """
    try:
        points = {documents.canonical(point): point for point in _points(config)}
    except rfc8785.CanonicalizationError as error:
        raise UserError(f"space: a value cannot be written as JSON ({error}); whole numbers end at 2^53") from None
    return list(points.values())


def _points(config: SweepConfig) -> Iterator[Point]:
    chosen = {key: dimension.choose for key, dimension in config.space.items() if dimension.choose}
    drawn = {key: dimension for key, dimension in config.space.items() if dimension.bounds}
    for values in itertools.product(*chosen.values()):
        for index in range(config.num_samples if drawn else 1):
            point = dict(zip(chosen, values, strict=True))
            point |= {key: draw(dimension, key=key, seed=config.seed, index=index) for key, dimension in drawn.items()}
            yield {key: point[key] for key in config.space}


def draw(dimension: Dimension, *, key: str, seed: int, index: int) -> float:
    """A value between a dimension's bounds, of three significant digits: what a name shows is what a student gets."""
    assert dimension.bounds
    words = philox.words(philox.key_of("sweep", seed, key), stream=0, index=index, size=1)
    share = float(philox.uniforms(words)[0])
    low, high = dimension.bounds
    if dimension.log_uniform:
        value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    else:
        value = low + share * (high - low)
    return min(max(float(f"{value:.3g}"), low), high)


def short_keys(keys: list[str]) -> dict[str, str]:
    """What names call each key: its last part, or all of it where another key ends alike."""
    ends = Counter(key.rpartition(".")[2] for key in keys)
    return {key: end if ends[end := key.rpartition(".")[2]] == 1 else key for key in keys}


def describe(point: Point, labels: Mapping[str, str]) -> str:
    """A point as part of a folder's name, for example `num_layers=2-lr=3.1e-4`."""
    text = "-".join(f"{labels[key]}={_text(value)}" for key, value in point.items())
    return re.sub(r"[^A-Za-z0-9._=+-]+", "_", text)[:MAX_NAME].rstrip("_.")


def _text(value: Any) -> str:
    if isinstance(value, float):
        mantissa, _, exponent = f"{value:.6e}".partition("e")
        return min(f"{value:.7g}", f"{float(mantissa):g}e{int(exponent)}", key=len)
    if isinstance(value, list | tuple):
        return "_".join(map(_text, value))
    return str(value)


def _trial(config: SweepConfig, name: str, point: Point) -> Trial:
    values: dict[str, Any] = {**config.student, "output": f"{normal_url(config.output)}/{name}"}
    for key, value in point.items():
        values = with_key(values, key, value)
    spec = parse(StudentSpec, values, source=f"trial {name}")
    if spec.execution.max_workers > 1:
        raise UserError(
            f"trial {name}: execution.num_workers is {spec.execution.num_workers}, but each student of a sweep trains "
            "in one process; set it to 1, and let max_concurrent say how many students train at a time"
        )
    if config.scheduler == "asha":
        _check_evaluated(name, spec)
    return Trial(name=name, spec=spec)


def _check_evaluated(name: str, spec: StudentSpec) -> None:
    if not spec.held_out_sequences:
        raise UserError(
            f"trial {name}: held_out_sequences is 0, but scheduler: asha compares students on rows held out; "
            "set student.held_out_sequences, or scheduler: none"
        )
    if spec.steps is not None:
        check_evaluations(name, spec, spec.steps)


def check_evaluations(name: str, spec: StudentSpec, num_steps: int) -> None:
    """Refuses a student that would be evaluated at its end only (UserError): scheduler: asha would stop none."""
    if (every := spec.execution.evaluation_steps) >= num_steps:
        raise UserError(
            f"trial {name}: execution.evaluation_steps is {every}, of {num_steps} steps, but scheduler: asha compares "
            "students from a ninth of their steps on; lower student.execution.evaluation_steps"
        )


def with_key(values: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Nested `values` with another value at a dotted key."""
    head, _, rest = key.partition(".")
    inner = values.get(head)
    if rest:
        value = with_key(inner if isinstance(inner, Mapping) else {}, rest, value)
    return {**values, head: value}
