"""Micro-batches of like length under a token budget.

Legend: B sequences, S padded length.
"""

from collections.abc import Sequence

import numpy as np
import torch


def group_by_tokens(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Places of sequences, longest first, grouped so that no group's padded size exceeds `max_tokens`.

    A sequence that is longer than the budget forms a group of its own. Equal lengths keep their order, so the
    groups are a pure function of the lengths.
    """
    groups: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if groups and lengths[groups[-1][0]] * (len(groups[-1]) + 1) <= max_tokens:
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups


def pad(sequences: Sequence[np.ndarray], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Input ids and attention mask, int64 `[B, S]`."""
    shape = len(sequences), max(map(len, sequences))
    input_ids, attention_mask = np.full(shape, pad_id, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for row, ids in enumerate(sequences):
        input_ids[row, : len(ids)] = ids
        attention_mask[row, : len(ids)] = 1
    return torch.from_numpy(input_ids), torch.from_numpy(attention_mask)
