"""How parameters move: AdamW, its schedule, and how many steps there are."""

import torch
from torch import nn

from student_train.config import OptimizerConfig, StudentSpec


def count_steps(spec: StudentSpec, num_epoch_sequences: int) -> int:
    """Optimiser steps of the whole run."""
    if spec.steps is not None:
        return spec.steps
    return (spec.epochs or 3) * -(-num_epoch_sequences // spec.batch_sequences)


def schedule(step: int, num_steps: int, warmup_share: float) -> float:
    """Factor of the learning rate for the step after `step` steps: linear rise, then linear decay to 0."""
    warmup = warmup_share * num_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return max(0.0, (num_steps - step) / max(1.0, num_steps - warmup))


def make_optimizer(modules: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW; biases and layer norms do not decay."""
    parameters = [parameter for parameter in modules.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)
