"""A comparison as text: cells that the page's table shows, too."""

from collections.abc import Sequence
from typing import Any

from teacher_cache.shell import command

FINGERPRINT_CHARACTERS = 12
MISSING = "-"
LOSS_TITLES = {"soft_labels": "soft labels", "masked_lm": "masked-LM", "cosine": "cosine"}
COLUMNS = (
    *(("", name) for name in ("run", "layers × width", "parameters", "steps")),
    *(("held-out", name) for name in ("loss", "masked-LM", "accuracy")),
    *(("", name) for name in ("tokens/s", "time")),
    *(("training", name) for name in ("loss", *LOSS_TITLES.values())),
    *(("", name) for name in ("caches", "state")),
)
"""Of the table: a group, and a name in it."""


def render(result: dict[str, Any]) -> str:
    """All of a `Comparison`, given as plain values."""
    runs = result["runs"]
    header = [f"{group} {name}".strip() for group, name in COLUMNS]
    blocks = [
        command.table(header, [cells(run) for run in runs]),
        command.table(["differs in", *(run["name"] for run in runs)], setting_rows(result["differences"])),
        "\n".join(f"warning: {warning}" for warning in result["warnings"]),
    ]
    return "\n\n".join(block for block in blocks if block)


def cells(run: dict[str, Any]) -> list[str]:
    """A `Row`, given as plain values, by column of `COLUMNS`."""
    held_out, losses = run["held_out"], run["losses"]
    return [
        run["name"],
        f"{run['num_layers']} × {run['width']}",
        f"{run['num_parameters']:,}",
        f"{run['num_steps_done']:,}/{run['num_steps']:,}",
        *(_number(held_out.get(name), ".4f") for name in ("total", "masked_lm")),
        _number(held_out.get("accuracy"), ".1%"),
        _number(run["tokens_per_s"], ",.0f"),
        duration(run["seconds"]),
        *(_number(losses.get(name), ".4f") for name in ("total", *LOSS_TITLES)),
        ", ".join(map(short, run["caches"])),
        run["state"],
    ]


def setting_rows(differences: dict[str, list[Any]]) -> list[list[str]]:
    return [[key, *map(setting, values)] for key, values in differences.items()]


def setting(value: Any) -> str:
    """A value of a configuration."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(setting, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def short(fingerprint: str) -> str:
    return fingerprint[:FINGERPRINT_CHARACTERS]


def _number(value: float | None, form: str) -> str:
    return MISSING if value is None else format(value, form)


def duration(seconds: float) -> str:
    """Two units at most, for example `6 min 40 s`."""
    whole = round(seconds)
    for unit, size, smaller, smaller_size in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller_size} {smaller}"
    return f"{whole} s" if seconds >= 10 else f"{seconds:.1f} s"
