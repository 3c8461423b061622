"""Rows become tensors: micro-batches of a token budget, flat over the positions that matter.

Legend: B sequences, S padded length, U positions that are kept or labelled, K kept positions, L labels, k top tokens,
d hidden size; all of one micro-batch.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch

from teacher_cache.format.coder import Coder
from teacher_cache.format.row import Row
from teacher_cache.targets.batching import group_by_tokens, pad
from teacher_cache.targets.side_information import gather
from teacher_cache.targets.soft_labels import SoftLabels

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """What one forward and backward pass needs."""

    input_ids: torch.Tensor
    """int64 `[B, S]`, padded."""
    attention_mask: torch.Tensor
    """int64 `[B, S]`."""
    places: torch.Tensor
    """int64 `[U]`: places in the flattened `[B * S]`. The first K are kept, the last L are labelled."""
    label_ids: torch.Tensor
    """int64 `[L]`."""
    weights: torch.Tensor
    """float32 `[K]`: 1 / rate."""
    soft_labels: SoftLabels
    """Of the K kept positions."""
    hidden: torch.Tensor | None
    """float32 `[K, d]`: the teacher's last hidden states; None where no loss needs them, or before `decode_hidden`."""
    levels: torch.Tensor | None = None
    """int8 or int16 `[K, d]`: the same, transform-coded."""
    sources: torch.Tensor | None = None
    """int64 `[K]`: which cache's code `levels` are in."""

    @property
    def num_kept(self) -> int:
        return len(self.weights)

    @property
    def first_label(self) -> int:
        """Where in `places` the labelled ones begin."""
        return len(self.places) - len(self.label_ids)

    @property
    def kept_places(self) -> torch.Tensor:
        return self.places[: self.num_kept]

    @property
    def label_places(self) -> torch.Tensor:
        return self.places[self.first_label :]

    def to(self, device: torch.device) -> "MicroBatch":
        return self._moved(lambda value: value.to(device, non_blocking=True))

    def pinned(self) -> "MicroBatch":
        """In memory from which a GPU copies while it computes."""
        return self._moved(lambda value: value.pin_memory())

    def _moved(self, move: Callable[[torch.Tensor], torch.Tensor]) -> "MicroBatch":
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, torch.Tensor):
                value = move(value)
            elif isinstance(value, SoftLabels):
                value = value.moved(move)
            moved[field.name] = value
        return replace(self, **moved)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One worker's part of a global batch."""

    epoch: int
    counts: torch.Tensor
    """int64 `[4]`: sequences, tokens, labels, and the sequences' digest, see `StepReport`."""
    sequences: list[tuple[int, int]]
    """Of each row, which of the caches it is from, and its id there."""
    micro_batches: list[MicroBatch]


def make_batch(
    rows: Sequence[Row], *, epoch: int, max_tokens: int, pad_id: int, hidden_layer: int | None, pin: bool
) -> Batch:
    """Splits rows into micro-batches of like lengths, of at most `max_tokens` with padding."""
    groups = group_by_tokens([len(row.input_ids) for row in rows], max_tokens)
    batches = [collate([rows[i] for i in group], pad_id=pad_id, hidden_layer=hidden_layer) for group in groups]
    num_tokens, num_labels = (sum(len(getattr(row, name)) for row in rows) for name in ("input_ids", "label_ids"))
    return Batch(
        epoch=epoch,
        counts=torch.tensor([len(rows), num_tokens, num_labels, digest(rows)], dtype=torch.int64),
        sequences=[(row.source, row.sequence_id) for row in rows],
        micro_batches=[batch.pinned() for batch in batches] if pin else batches,
    )


def digest(rows: Sequence[Row]) -> int:
    """Sum of a hash of each row's sequence, modulo 2^62: so that workers' digests can be added up in int64."""
    return sum(sequence_hash(row.sequence_id, row.source) for row in rows) % 2**62


def sequence_hash(sequence_id: int, source: int = 0) -> int:
    """40 bits, so that millions of them add up without overflow (multiplicative hashing, Knuth vol. 3, 6.4)."""
    return (((source << 40) + sequence_id + 1) * 0x9E3779B97F4A7C15 % 2**64) >> 24


def made_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items; while one is used, a thread makes the next."""
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="make-ahead") as thread:
        coming = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield item  # type: ignore[misc]  # not the end


def collate(rows: Sequence[Row], *, pad_id: int, hidden_layer: int | None) -> MicroBatch:
    """Pads and flattens rows; `hidden_layer` is the stored layer that feeds the teacher's head, None for none."""
    input_ids, attention_mask = pad([row.input_ids for row in rows], pad_id)
    length = input_ids.shape[1]
    kept, labelled = (
        _places([getattr(row, name) for row in rows], length) for name in ("kept_positions", "label_positions")
    )
    is_label, is_kept = torch.isin(kept, labelled), torch.isin(labelled, kept)
    # Unlabelled ones first, so that kept and labelled positions are each a slice.
    kept_order = torch.cat([torch.nonzero(~is_label)[:, 0], torch.nonzero(is_label)[:, 0]])
    label_order = torch.cat([torch.nonzero(is_kept)[:, 0], torch.nonzero(~is_kept)[:, 0]])
    states = levels = sources = None
    if hidden_layer is not None and rows[0].levels:
        levels = _joined([row.levels[hidden_layer] for row in rows])[kept_order]
        sources = _joined([np.full(len(row.kept_positions), row.source) for row in rows])[kept_order]
    elif hidden_layer is not None:
        states = _joined([row.hidden[hidden_layer] for row in rows], np.float32)[kept_order]
    return MicroBatch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        places=torch.cat([kept[kept_order], labelled[label_order][int(is_kept.sum()) :]]),
        label_ids=_joined([row.label_ids for row in rows], np.int64)[label_order],
        weights=1 / _joined([row.rates for row in rows], np.float32)[kept_order],
        soft_labels=SoftLabels.of_rows(rows)[kept_order],
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
        kept_places=batch.kept_places,
        label_places=batch.label_places,
        soft_labels=batch.soft_labels,
    )
    if len(coders) == 1:
        return replace(batch, hidden=coders[0].decode_hidden(hidden_layer, batch.levels, side))
    hidden = torch.empty(batch.levels.shape, device=batch.levels.device)
    for source, coder in enumerate(coders):
        rows = batch.sources == source
        hidden[rows] = coder.decode_hidden(hidden_layer, batch.levels[rows], side[rows])
    return replace(batch, hidden=hidden)


def _joined(arrays: Sequence[np.ndarray], dtype: Any = None) -> torch.Tensor:
    joined = np.concatenate(arrays)
    return torch.from_numpy(joined if dtype is None else joined.astype(dtype, copy=False))


def _places(positions: Sequence[np.ndarray], length: int) -> torch.Tensor:
    return _joined([row * length + places for row, places in enumerate(positions)], np.int64)
