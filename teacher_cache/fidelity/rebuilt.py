"""Rows of soft labels as a student gets them from a cache, dense or as the top k and one bucket: pure torch.

Legend: K positions of a chunk, V vocabulary, k top tokens, d hidden size.
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from teacher_cache.fidelity.measures import bucket_target, kl
from teacher_cache.targets.heads import OutputHead
from teacher_cache.targets.soft_labels import SoftLabels, bucket_log_probabilities, replay_log_probabilities


class RebuiltRows(Protocol):
    """K rows at one temperature."""

    def kl(self, exact_log_probabilities: torch.Tensor) -> torch.Tensor:
        """KL(exact || rebuilt) `[K]` in nats, of exact rows `[K, V]`."""

    def best(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The most probable token of each row, and its probability: `[K]`, `[K]`."""

    def target(self, student_probabilities: torch.Tensor) -> torch.Tensor:
        """What a student of these probabilities `[K, V]` is pulled to: `[K, V]`."""


@dataclass(frozen=True)
class ReplayedRows:
    """Whole rows, rebuilt from hidden states."""

    log_probabilities: torch.Tensor
    """`[K, V]`."""

    @classmethod
    def of(cls, hidden: torch.Tensor, head: OutputHead, soft: SoftLabels, temperature: float) -> "ReplayedRows":
        """From last hidden states `[K, d]` as the cache gives them back."""
        return cls(replay_log_probabilities(hidden, head, soft, temperature))

    def kl(self, exact_log_probabilities: torch.Tensor) -> torch.Tensor:
        return kl(exact_log_probabilities.exp(), self.log_probabilities)

    def best(self) -> tuple[torch.Tensor, torch.Tensor]:
        best = self.log_probabilities.max(dim=-1)
        return best.indices, best.values.exp()

    def target(self, student_probabilities: torch.Tensor) -> torch.Tensor:
        return self.log_probabilities.exp()


@dataclass(frozen=True)
class BucketedRows:
    """The top k tokens and one bucket for the rest (none where k = V)."""

    topk_ids: torch.Tensor
    """`[K, k]`."""
    log_probabilities: torch.Tensor
    """`[K, k + 1]`, the rest's last; `[K, V]` where k = V."""

    @classmethod
    def of(cls, soft: SoftLabels, temperature: float) -> "BucketedRows":
        """
        Raises:
            UserError: the rest is not stored at `temperature`.
        """
        return cls(soft.topk_ids, bucket_log_probabilities(soft, temperature))

    def kl(self, exact_log_probabilities: torch.Tensor) -> torch.Tensor:
        """Over the same k tokens and bucket: what lies within the bucket, these rows do not say."""
        exact = exact_log_probabilities.gather(-1, self.topk_ids)
        if self.log_probabilities.shape[-1] > self.topk_ids.shape[-1]:
            outside = exact_log_probabilities.scatter(-1, self.topk_ids, -torch.inf)
            exact = torch.cat([exact, outside.logsumexp(dim=-1, keepdim=True)], dim=-1)
        return kl(exact.exp(), self.log_probabilities)

    def best(self) -> tuple[torch.Tensor, torch.Tensor]:
        best = self.log_probabilities[:, : self.topk_ids.shape[-1]].max(dim=-1)  # the bucket is no token
        return self.topk_ids.gather(-1, best.indices[:, None])[:, 0], best.values.exp()

    def target(self, student_probabilities: torch.Tensor) -> torch.Tensor:
        return bucket_target(student_probabilities, self.topk_ids, self.log_probabilities)
