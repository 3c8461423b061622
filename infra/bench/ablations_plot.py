"""The ablations' table as a picture: each variant's gaps from the whole recipe, and the published ones beside them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg  # needs no display
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = {
    "loss_gap": ("held-out masked-LM loss, nats", 1, 3),
    "SST-2_gap": ("SST-2, points", 100, 1),
    "published": ("published: GLUE, points", 1, 2),
}
"""Figure of a row → what its panel is called, what a unit of it is there, and decimals."""
LINEAR_SHARE = 0.05
"""Of the largest gap: up to there the scale is linear, beyond it logarithmic, as starting weights outweigh all else."""


def plot(arms: Sequence[Mapping[str, Any]], path: Path) -> None:
    """`arms` are the table's rows, the whole recipe first."""
    rows = arms[1:]
    panels = [key for key in PANELS if any(row.get(key) is not None for row in rows)]
    with matplotlib.rc_context({"font.size": 10}):
        figure = Figure(figsize=(4 * len(panels) + 2, 0.36 * len(rows) + 1.2), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, key in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True):
            _panel(axes, rows, key)
        figure.savefig(path, format="png", dpi=120, metadata={"Software": None})


def _panel(axes: "Axes", rows: Sequence[Mapping[str, Any]], key: str) -> None:
    title, unit, decimals = PANELS[key]
    known = [
        (place, unit * row[key], unit * (row.get(f"{key}_deviation") or 0))
        for place, row in enumerate(rows)
        if row.get(key) is not None
    ]
    places, gaps, deviations = zip(*known, strict=True)
    axes.axvline(0, color="black", linewidth=1, linestyle="--")
    axes.errorbar(gaps, places, xerr=deviations, fmt="o", color="tab:blue", markersize=6)
    for place, gap in zip(places, gaps, strict=True):
        axes.annotate(
            f"{gap:+.{decimals}f}", (gap, place), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=8
        )
    if key == "loss_gap":
        axes.set_xscale("symlog", linthresh=max(LINEAR_SHARE * max(map(abs, gaps)), 1e-6))
    axes.set_yticks(range(len(rows)), [row["arm"] for row in rows])
    axes.set(title=title, ylim=(len(rows) - 0.5, -0.8))
    axes.margins(x=0.15)
    axes.grid(axis="x", alpha=0.25)
