"""What a reader knows of a kept position before its hidden state: tokens and soft labels. It predicts a good part.

Legend: K kept positions, k top tokens, e embedding size, F features.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from teacher_cache.targets.heads import OutputHead
from teacher_cache.targets.soft_labels import SoftLabels

TEMPERATURES = (1.0, 4.0)
"""Of the top k's mean embeddings."""


@dataclass(frozen=True, kw_only=True)
class SideInformation:
    """Of K kept positions."""

    is_masked: torch.Tensor
    """bool `[K]`."""
    token_ids: torch.Tensor
    """int64 `[K, 3]`: the input token there, the one before and the one after; at an end, the one there."""
    soft_labels: SoftLabels

    def to(self, device: torch.device) -> "SideInformation":
        return SideInformation(
            is_masked=self.is_masked.to(device, non_blocking=True),
            token_ids=self.token_ids.to(device, non_blocking=True),
            soft_labels=self.soft_labels.to(device),
        )

    def __getitem__(self, rows: Any) -> "SideInformation":
        return SideInformation(
            is_masked=self.is_masked[rows], token_ids=self.token_ids[rows], soft_labels=self.soft_labels[rows]
        )


def num_features(head: OutputHead) -> int:
    return 2 + (3 + len(TEMPERATURES)) * head.decoder_weight.shape[1]


def features(side: SideInformation, head: OutputHead) -> torch.Tensor:
    """What a linear predictor of hidden states sees, float32 `[K, F]`: embeddings, less their mean, and two flags."""
    embeddings, mean = head.decoder_weight, head.mean_embedding
    masked = side.is_masked.float()[:, None]
    columns = [torch.ones_like(masked), masked]
    columns += [embeddings[ids] - mean for ids in side.token_ids.T]
    for temperature in TEMPERATURES:
        share = (side.soft_labels.topk_logits / temperature).softmax(dim=-1)
        ids = side.soft_labels.topk_ids
        columns.append(F.embedding_bag(ids, embeddings, per_sample_weights=share, mode="sum") - mean)
    return torch.cat(columns, dim=1)


def gather(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    *,
    label_places: torch.Tensor,
    kept_places: torch.Tensor,
    soft_labels: SoftLabels,
) -> SideInformation:
    """Side information of places `[K]` in padded sequences `[B, S]`, flattened."""
    length = input_ids.shape[1]
    flat, lengths = input_ids.flatten(), attention_mask.sum(dim=1)
    column = kept_places % length
    before = kept_places - (column > 0).long()
    after = kept_places + (column + 1 < lengths[kept_places // length]).long()
    return SideInformation(
        is_masked=torch.isin(kept_places, label_places),
        token_ids=torch.stack([flat[kept_places], flat[before], flat[after]], dim=1),
        soft_labels=soft_labels,
    )
