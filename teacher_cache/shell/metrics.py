"""Figures for Prometheus, by Ray's agents; `infra/README.md` says how they are gathered and shown."""

import sys
from collections.abc import Callable, Mapping


class Metrics:
    """Figures of one build or run. Without Ray nobody is told.

    Names ending in `_total` are counters, to which values are added; all others are gauges, which are set. Ray puts
    `ray_` before each name.
    """

    def __init__(self, descriptions: Mapping[str, str], labels: Mapping[str, str]) -> None:
        """`descriptions` by name; `labels` tell this build or run from others."""
        ray = sys.modules.get("ray")  # who uses it has imported it
        recorder = _recorder if ray is not None and ray.is_initialized() else _nobody
        self._recorders = {name: recorder(name, text, labels) for name, text in descriptions.items()}

    def record(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._recorders[name](value)


def _nobody(name: str, description: str, labels: Mapping[str, str]) -> Callable[[float], None]:
    return lambda value: None


def _recorder(name: str, description: str, labels: Mapping[str, str]) -> Callable[[float], None]:
    from ray.util.metrics import Counter, Gauge

    if not name.endswith("_total"):
        return Gauge(name, description, tuple(labels)).set_default_tags(dict(labels)).set
    counter = Counter(name, description, tuple(labels)).set_default_tags(dict(labels))

    def add(value: float) -> None:
        if value > 0:  # Ray refuses 0
            counter.inc(value)

    return add
