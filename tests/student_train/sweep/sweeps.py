"""Small sweeps as configurations."""

from pathlib import Path
from typing import Any

from student_train.sweep.config import SweepConfig
from teacher_cache.shell import settings

CHOSEN: dict[str, Any] = {"student.num_layers": {"choose": [1, 2]}}
DRAWN: dict[str, Any] = {"optimizer.lr": {"log_uniform": [1e-4, 1e-3]}}


def make_values(output: Path | str = "sweep", space: dict[str, Any] | None = None, **student: Any) -> dict[str, Any]:
    """A sweep's plain values; keywords replace sections of its students."""
    base = {
        "caches": ["cache"],
        "student": {"dropout": 0.0},
        "batch_sequences": 8,
        "held_out_sequences": 8,
        "steps": 12,
        "execution": {"gpus_per_worker": 0, "checkpoint_steps": 1, "evaluation_steps": 1, "max_failures": 0},
    }
    return {"student": base | student, "output": str(output), "space": CHOSEN | DRAWN if space is None else space}


def make_config(*args: Any, sweep: dict[str, Any] | None = None, **student: Any) -> SweepConfig:
    return settings.parse(SweepConfig, make_values(*args, **student) | (sweep or {}))
