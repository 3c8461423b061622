"""What benchmarks of training share: a student of BERT-base's width on a cache, and steps that take turns."""

from pathlib import Path
from typing import Any

import torch

from student_train.config import StudentSpec
from student_train.loop import Trainer
from student_train.rank import Rank
from teacher_cache.shell.settings import parse

NUM_LAYERS, WIDTH = 6, 768
STEP_TOKENS = 2048


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_trainer(cache: str, *, sequence_length: int, width: int, disk_cache: Path | None = None) -> Trainer:
    """A student of 6 layers and random weights, with the published losses; a step takes 2,048 tokens."""
    values: dict[str, Any] = {
        "caches": [cache],
        "output": "unused",
        "student": {
            "num_layers": NUM_LAYERS,
            "width": width,
            "num_heads": width // 64,
            "initial_weights": "random",
        },
        "batch_sequences": max(1, STEP_TOKENS // sequence_length),
        "steps": 1000,
        "execution": {"disk_cache": str(disk_cache) if disk_cache else None},
    }
    return Trainer(parse(StudentSpec, values), device=device(), rank=Rank())


def forget_peak() -> None:
    """Lets `peak_bytes` start from what is held now (CPU: on Linux)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
