"""A million units on paper: what the bookkeeping of a view takes, in seconds and memory, and how it grows.

Usage: `python -m infra.bench.scale [--quick] [--json]`

No teacher is asked and no shard is written: commits and manifests are real, what they list is not. Each step runs in a
process of its own, on a local folder below TMPDIR, which needs about 5 GB for the commits of a million units. Sealing
reads each commit; where that would take more than `MAX_SEAL_S`, it is left out and said so.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from infra.bench.output import machine, say, show, versions
from infra.bench.scale_steps import Taken

SIZES, QUICK_SIZES = (10_000, 100_000, 1_000_000), (1_000, 10_000)
MAX_SEAL_S = 180.0
STEPS = {
    "plan": "planning: nothing is committed",
    "resume": "resuming: half of all units is committed",
    "seal": "sealing from commits",
    "open": "opening a sealed view",
    "start": "a student's start: opening, order, first batch",
    "go on": "the same in mid-epoch",
}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What a step took at a size."""

    step: str
    num_units: int
    taken: Taken

    @property
    def added_mb(self) -> float:
        """At most, beyond what the process took before."""
        return self.taken.peak_mb - self.taken.start_mb


def in_process(step: str, folder: Path, num_units: int) -> Taken:
    """Runs one of `scale_steps.STEPS` in a process of its own."""
    command = [sys.executable, "-m", "infra.bench.scale_steps", step, str(folder), str(num_units)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Taken(**json.loads(done.stdout))


def measure(num_units: int, folder: Path, *, with_seal: bool) -> Iterator[Figure]:
    """All steps at one size, below a folder of their own."""
    building, sealed = folder / f"building-{num_units}", folder / f"sealed-{num_units}"
    building.mkdir()
    yield _figure("plan", num_units, "plan", building)
    _prepare("make_half", building, num_units)
    yield _figure("resume", num_units, "plan", building)
    if with_seal:
        _prepare("make_rest", building, num_units)
        yield _figure("seal", num_units, "seal", building)
    _prepare("make_sealed", sealed, num_units)
    for name, step in (("open", "open_sealed"), ("start", "start"), ("go on", "go_on")):
        yield _figure(name, num_units, step, sealed)


def _prepare(step: str, folder: Path, num_units: int) -> None:
    say(f"{num_units:,} units: {step} took {in_process(step, folder, num_units).seconds:.1f} s")


def _figure(name: str, num_units: int, step: str, folder: Path) -> Figure:
    figure = Figure(step=name, num_units=num_units, taken=in_process(step, folder, num_units))
    say(f"{num_units:,} units: {name} took {figure.taken.seconds:.2f} s, {figure.taken.cpu_s:.2f} s of CPU")
    return figure


def measure_all(sizes: Sequence[int]) -> list[Figure]:
    """All steps at ascending sizes."""
    figures: list[Figure] = []
    for num_units in sizes:
        with tempfile.TemporaryDirectory() as folder:
            figures += measure(num_units, Path(folder), with_seal=_seal_seconds(figures, num_units) <= MAX_SEAL_S)
    return figures


def _seal_seconds(figures: Sequence[Figure], num_units: int) -> float:
    """What sealing would take, by the largest size at which it was measured."""
    sealed = [figure for figure in figures if figure.step == "seal"]
    return sealed[-1].taken.seconds / sealed[-1].num_units * num_units if sealed else 0.0


def ratios(figures: Sequence[Figure]) -> dict[str, float]:
    """Growth from one size to the next, 10 is linear: of CPU time, which other work on the machine does not change, and
    of the memory that a step adds. Less than 10 ms or 1 MB is noise.
    """
    grown = {}
    for step in STEPS:
        for before, after in pairwise(figure for figure in figures if figure.step == step):
            sizes = f"{after.num_units:,} against {before.num_units:,} units"
            grown[f"{step}: CPU time, {sizes}"] = max(0.01, after.taken.cpu_s) / max(0.01, before.taken.cpu_s)
            grown[f"{step}: memory, {sizes}"] = max(1.0, after.added_mb) / max(1.0, before.added_mb)
    return grown


def render(figures: Sequence[Figure], sizes: Sequence[int]) -> str:
    """A table: a step a row, a size a column."""
    head = ["step", *(f"{size:,} units" for size in sizes), "growth per tenfold: CPU time, added memory"]
    found = {(figure.step, figure.num_units): figure for figure in figures}
    rows = [head, ["---"] * len(head)]
    for step, meaning in STEPS.items():
        cells = [_cell(found.get((step, size))) for size in sizes]
        rows.append([meaning, *cells, _growth(step, figures)])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    left_out = [f"{size:,}" for size in sizes if ("seal", size) not in found]
    if left_out:
        seconds = _seal_seconds(figures, sizes[-1])
        lines += ["", f"Sealing {left_out[0]} units was left out: it would take about {seconds:.0f} s."]
    return "\n".join(
        [*lines, "", "MB are the most that the process took, and in brackets what it took before the step."]
    )


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return "left out"
    taken = figure.taken
    return f"{taken.seconds:.2f} s, {taken.peak_mb:.0f} MB ({taken.start_mb:.0f})"


def _growth(step: str, figures: Sequence[Figure]) -> str:
    grown = ratios([figure for figure in figures if figure.step == step])
    times, memory = ([value for name, value in grown.items() if kind in name] for kind in ("CPU time", "memory"))
    return "; ".join(f"{time:.1f}, {mb:.1f}" for time, mb in zip(times, memory, strict=True))


def result(figures: Sequence[Figure]) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "name": "scale",
        "ratios": ratios(figures),
        "figures": [{"step": f.step, "num_units": f.num_units, **asdict(f.taken)} for f in figures],
        "machine": machine(),
        "versions": versions(),
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures the bookkeeping of a view of many units.")
    parser.add_argument("--quick", action="store_true", help=f"up to {QUICK_SIZES[-1]:,} units")
    parser.add_argument("--json", action="store_true", help="print JSON, and the table to stderr")
    return parser.parse_args(arguments)


def main() -> None:
    arguments = parse()
    sizes = QUICK_SIZES if arguments.quick else SIZES
    figures = measure_all(sizes)
    show(result(figures), render(figures, sizes), as_json=arguments.json)


if __name__ == "__main__":
    main()
