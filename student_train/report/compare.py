"""Students → one table, the settings in which they differ, and what makes their losses not comparable."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from student_train.report.find import find_runs, short_names
from student_train.report.students import Student, student_of
from student_train.run_folder import read_run

OUTPUT_KEY = "output"
"""No setting in which runs differ: it names them."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Of the table: one run. Losses that are not finite are None."""

    name: str
    url: str
    num_layers: int
    width: int
    num_parameters: int
    caches: list[str]
    """Fingerprints of the teacher caches."""
    num_steps_done: int
    num_steps: int
    held_out: dict[str, float | None]
    """The newest losses on the rows set aside, and `accuracy`; empty where there are none."""
    losses: dict[str, float | None]
    """Training losses of the last step; empty before the first."""
    tokens_per_s: float | None
    """Median of the steps; None before the first."""
    seconds: float
    """Training time so far, over all attempts."""
    finished: bool
    state: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    runs: list[Row]
    """By held-out total loss where all have one and these are comparable, otherwise in the order given."""
    differences: dict[str, list[Any]]
    """By setting, as a dotted key: its value in each run; None also where a run knows no such setting."""
    warnings: list[str]


def read_students(places: Sequence[str]) -> list[Student]:
    """The students of the runs at these folders or URLs, as `Comparison.runs` has them sorted.

    Raises:
        UserError: at one of the places there is no run, or a record is damaged.
    """
    stores = find_runs(places)
    names = short_names([store.url for store in stores])
    # One after the other: the records of a long run are many, and only few of them are kept.
    return ranked([student_of(read_run(store), name) for store, name in zip(stores, names, strict=True)])


def compare(students: Sequence[Student]) -> Comparison:
    return Comparison(
        runs=[_row(student) for student in students],
        differences=differences(students),
        warnings=warnings(students),
    )


def ranked(students: Sequence[Student]) -> list[Student]:
    """The least held-out total loss first, where all have one and these are comparable."""
    newest = [student.newest for student in students]
    if not all(newest) or warnings(students):
        return list(students)
    return sorted(students, key=_held_out_total)


def _held_out_total(student: Student) -> float:
    total = student.newest.losses["total"] if student.newest else math.inf
    return total if math.isfinite(total) else math.inf


def _row(student: Student) -> Row:
    run, newest = student.description, student.newest
    return Row(
        name=student.name,
        url=student.url,
        num_layers=run.num_layers,
        width=run.width,
        num_parameters=run.num_parameters,
        caches=[cache.fingerprint for cache in run.caches],
        num_steps_done=student.num_steps_done,
        num_steps=run.num_steps,
        held_out=_finite(newest.losses | {"accuracy": newest.accuracy}) if newest else {},
        losses=_finite(student.losses),
        tokens_per_s=student.tokens_per_s,
        seconds=student.seconds,
        finished=student.finished,
        state=student.state,
    )


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def settings_of(student: Student) -> dict[str, Any]:
    """What a run was asked for and what it ran on, by dotted key."""
    run = student.description
    spec = {name: value for name, value in run.spec.items() if name != OUTPUT_KEY}
    return flat(spec | {"device": run.device, "versions": run.versions})


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def differences(students: Sequence[Student]) -> dict[str, list[Any]]:
    """Settings that are not the same in all runs, with their value in each."""
    return {key: values for key, values in _all_settings(students).items() if not _are_same(values)}


def common_settings(students: Sequence[Student]) -> dict[str, Any]:
    """Settings that are the same in all runs."""
    return {key: values[0] for key, values in _all_settings(students).items() if _are_same(values)}


def _all_settings(students: Sequence[Student]) -> dict[str, list[Any]]:
    settings = [settings_of(student) for student in students]
    keys = dict.fromkeys(key for values in settings for key in values)
    return {key: [values.get(key) for values in settings] for key in keys}


def _are_same(values: Sequence[Any]) -> bool:
    return all(value == values[0] for value in values)


def warnings(students: Sequence[Student]) -> list[str]:
    """What makes held-out losses of these runs not comparable."""
    looked = [student for student in students if student.newest]
    found = []
    if not _are_same([_held_out_rows(student) for student in looked]):
        found.append(
            "the runs set aside different rows (other caches or held_out_sequences): "
            "their held-out losses and accuracies are not comparable"
        )
    keys = [key for key in differences(looked) if key.startswith("loss.")]
    if keys:
        found.append(
            f"the runs differ in {', '.join(keys)}: their total and soft-label losses are not comparable, "
            "held-out masked-LM losses and accuracies are where the rows are the same"
        )
    return found


def _held_out_rows(student: Student) -> tuple[list[str], Any]:
    """What decides which rows a run sets aside."""
    run = student.description
    return [cache.fingerprint for cache in run.caches], run.spec.get("held_out_sequences")
