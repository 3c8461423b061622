"""Students → what each figure shows, as numbers: nothing here draws."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from student_train.report.students import Student
from student_train.run_folder import HeldOutReport

Values = Callable[[HeldOutReport], float]
TIME_UNITS = (("hours", 3600, 7200), ("minutes", 60, 180), ("seconds", 1, 0))
"""Unit, its seconds, and the longest training time from which it is used."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One student's part of a figure."""

    place: int
    """Of the student, from 0: decides its colour, dashes and mark."""
    name: str
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    """Values that are not finite leave a gap."""
    is_sound: bool
    """Finished, and not diverged; otherwise its last point is a ring."""
    y_spans: tuple[tuple[float, float], ...] = ()
    """Of points: least and most."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    key: str
    """Unique on a page."""
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    is_scatter: bool = False
    """Points with names, rather than curves."""
    is_share: bool = False
    """Of the values: shown in per cent."""
    x_names: tuple[str, ...] = ()
    """Of points: what stands at 0, 1, … in place of numbers; a legend then names the series."""
    y_line: float | None = None
    """Where a line goes across."""


def curves(students: Sequence[Student]) -> list[Figure]:
    """How the students learned; no figure that would be empty."""
    training = Figure(
        key="training-loss",
        title="Training loss",
        x_label="optimiser step",
        y_label="total loss",
        series=_series(
            students,
            lambda student: [point.step for point in student.curve],
            lambda student: [point.loss for point in student.curve],
        ),
    )
    return _filled(
        [
            training,
            *_held_out_figures(students, "loss", "Held-out loss", "total loss", _total),
            *_held_out_figures(students, "accuracy", "Held-out accuracy", "masked tokens ranked first", _accuracy),
        ]
    )


def _held_out_figures(students: Sequence[Student], key: str, title: str, y_label: str, y: Values) -> list[Figure]:
    """One against steps, one against time."""
    unit, seconds = _time_unit(students)
    axes: tuple[tuple[str, str, Values], ...] = (
        ("steps", "optimiser step", lambda report: report.step),
        ("time", f"training time, {unit}", lambda report: report.seconds / seconds),
    )
    return [
        Figure(
            key=f"held-out-{key}-{name}",
            title=f"{title} by {name}",
            x_label=x_label,
            y_label=y_label,
            series=_series(students, _of_held_out(x), _of_held_out(y)),
            is_share=key == "accuracy",
        )
        for name, x_label, x in axes
    ]


def tradeoffs(students: Sequence[Student]) -> list[Figure]:
    """Quality against what it costs; no figure that would be empty.

    Quality is the held-out masked-LM loss: totals would not compare where losses are weighed differently.
    """
    unit, seconds = _time_unit(students)
    costs: tuple[tuple[str, str, str, Callable[[Student], float | None]], ...] = (
        ("parameters", "Quality and size", "parameters", lambda student: student.description.num_parameters),
        ("speed", "Quality and speed", "training tokens/s", lambda student: student.tokens_per_s),
        ("cost", "Quality and cost", f"training time, {unit}", lambda student: student.seconds / seconds),
    )
    return _filled(
        [
            Figure(
                key=f"quality-{key}",
                title=title,
                x_label=label,
                y_label="held-out masked-LM loss",
                series=_series(students, _single(cost), _single(_masked_lm)),
                is_scatter=True,
            )
            for key, title, label, cost in costs
        ]
    )


def _total(report: HeldOutReport) -> float:
    return report.losses["total"]


def _accuracy(report: HeldOutReport) -> float:
    return report.accuracy


def _masked_lm(student: Student) -> float | None:
    return student.newest.losses["masked_lm"] if student.newest else None


def _single(value: Callable[[Student], float | None]) -> Callable[[Student], list[float]]:
    def values(student: Student) -> list[float]:
        found = value(student)
        return [] if found is None else [found]

    return values


def _of_held_out(value: Values) -> Callable[[Student], list[float]]:
    return lambda student: [value(report) for report in student.held_out]


def _series(
    students: Sequence[Student],
    xs: Callable[[Student], Sequence[float]],
    ys: Callable[[Student], Sequence[float]],
) -> tuple[Series, ...]:
    found = []
    for place, student in enumerate(students):
        pairs = list(zip(xs(student), ys(student), strict=False))
        found.append(
            Series(
                place=place,
                name=student.name,
                xs=tuple(x for x, _ in pairs),
                ys=tuple(y for _, y in pairs),
                is_sound=student.is_sound,
            )
        )
    return tuple(found)


def _filled(figures: Sequence[Figure]) -> list[Figure]:
    """Without series and figures that hold no finite value."""
    kept = []
    for figure in figures:
        series = tuple(series for series in figure.series if any(map(math.isfinite, series.ys)))
        if series:
            kept.append(replace(figure, series=series))
    return kept


def _time_unit(students: Sequence[Student]) -> tuple[str, int]:
    """The unit that suits the longest run, and its seconds."""
    longest = max((student.seconds for student in students), default=0.0)
    return next((unit, size) for unit, size, start in TIME_UNITS if longest >= start)
