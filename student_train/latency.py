"""How long answers take side by side, so that what else the machine does is shared by all of them."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from student_train.measuring import timed


def latencies_s(works: Mapping[str, Callable[[], Any]], *, num_rounds: int) -> dict[str, list[float]]:
    """Seconds of each work, by round: in a round each has one turn, and all were warmed up."""
    for work in works.values():
        work()
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(num_rounds):
        for name, work in works.items():
            found[name].append(timed(work))
    return found


def median_ms(seconds: Sequence[float]) -> float:
    return 1000 * statistics.median(seconds)
