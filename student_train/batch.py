"""Rows become tensors: micro-batches of a token budget, flat over the positions that matter.

Legend: B sequences, S padded length, K kept positions, L labels, k top tokens, d hidden size; all of one
micro-batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from teacher_cache.format.coder import Coder
from teacher_cache.format.row import Row
from teacher_cache.targets.batching import pad
from teacher_cache.targets.side_information import gather
from teacher_cache.targets.soft_labels import SoftLabels


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """What one forward and backward pass needs."""

    input_ids: torch.Tensor
    """int64 `[B, S]`, padded."""
    attention_mask: torch.Tensor
    """int64 `[B, S]`."""
    label_places: torch.Tensor
    """int64 `[L]`: places in the flattened `[B * S]`."""
    label_ids: torch.Tensor
    """int64 `[L]`."""
    kept_places: torch.Tensor
    """int64 `[K]`: places in the flattened `[B * S]`."""
    weights: torch.Tensor
    """float32 `[K]`: 1 / rate."""
    soft_labels: SoftLabels
    hidden: torch.Tensor | None
    """float32 `[K, d]`: the teacher's last hidden states; None where no loss needs them, or before `decode_hidden`."""
    levels: torch.Tensor | None = None
    """int16 `[K, d]`: the same, transform-coded."""
    sources: torch.Tensor | None = None
    """int64 `[K]`: which cache's code `levels` are in."""

    def to(self, device: torch.device) -> "MicroBatch":
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, torch.Tensor):
                value = value.to(device, non_blocking=True)
            elif isinstance(value, SoftLabels):
                value = value.to(device)
            moved[field.name] = value
        return replace(self, **moved)


def collate(rows: Sequence[Row], *, pad_id: int, hidden_layer: int | None) -> MicroBatch:
    """Pads and flattens rows; `hidden_layer` is the stored layer that feeds the teacher's head, None for none."""
    input_ids, attention_mask = pad([row.input_ids for row in rows], pad_id)
    length = input_ids.shape[1]
    states = levels = sources = None
    if hidden_layer is not None and rows[0].levels:
        levels = _joined([row.levels[hidden_layer] for row in rows], np.int16)
        sources = _joined([np.full(len(row.kept_positions), row.source) for row in rows], np.int64)
    elif hidden_layer is not None:
        states = _joined([row.hidden[hidden_layer] for row in rows], np.float32)
    return MicroBatch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        label_places=_places([row.label_positions for row in rows], length),
        label_ids=_joined([row.label_ids for row in rows], np.int64),
        kept_places=_places([row.kept_positions for row in rows], length),
        weights=1 / _joined([row.rates for row in rows], np.float32),
        soft_labels=SoftLabels.of_rows(rows),
        hidden=states,
        levels=levels,
        sources=sources,
    )


def decode_hidden(batch: MicroBatch, coders: Sequence[Coder], hidden_layer: int) -> MicroBatch:
    """The batch with `hidden` from its levels, on its device; as it is where it has none."""
    if batch.levels is None or batch.sources is None:
        return batch
    side = gather(
        batch.input_ids,
        batch.attention_mask,
        label_places=batch.label_places,
        kept_places=batch.kept_places,
        soft_labels=batch.soft_labels,
    )
    hidden = torch.empty(batch.levels.shape, device=batch.levels.device)
    for source, coder in enumerate(coders):
        rows = batch.sources == source
        hidden[rows] = coder.decode_hidden(hidden_layer, batch.levels[rows], side[rows])
    return replace(batch, hidden=hidden)


def _joined(arrays: Sequence[np.ndarray], dtype: Any) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(arrays).astype(dtype))


def _places(positions: Sequence[np.ndarray], length: int) -> torch.Tensor:
    return _joined([row * length + places for row, places in enumerate(positions)], np.int64)
