"""A worker's place among its like, and how they add up tensors."""

from dataclasses import dataclass

import torch
from torch import distributed as dist
from torch import nn


@dataclass(frozen=True, kw_only=True)
class Rank:
    """Alone, or one of a `torch.distributed` group."""

    index: int = 0
    size: int = 1

    @classmethod
    def of_process(cls) -> "Rank":
        if dist.is_available() and dist.is_initialized():
            return cls(index=dist.get_rank(), size=dist.get_world_size())
        return cls()

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_gradients(self, modules: nn.Module) -> None:
        """One flat all-reduce of all gradients; what no position needed has zeros, whatever the number of workers."""
        parameters = [parameter for parameter in modules.parameters() if parameter.requires_grad]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()
