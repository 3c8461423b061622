"""Seconds and medians, and the machine that they belong to: what timings here and benchmarks share."""

import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers


def timed(work: Callable[[], Any]) -> float:
    """Seconds, a GPU's work included."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def interval(values: Sequence[float], *, draws: int = 2000) -> tuple[float, float]:
    """95 % interval of the median, by bootstrap (Efron 1979)."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(draws))
    return medians[int(0.025 * draws)], medians[int(0.975 * draws)]


def machine() -> dict[str, Any]:
    return {"processor": processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}


def load_per_core() -> float:
    """Of the minute before: what a timing shares the machine with."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
