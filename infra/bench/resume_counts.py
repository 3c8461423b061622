"""What happened while students were killed, what should have been 0, and how it is told."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from infra.bench.output import machine, versions

TOLERANCE = 1e-4
"""Of a parameter tensor's relative error: float32 sums in another order."""
MAX_SHARE = 1.1
"""Of the bytes that a worker reads, times the number of workers."""


@dataclass(kw_only=True)
class Counts:
    """What happened, and what should be 0."""

    kills: Counter[str] = field(default_factory=Counter)
    starts: Counter[int] = field(default_factory=Counter)
    """By number of workers."""
    finished: int = 0
    steps: int = 0
    """Of the finished runs."""
    steps_done: int = 0
    """Those that were done again included."""
    wrong_steps: int = 0
    """Missing, there twice, or with other sequences than the pure order has."""
    batches_that_differ: int = 0
    """Between numbers of workers."""
    stuck: int = 0
    unprovoked: int = 0
    """Runs that failed although their driver was not killed."""
    largest_error: float = 0.0
    error_of_way: float = 0.0
    shares: dict[int, float] = field(default_factory=dict)
    """By number of workers: see `largest_share`."""
    wall_s: float = 0.0

    @property
    def ok(self) -> bool:
        wrong = (self.wrong_steps, self.batches_that_differ, self.stuck, self.unprovoked)
        within = self.largest_error <= TOLERANCE and all(share <= MAX_SHARE for share in self.shares.values())
        return self.finished > 0 and not any(wrong) and within


def result(counts: Counts) -> dict[str, Any]:
    """What `--json` prints."""
    ratios = {f"bytes of a worker of {number}, times {number}": share for number, share in counts.shares.items()}
    ratios |= {"largest relative error of a parameter tensor": counts.largest_error}
    ratios |= {"distance to the undisturbed student, over the way it went": counts.error_of_way}
    figures = {name: value for name, value in vars(counts).items() if name not in ("shares", "largest_error")}
    return {
        "name": "resume",
        "ratios": ratios,
        "figures": figures | {"ok": counts.ok},
        "machine": machine(),
        "versions": versions(),
    }


def render(counts: Counts) -> str:
    """The counts as lines of name and value."""
    starts = ", ".join(f"{times} with {number}" for number, times in sorted(counts.starts.items()))
    values = {
        "kills": listed(counts.kills),
        "starts": f"{counts.starts.total()}: {starts} workers (0: without Ray)",
        "finished runs": f"{counts.finished}, of {counts.steps} steps; done {counts.steps_done}",
        "wrong steps": counts.wrong_steps,
        "batches that differ": counts.batches_that_differ,
        "stuck": counts.stuck,
        "unprovoked": counts.unprovoked,
        "largest error": f"{counts.largest_error:.1e} of a parameter tensor, {counts.error_of_way:.1e} of the way",
        "bytes × W": ", ".join(f"W {number}: {share:.3f}" for number, share in counts.shares.items()),
        "wall s": round(counts.wall_s),
    }
    return "\n".join([*(f"{name:22}{value}" for name, value in values.items()), "ok" if counts.ok else "NOT ok"])


def listed(kills: Counter[str]) -> str:
    """How many, and of which kinds."""
    return f"{kills.total()}: " + ", ".join(f"{number} {kind}" for kind, number in kills.most_common())
