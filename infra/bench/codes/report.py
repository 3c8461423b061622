"""Tables, budgets, ratios and the figure of `rate_distortion`, from measured codes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.bench.codes.contenders import OURS
from infra.bench.codes.measure import FEW_POSITIONS, STUDENTS, TEMPERATURES, Data, Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BUDGETS = (40, 60, 80, 100, 128, 160, 200, 300)
"""Bytes a masked position."""
STUDENT, TEMPERATURE = "late", 1.0
"""Whose gradient error decides budgets and ratios."""
MARKERS = "sv^DPX<>pd*h"


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The best code of at most so many bytes."""

    num_bytes: int
    best: str | None
    error: float | None
    ours: str | None
    """Ours of least error."""
    our_error: float | None
    rival: str | None
    """The rivals' of least error."""
    rival_error: float | None

    @property
    def ours_is_below_all(self) -> bool:
        return self.our_error is not None and (self.rival_error is None or self.our_error < self.rival_error)


def deciding_error(row: Measured) -> float | None:
    return row.error(STUDENT, TEMPERATURE)


def budgets(measured: Sequence[Measured]) -> list[Budget]:
    found = []
    for num_bytes in BUDGETS:
        fitting = [row for row in measured if row.num_bytes <= num_bytes]
        ours, rival = _best([row for row in fitting if row.is_ours]), _best([row for row in fitting if not row.is_ours])
        best = _best([row for row in (ours, rival) if row is not None])
        pairs = {"best": (best, "error"), "ours": (ours, "our_error"), "rival": (rival, "rival_error")}
        values: dict[str, Any] = {}
        for field, (row, error) in pairs.items():
            values |= {field: row.name if row else None, error: deciding_error(row) if row else None}
        found.append(Budget(num_bytes=num_bytes, **values))
    return found


def _best(rows: Sequence[Measured]) -> Measured | None:
    compared = [(error, row) for row in rows if (error := deciding_error(row)) is not None]
    return min(compared, key=lambda pair: pair[0])[1] if compared else None


@dataclass(frozen=True)
class Ratio:
    """Bytes that ours needs for a rival's error, over the rival's."""

    value: float
    is_bound: bool
    """Ours has no code as bad: the ratio is at most this."""


def frontier(rows: Sequence[Measured]) -> list[tuple[float, float]]:
    """(bytes, error) of the codes that no cheaper one is as true as, cheapest first."""
    points = [(row.num_bytes, error) for row in rows if (error := deciding_error(row)) is not None]
    kept: list[tuple[float, float]] = []
    for num_bytes, error in sorted(points):
        if not kept or error < kept[-1][1]:
            kept.append((num_bytes, error))
    return kept


def bytes_for(error: float, curve: Sequence[tuple[float, float]]) -> float | None:
    """Bytes at an error on a frontier, interpolated between logarithms; None where none is as true."""
    if error >= curve[0][1]:
        return curve[0][0]
    for (fewer, worse), (more, better) in pairwise(curve):
        if error >= better:
            share = math.log(worse / error) / math.log(worse / better)
            return math.exp(math.log(fewer) + share * math.log(more / fewer))
    return None


def ratio(row: Measured, curve: Sequence[tuple[float, float]]) -> Ratio | None:
    error = deciding_error(row)
    if error is None or (needed := bytes_for(error, curve)) is None:
        return None
    return Ratio(needed / row.num_bytes, is_bound=error > curve[0][1])


def ratios(measured: Sequence[Measured]) -> dict[str, float]:
    """By rival; without those that have no error at T = 1, or one that none of ours reaches."""
    curve = frontier([row for row in measured if row.is_ours])
    found = {row.name: ratio(row, curve) for row in measured if not row.is_ours}
    return {name: value.value for name, value in found.items() if value is not None}


def plain(row: Measured) -> dict[str, Any]:
    """Values for JSON."""
    return {
        "label": row.name,
        "family": row.family,
        "bytes": row.num_bytes,
        "hidden_bytes": row.hidden_bytes,
        "label_bytes": row.label_bytes,
        "bytes_a_kept_position": row.kept_bytes,
        "cosine": row.cosine,
        "gradient_errors": [
            {"student": student, "temperature": temperature, "num_positions": count, "error": error}
            for (student, temperature, count), error in row.errors.items()
        ],
        "kl": [{"temperature": temperature, "nats": value} for temperature, value in row.kl.items()],
    }


def render(measured: Sequence[Measured], data: Data) -> str:
    """The table, one line a code, cheapest first; then one line a budget."""
    counts = sorted({FEW_POSITIONS, len(data.masked)} if len(data.masked) > FEW_POSITIONS else {len(data.masked)})
    columns = [(student, at, count) for count in counts for student in STUDENTS for at in TEMPERATURES]
    width = max(len(row.name) for row in measured)
    heads = [f"{student}{at:g}@{count}" for student, at, count in columns]
    curve = frontier([row for row in measured if row.is_ours])
    lines = [
        f"{'gradient errors; student, T @ positions':{width}}   bytes  hidden  labels    kept"
        + "".join(f"{head:>13}" for head in heads)
        + "".join(f"{f'KL T={at:g}':>9}" for at in TEMPERATURES)
        + "   cosine  ours/its"
    ]
    for row in sorted(measured, key=lambda row: row.num_bytes):
        sizes = (row.num_bytes, row.hidden_bytes, row.label_bytes, row.kept_bytes)
        lines.append(
            f"{row.name:{width}}"
            + "".join(f"{size:8.1f}" for size in sizes)
            + "".join(_number(row.error(*column), 13) for column in columns)
            + "".join(_number(row.kl.get(at), 9) for at in TEMPERATURES)
            + (f"{row.cosine:9.5f}" if row.cosine is not None else f"{'—':>9}")
            + _ratio(row, curve)
        )
    return "\n".join([*lines, "", *map(_budget_line, budgets(measured)), "", *notes(measured, data)])


def _number(value: float | None, width: int) -> str:
    return f"{'—':>{width}}" if value is None else f"{value:{width}.4f}"


def _ratio(row: Measured, curve: Sequence[tuple[float, float]]) -> str:
    found = None if row.is_ours else ratio(row, curve)
    return f"{'—':>10}" if found is None else f"{'≤' if found.is_bound else '':>5}{found.value:5.2f}"


def _budget_line(row: Budget) -> str:
    if row.best is None:
        return f"{row.num_bytes:4} bytes: no code is that small"
    text = f"{row.num_bytes:4} bytes: {row.best}, {row.error:.4f}; "
    if row.ours_is_below_all:
        return text + (
            f"ours is below every rival (best: {row.rival}, {row.rival_error:.4f})" if row.rival else "no rival"
        )
    return text + (f"OURS IS NOT BELOW: {row.ours}, {row.our_error:.4f}" if row.ours else "OURS HAS NO CODE THAT SMALL")


def notes(measured: Sequence[Measured], data: Data) -> list[str]:
    """What the columns mean, and what was granted to whom."""
    return [
        f"{len(data.masked):,} masked positions of a held-out text; {data.masked_share:.1%} of its kept positions are"
        " masked. `kept`: bytes a kept position, unmasked ones at 0.1 included.",
        "ours/its: bytes of ours for the same error (late student, T = 1, all positions) over its own; ≤: ours has no"
        " code as bad; —: none as good, or not defined.",
        "Top-k: ids at ceil(log2 V) bits, log-probabilities in float16, with a bucket or a tail 2 bytes for the mass of"
        " the rest at the temperature in use; no entropy coding.",
        "Random sampling KD: 3 bytes a unique token, as published; 21 bits (ids of 15, counts of 6) would take 0.875"
        " of it. Drawn at T = 1 and used at T = 2, by importance weights that its code does not hold.",
        "DistillKit: its layout's bytes; least squares in float32.",
        "Plain hidden states: fixed-rate values and our packed top 8, replayed as ours are.",
    ]


def plot(measured: Sequence[Measured], path: Path) -> None:
    """Bytes against gradient errors and divergence; ours a line, rivals by markers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(TEMPERATURES), 3, figsize=(17, 10), sharex=True, layout="constrained")
    for row, temperature in zip(axes, TEMPERATURES, strict=True):
        for panel, student in zip(row, STUDENTS, strict=False):
            points = {code.name: code.error(student, temperature) for code in measured}
            _panel(panel, measured, points, f"gradient error, student {student} in training, T = {temperature:g}")
        divergence = {code.name: code.kl.get(temperature) for code in measured}
        _panel(row[2], measured, divergence, f"KL(teacher || rebuilt), nats, T = {temperature:g}")
    for panel in axes[-1]:
        panel.set_xlabel("bytes a masked position")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=11)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _panel(axes: "Axes", measured: Sequence[Measured], values: dict[str, float | None], title: str) -> None:
    families = list(dict.fromkeys(row.family for row in measured))
    for family in families:
        rows = [row for row in measured if row.family == family]
        points = sorted((row.num_bytes, value) for row in rows if (value := values[row.name]))
        sizes, errors = [size for size, _ in points], [error for _, error in points]
        if family == OURS:
            best = [
                point for place, point in enumerate(points) if all(point[1] < before[1] for before in points[:place])
            ]
            axes.plot(
                *zip(*best, strict=True), "-", color="black", linewidth=2, label=f"{OURS}, the best of its settings"
            )
            axes.plot(sizes, errors, "o", color="black", markersize=5)
        else:
            axes.plot(sizes, errors, MARKERS[families.index(family) % len(MARKERS)], markersize=7, label=family)
    axes.set(xscale="log", yscale="log", title=title)
    axes.set_xticks([20, 50, 100, 200, 400, 800], ["20", "50", "100", "200", "400", "800"])
    axes.set_xticks([], minor=True)
    axes.grid(which="both", alpha=0.25)
