"""How long answers take side by side, so that what else the machine does is shared by all of them."""

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from student_train.measuring import timed


def latencies_s(works: Mapping[str, Callable[[], Any]], *, num_rounds: int) -> dict[str, list[float]]:
    """Seconds of each work, by round: in a round each has one turn, in an order drawn anew; all were warmed up."""
    for work in works.values():
        work()
    found: dict[str, list[float]] = {name: [] for name in works}
    draw = random.Random(0)
    for _ in range(num_rounds):
        for name in draw.sample(list(works), len(works)):
            found[name].append(timed(works[name]))
    return found


def median_ms(seconds: Sequence[float]) -> float:
    return 1000 * statistics.median(seconds)
