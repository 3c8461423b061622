"""Small student runs on CPU."""

from pathlib import Path
from typing import Any

import pytest
import torch

from student_train.config import StudentSpec
from student_train.loop import Trainer
from student_train.rank import Rank
from student_train.run_folder import StepReport
from teacher_cache.format.cache import Cache
from teacher_cache.shell.settings import parse

CPU = torch.device("cpu")
BUCKET_ONLY = {"soft_labels": "bucket", "weights": {"cosine": 0}}
"""A loss that needs no hidden states."""


def make_spec(caches: Cache | list[Cache], output: Path | str = "unused", **overrides: Any) -> StudentSpec:
    """In process, without dropout, several micro-batches a step; `overrides` replace whole sections."""
    values: dict[str, Any] = {
        "caches": [cache.url for cache in (caches if isinstance(caches, list) else [caches])],
        "output": str(output),
        "student": {"dropout": 0.0},
        "batch_sequences": 16,
        "execution": make_execution(),
    }
    return parse(StudentSpec, values | overrides)


def make_execution(**overrides: Any) -> dict[str, Any]:
    return {"num_workers": 0, "gpus_per_worker": 0, "micro_batch_tokens": 80, "log_steps": 1000} | overrides


def make_trainer(spec: StudentSpec) -> Trainer:
    return Trainer(spec, device=CPU, rank=Rank())


def ignore(report: StepReport) -> None:
    """Takes a step's report."""


class KilledError(Exception):
    """What a test ends a run with."""


def train_until(trainer: Trainer, step: int) -> None:
    """Trains until `step` is done, as a run does that is killed there."""

    def kill(report: StepReport) -> None:
        if report.step == step:
            raise KilledError

    with pytest.raises(KilledError):
        trainer.train(kill)


def parameters_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.modules.named_parameters()}


def gradient_of(trainer: Trainer) -> torch.Tensor:
    """All gradients as one vector."""
    return torch.cat([p.grad.flatten() for p in trainer.modules.parameters() if p.grad is not None])
