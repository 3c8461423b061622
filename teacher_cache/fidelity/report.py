"""Fidelity for people: as text and as a figure, from the plain values of `format.fidelity.Fidelity`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from teacher_cache.errors import UserError
from teacher_cache.shell import command

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HEAD = ("cache", "fingerprint", "soft_labels", "num_positions", "num_sequences")


def render(result: dict[str, Any]) -> str:
    """Tables of a comparison."""
    blocks = [
        command.pairs({name: result[name] for name in _HEAD}),
        command.table(
            ("T", "KL, nats", "calibration error", "of the teacher"),
            [
                (f"{row['temperature']:g}", *map(_short, (row["kl"], *_calibration(row))))
                for row in result["temperatures"]
            ],
        ),
        command.table(
            ("T", "student", "positions", "gradient error", "angle, degrees"),
            [
                (
                    f"{row['temperature']:g}",
                    gradient["student"],
                    f"{gradient['num_positions']:,}",
                    *_difference(gradient),
                )
                for row in result["temperatures"]
                for gradient in row["gradients"]
            ],
        ),
        command.table(
            ("layer", "cosine, masked", "unmasked", "all kept"),
            [
                (str(row["layer"]), *(_cosine(row[kind]) for kind in ("masked", "unmasked", "kept")))
                for row in result["cosines"]
            ],
        ),
        command.table(
            ("part", "bytes a kept position"),
            [(name.replace("_", " "), f"{size:,.1f}") for name, size in result["bytes_per_kept_position"].items()],
        ),
        "\n".join(f"note: {note}" for note in result["notes"]),
    ]
    return "\n\n".join(block for block in blocks if block)


def _calibration(row: dict[str, Any]) -> tuple[float, float]:
    return row["calibration_error_rebuilt"], row["calibration_error_exact"]


def _difference(gradient: dict[str, Any]) -> tuple[str, str]:
    return _short(gradient["error"]), _short(gradient["angle_degrees"])


def _short(value: float) -> str:
    return f"{value:.3g}"


def _cosine(value: float | None) -> str:
    return "none read" if value is None else f"{value:.6f}"


def check_plot_path(path: str) -> None:
    """Refuses a file that a figure cannot be written to, before anything is measured (UserError)."""
    if Path(path).suffix != ".png":
        raise UserError(f"--plot {path} is no name of a PNG file; end it with .png")
    if not Path(path).absolute().parent.is_dir():
        raise UserError(f"--plot {path} is in a folder that does not exist; make {Path(path).parent} first")


def plot(result: dict[str, Any], path: str) -> None:
    """A PNG of gradient errors, divergences and bytes.

    Raises:
        UserError: it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # needs no display
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    gradients, divergence, sizes = figure.subplots(1, 3)
    _plot_gradients(gradients, result)
    _plot_bars(divergence, {f"T = {row['temperature']:g}": row["kl"] for row in result["temperatures"]})
    divergence.set(title="KL(teacher || cache)", ylabel="nats a masked position")
    parts = {name: size for name, size in result["bytes_per_kept_position"].items() if name != "total"}
    _plot_bars(sizes, {name.replace("_", " "): size for name, size in parts.items()})
    total = result["bytes_per_kept_position"]["total"]
    sizes.set(title=f"size: {total:,.1f} bytes a kept position", ylabel="bytes a kept position")
    figure.suptitle(f"{result['cache']}: {result['num_positions']:,} masked positions, {result['soft_labels']}")
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as error:
        raise UserError(f"--plot {path} cannot be written: {error}") from None


def _plot_gradients(axes: "Axes", result: dict[str, Any]) -> None:
    """Bars by temperature, one a student, over all positions."""
    temperatures = result["temperatures"]
    students = sorted({gradient["student"] for row in temperatures for gradient in row["gradients"]})
    for place, student in enumerate(students):
        errors = [
            next(g["error"] for g in reversed(row["gradients"]) if g["student"] == student) for row in temperatures
        ]
        width = 0.8 / len(students)
        centres = [group + (place - (len(students) - 1) / 2) * width for group in range(len(errors))]
        bars = axes.bar(centres, errors, width, label=f"student {student} in training")
        axes.bar_label(bars, fmt="%.2g", fontsize=8)
    axes.set_xticks(range(len(temperatures)), [f"T = {row['temperature']:g}" for row in temperatures])
    axes.set(title="gradient of the soft-label loss", ylabel="norm of the error / norm of the gradient")
    if students:
        axes.legend()


def _plot_bars(axes: "Axes", values: dict[str, float]) -> None:
    axes.bar_label(axes.bar(list(values), list(values.values())), fmt="%.3g", fontsize=8)
