"""A unit's two objects: labels, one row a sequence, and hidden states, one row a block of sequences.

Row r of the hidden file belongs to row group r of the labels file, so that both are read in lock-step and
neither whole.

Legend: K kept positions of a sequence, k top tokens, T temperatures, d hidden size, P kept positions of a block.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from teacher_cache.errors import UserError
from teacher_cache.format import parquet
from teacher_cache.format.manifest import Shard
from teacher_cache.format.objects import put_content
from teacher_cache.format.spec import Identity
from teacher_cache.format.store import Store

BLOCK_SEQUENCES = 128
"""Sequences of a row group, and of a row of the hidden file: the least that a reader decodes at once."""

HIDDEN_DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a cache holds of one sequence in one view, decoded. Positions and their arrays are in order."""

    sequence_id: int
    document_id: int
    """Of the sequence's first token, by the document's place in the corpus."""
    input_ids: np.ndarray
    """int32 `[S]`: the input exactly as the teacher saw it."""
    label_positions: np.ndarray
    """int64 `[L]`: positions that masking chose."""
    label_ids: np.ndarray
    """int32 `[L]`: the true tokens there."""
    kept_positions: np.ndarray
    """int64 `[K]`."""
    rates: np.ndarray
    """float32 `[K]`: the probability with which each position was kept; losses weigh it by 1/rate."""
    topk_ids: np.ndarray
    """int32 `[K, k]`, ascending: they are a set."""
    topk_logits: np.ndarray
    """float32 `[K, k]`, in the order of the ids."""
    rest_log_sum_exp: dict[float, np.ndarray]
    """Temperature to float32 `[K]`: log sum of exp(logit / temperature) outside the top k; empty where k = V."""
    hidden: dict[int, np.ndarray] = field(default_factory=dict)
    """Layer to `[K, d]`, counted as `hidden_states` are, the last as -1."""


def encode(rows: Sequence[Row], identity: Identity, *, metadata: dict[str, Any]) -> tuple[bytes, bytes | None]:
    """The bytes of a unit's labels and hidden objects; None where the spec stores no hidden states."""
    temperatures = _stored_temperatures(rows)
    table = pa.table(
        {
            "sequence_id": pa.array([row.sequence_id for row in rows], pa.int64()),
            "document_id": pa.array([row.document_id for row in rows], pa.int64()),
            "input_ids": parquet.ragged([row.input_ids for row in rows], np.int32),
            "label_positions": parquet.ragged([row.label_positions for row in rows], np.uint16),
            "label_ids": parquet.ragged([row.label_ids for row in rows], np.int32),
            "kept_positions": parquet.ragged([row.kept_positions for row in rows], np.uint16),
            "topk_ids": parquet.ragged([row.topk_ids for row in rows], np.int32),
            "topk_logits": parquet.ragged([row.topk_logits for row in rows], np.float32),
            "rest": parquet.ragged([_stack_rest(row, temperatures) for row in rows], np.float32),
        }
    )
    labels = parquet.write(
        table, metadata={**metadata, "rest_temperatures": temperatures}, row_group_rows=BLOCK_SEQUENCES
    )
    layers = identity.hidden.stored_layers
    return labels, _encode_hidden(rows, identity, metadata) if layers else None


def put_shard(store: Store, rows: Sequence[Row], identity: Identity, *, view: int, unit: int, device: str) -> Shard:
    """Writes a unit's objects under names of their own content; they count once the shard is committed."""
    metadata = {"fingerprint": identity.fingerprint, "view": view, "unit": unit, "device": device}
    labels, hidden = encode(rows, identity, metadata=metadata)
    prefix = f"shards/{view:05d}/{unit:09d}"
    return Shard(
        unit=unit,
        labels=put_content(store, prefix, ".labels.parquet", labels),
        hidden=put_content(store, prefix, ".hidden.parquet", hidden) if hidden is not None else None,
        num_sequences=len(rows),
        num_tokens=sum(len(row.input_ids) for row in rows),
        num_labels=sum(len(row.label_positions) for row in rows),
        num_kept=sum(len(row.kept_positions) for row in rows),
    )


def _stored_temperatures(rows: Sequence[Row]) -> list[float]:
    return list(rows[0].rest_log_sum_exp) if rows else []


def _stack_rest(row: Row, temperatures: Sequence[float]) -> np.ndarray:
    columns = [row.rest_log_sum_exp[temperature] for temperature in temperatures]
    return np.stack(columns, axis=1) if columns else np.empty(0, np.float32)


def _encode_hidden(rows: Sequence[Row], identity: Identity, metadata: dict[str, Any]) -> bytes:
    blocks = [rows[start : start + BLOCK_SEQUENCES] for start in range(0, len(rows), BLOCK_SEQUENCES)]
    dtype = HIDDEN_DTYPES[identity.hidden.code]
    columns: dict[str, Any] = {
        "num_positions": pa.array([sum(len(row.kept_positions) for row in block) for block in blocks], pa.int64())
    }
    for layer in identity.hidden.stored_layers:
        coded = [_checked(np.concatenate([row.hidden[layer] for row in block]).astype(dtype)) for block in blocks]
        columns[_hidden_column(layer)] = pa.array([states.tobytes() for states in coded], pa.large_binary())
    # A block may hold no kept position, and then says nothing of their size.
    hidden_size = rows[0].hidden[identity.hidden.stored_layers[0]].shape[1] if rows else 0
    return parquet.write(pa.table(columns), metadata={**metadata, "hidden_size": hidden_size}, row_group_rows=1)


def _checked(states: np.ndarray) -> np.ndarray:
    if not np.isfinite(states).all():
        raise UserError(f"hidden states are not finite in {states.dtype}; try hidden.code: float32")
    return states


def _hidden_column(layer: int) -> str:
    return f"hidden_{layer}"


class ShardReader:
    """Reads a unit's rows block by block from local, checked files.

    `hidden` None, or no layers, reads labels only: not a byte of the hidden object.

    Raises:
        UserError: from any method, when the files do not hold what the identity says.
    """

    def __init__(self, labels: Path, hidden: Path | None, identity: Identity, layers: Sequence[int] = ()) -> None:
        self._identity = identity
        self._layers = tuple(layers) if hidden else ()
        self._labels, self.metadata = parquet.open_file(labels, name=str(labels))
        self._hidden, self._hidden_size = None, 0
        if hidden and layers:
            self._hidden, metadata = parquet.open_file(hidden, name=str(hidden))
            self._hidden_size = int(metadata["hidden_size"])
        if self.metadata.get("fingerprint") != identity.fingerprint:
            raise UserError(f"{labels} belongs to another cache: fingerprint {self.metadata.get('fingerprint')}")

    @property
    def num_blocks(self) -> int:
        return int(self._labels.num_row_groups)

    def rows(self) -> Iterator[Row]:
        """All rows in order."""
        for block in range(self.num_blocks):
            yield from self.block(block)

    def block(self, index: int) -> list[Row]:
        """The rows of one block, decoded."""
        table = self._labels.read_row_group(index)
        columns = {
            name: parquet.split(*parquet.unragged(table[name]))
            for name in (
                "input_ids",
                "label_positions",
                "label_ids",
                "kept_positions",
                "topk_ids",
                "topk_logits",
                "rest",
            )
        }
        hidden = self._hidden_rows(index, [len(kept) for kept in columns["kept_positions"]])
        sequence_ids, document_ids = table["sequence_id"].to_pylist(), table["document_id"].to_pylist()
        return [
            self._row(sequence_ids[i], document_ids[i], {name: rows[i] for name, rows in columns.items()}, hidden[i])
            for i in range(len(sequence_ids))
        ]

    def _row(self, sequence_id: int, document_id: int, columns: dict[str, np.ndarray], hidden: Any) -> Row:
        kept = columns["kept_positions"].astype(np.int64)
        labels = columns["label_positions"].astype(np.int64)
        keep = self._identity.keep
        num_kept, temperatures = len(kept), self.metadata["rest_temperatures"]
        rest = columns["rest"].reshape(num_kept, len(temperatures))
        return Row(
            sequence_id=sequence_id,
            document_id=document_id,
            input_ids=columns["input_ids"],
            label_positions=labels,
            label_ids=columns["label_ids"],
            kept_positions=kept,
            rates=np.where(np.isin(kept, labels), np.float32(keep.masked), np.float32(keep.unmasked)),
            topk_ids=columns["topk_ids"].reshape(num_kept, self._identity.soft_labels.top_k),
            topk_logits=columns["topk_logits"].reshape(num_kept, self._identity.soft_labels.top_k),
            rest_log_sum_exp={temperature: rest[:, i] for i, temperature in enumerate(temperatures)},
            hidden=hidden,
        )

    def _hidden_rows(self, block: int, lengths: Sequence[int]) -> list[dict[int, np.ndarray]]:
        """For each row of a block, layer to `[K, d]`."""
        if self._hidden is None:
            return [{} for _ in lengths]
        stops = np.cumsum(lengths)
        num_positions = int(stops[-1])
        names = [_hidden_column(layer) for layer in self._layers]
        table = self._hidden.read_row_group(block, columns=["num_positions", *names])
        if table["num_positions"][0].as_py() != num_positions:
            raise UserError("a hidden object and its labels disagree about the kept positions: the cache is damaged")
        states = {}
        for layer, name in zip(self._layers, names, strict=True):
            flat = np.frombuffer(table[name][0].as_buffer(), HIDDEN_DTYPES[self._identity.hidden.code])
            states[layer] = np.split(flat.reshape(num_positions, self._hidden_size), stops[:-1])
        return [{layer: rows[i] for layer, rows in states.items()} for i in range(len(lengths))]
