"""A unit's two objects: labels, one row a sequence, and hidden states, one row a block of sequences.

Row r of the hidden file belongs to row group r of the labels file, so that both are read in lock-step and
neither whole. Packed soft labels are coded a block at a time, and stand in the first row of their row group.

Legend: K kept positions of a sequence, k top tokens, T temperatures, d hidden size, P kept positions of a block.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from teacher_cache.errors import UserError
from teacher_cache.format import parquet
from teacher_cache.format.coder import Coder
from teacher_cache.format.manifest import Shard
from teacher_cache.format.objects import put_content
from teacher_cache.format.refusal import refusing
from teacher_cache.format.row import Row
from teacher_cache.format.shard_columns import (
    BLOCK_SEQUENCES,
    FLOAT_COLUMNS,
    ID_COLUMNS,
    INPUT_COLUMNS,
    Ragged,
    check_finite,
    check_ids,
    checked_hidden_size,
    hidden_column,
    hidden_columns,
    inputs,
    labels_columns,
    num_answers,
)
from teacher_cache.format.shard_list import shard_prefix, shard_suffix
from teacher_cache.format.spec import Identity
from teacher_cache.storage.store import Store
from teacher_cache.targets.soft_labels import SoftLabels

HIDDEN_DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}


def encode(
    rows: Sequence[Row], identity: Identity, coder: Coder, *, metadata: dict[str, Any]
) -> tuple[bytes, bytes | None]:
    """The bytes of a unit's labels and hidden objects; None where the spec stores no hidden states."""
    temperatures = list(rows[0].rest_log_sum_exp) if rows else []
    columns = {
        "sequence_id": pa.array([row.sequence_id for row in rows], pa.int64()),
        "document_id": pa.array([row.document_id for row in rows], pa.int64()),
        "input_ids": parquet.ragged([row.input_ids for row in rows], np.int32),
        "label_positions": parquet.ragged([row.label_positions for row in rows], np.uint16),
        "label_ids": parquet.ragged([row.label_ids for row in rows], np.int32),
        "kept_positions": parquet.ragged([row.kept_positions for row in rows], np.uint16),
    }
    blocks = [rows[start : start + BLOCK_SEQUENCES] for start in range(0, len(rows), BLOCK_SEQUENCES)]
    soft_labels = [SoftLabels.of_rows(block) for block in blocks]
    if labels_code := coder.codebook.labels:
        packed = [labels_code.encode(soft) for soft in soft_labels]
        columns["soft_labels"] = _first_of_each(packed, blocks)
        soft_labels = [labels_code.decode(data, len(soft)) for data, soft in zip(packed, soft_labels, strict=True)]
    else:
        columns["topk_ids"] = parquet.ragged([row.topk_ids for row in rows], np.int32)
        columns["topk_logits"] = parquet.ragged([row.topk_logits for row in rows], np.float32)
        columns["rest"] = parquet.ragged([_stack_rest(row, temperatures) for row in rows], np.float32)
    metadata = {**metadata, "codebook": coder.codebook.sha256}
    labels = parquet.write(
        pa.table(columns), metadata={**metadata, "rest_temperatures": temperatures}, row_group_rows=BLOCK_SEQUENCES
    )
    if not identity.hidden.stored_layers:
        return labels, None
    return labels, _encode_hidden(blocks, soft_labels, identity, coder, metadata)


def encode_unit(
    rows: Sequence[Row], identity: Identity, coder: Coder, *, view: int, unit: int
) -> tuple[bytes, bytes | None]:
    """As `encode`, with the metadata that name a unit."""
    metadata = {"fingerprint": identity.fingerprint, "view": view, "unit": unit, "device": coder.device.type}
    return encode(rows, identity, coder, metadata=metadata)


def put_shard(store: Store, rows: Sequence[Row], encoded: tuple[bytes, bytes | None], *, view: int, unit: int) -> Shard:
    """Writes a unit's encoded rows under names of their own content; they count once the shard is committed."""
    labels, hidden = encoded
    prefix = shard_prefix(view, unit)
    return Shard(
        unit=unit,
        labels=put_content(store, prefix, shard_suffix("labels"), labels),
        hidden=put_content(store, prefix, shard_suffix("hidden"), hidden) if hidden is not None else None,
        num_sequences=len(rows),
        num_tokens=sum(len(row.input_ids) for row in rows),
        num_labels=sum(len(row.label_positions) for row in rows),
        num_kept=sum(len(row.kept_positions) for row in rows),
    )


def _stack_rest(row: Row, temperatures: Sequence[float]) -> np.ndarray:
    columns = [row.rest_log_sum_exp[temperature] for temperature in temperatures]
    return np.stack(columns, axis=1) if columns else np.empty(0, np.float32)


def _first_of_each(values: Sequence[bytes], blocks: Sequence[Sequence[Row]]) -> pa.Array:
    """A column whose row groups each have one value, in their first row."""
    column: list[bytes | None] = []
    for value, block in zip(values, blocks, strict=True):
        column += [value, *[None] * (len(block) - 1)]
    return pa.array(column, pa.binary())


def _encode_hidden(
    blocks: Sequence[Sequence[Row]],
    soft_labels: Sequence[SoftLabels],
    identity: Identity,
    coder: Coder,
    metadata: dict[str, Any],
) -> bytes:
    """One row a block; `soft_labels` as a reader will decode them."""
    values: dict[int, list[Future[bytes]]] = {layer: [] for layer in identity.hidden.stored_layers}
    hidden_size = 0  # of no importance without a position
    # Levels are compressed, which needs no interpreter's lock, while the next block is quantised on the device.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for block, soft in zip(blocks, soft_labels, strict=True):
            side = coder.side_information(block, soft) if coder.codebook.hidden else None
            for layer, coded in values.items():
                states = np.concatenate([row.hidden[layer] for row in block])
                hidden_size = states.shape[1]
                if side is not None:
                    levels = coder.quantise_hidden(layer, states, side)
                    coded.append(pool.submit(coder.codebook.hidden[layer].compress, levels))
                else:
                    coded.append(pool.submit(_cast_bytes, states, HIDDEN_DTYPES[identity.hidden.code]))
    columns = {"num_positions": pa.array([len(soft) for soft in soft_labels], pa.int64())}
    for layer, coded in values.items():
        columns[hidden_column(layer)] = pa.array([part.result() for part in coded], pa.large_binary())
    return parquet.write(pa.table(columns), metadata={**metadata, "hidden_size": hidden_size}, row_group_rows=1)


def _cast_bytes(states: np.ndarray, dtype: np.dtype[Any]) -> bytes:
    with np.errstate(over="ignore"):  # told below
        cast = states.astype(dtype)
    if not np.isfinite(cast).all():
        raise UserError(f"hidden states are not finite in {dtype}; try hidden.code: float32")
    return cast.tobytes()


class ShardReader:
    """Reads a unit's rows block by block from local, checked files.

    `hidden` None, or no layers, reads labels only: not a byte of the hidden object. `as_levels` leaves
    transform-coded states undecoded, see `Row.levels`. Messages call the files by `names`, if not by their paths.

    Raises:
        UserError: from any method, when the files do not hold what the identity says.
    """

    def __init__(
        self,
        labels: Path,
        hidden: Path | None,
        identity: Identity,
        coder: Coder,
        *,
        layers: Sequence[int] = (),
        as_levels: bool = False,
        source: int = 0,
        names: tuple[str, str] | None = None,
        remedy: str = parquet.VERIFY_REMEDY,
    ) -> None:
        self._identity, self._coder = identity, coder
        self._layers = tuple(layers) if hidden else ()
        self._as_levels, self._source = as_levels, source
        self._names, self._remedy = names or (str(labels), str(hidden)), remedy
        with refusing(self._names[0], remedy):
            self._labels, self.metadata = parquet.open_file(labels, name=self._names[0], remedy=remedy)
            self._check_origin(self._names[0])
            self._labels = self._labels.expecting(labels_columns(identity))
        self._hidden, self._hidden_size = None, 0
        if hidden and layers:
            with refusing(self._names[1], remedy):
                opened, metadata = parquet.open_file(hidden, name=self._names[1], remedy=remedy)
                self._hidden_size = checked_hidden_size(metadata["hidden_size"])
                self._hidden = opened.expecting(hidden_columns(identity, self._hidden_size))

    def _check_origin(self, name: str) -> None:
        if self.metadata.get("fingerprint") != self._identity.fingerprint:
            raise UserError(
                f"{name} belongs to another cache: fingerprint {self.metadata.get('fingerprint')}; {self._remedy}"
            )
        if self.metadata.get("codebook") != self._coder.codebook.sha256:
            here = f"codebook.safetensors (SHA-256 {self._coder.codebook.sha256})"
            made_with = f"it was coded with another codebook: {self.metadata.get('codebook')}"
            raise UserError(f"{name} does not go with {here}; {self._remedy}; {made_with}")
        stored = list(self._identity.soft_labels.temperatures)
        if self.metadata.get("rest_temperatures") not in ([], stored):
            raise UserError(f"{name} has rests at other temperatures than {stored}; {self._remedy}")

    @property
    def num_sequences(self) -> int:
        """That the labels file claims."""
        return int(self._labels.metadata.num_rows)

    @property
    def num_blocks(self) -> int:
        return len(self._labels.groups)

    def rows(self) -> Iterator[Row]:
        """All rows in order."""
        for block in range(self.num_blocks):
            yield from self.block(block)

    def block(self, index: int) -> list[Row]:
        """The rows of one block, decoded."""
        with refusing(self._names[0], self._remedy):
            table = self._read_labels(index)
            columns = inputs(table, self._identity, vocab_size=self._coder.vocab_size)
            stops = columns["kept_positions"].offsets[1:]
            soft_labels = self._soft_labels(index, table, int(stops[-1]))
            rows = self._rows(table, columns, soft_labels)
        if self._hidden is None:
            return rows
        with refusing(self._names[1], self._remedy):
            return self._with_hidden(rows, index, soft_labels, stops)

    def _read_labels(self, index: int) -> pa.Table:
        """A block's columns but for packed soft labels, and as many rows as belong there."""
        is_packed = self._coder.codebook.labels is not None
        names = (*ID_COLUMNS, *INPUT_COLUMNS, *(() if is_packed else FLOAT_COLUMNS))
        table = self._labels.read_group(index, names)
        expected = min(BLOCK_SEQUENCES, self.num_sequences - index * BLOCK_SEQUENCES)
        if len(table) != expected:
            raise UserError(f"block {index} has {len(table):,} rows, it must have {expected:,}")
        return table

    def _rows(self, table: pa.Table, columns: dict[str, Ragged], soft_labels: SoftLabels) -> list[Row]:
        kept = columns["kept_positions"].offsets
        of_labels = {
            "topk_ids": soft_labels.topk_ids.numpy().astype(np.int32),
            "topk_logits": soft_labels.topk_logits.numpy(),
            "rates": self._rates(columns),
        }
        arrays: dict[str, list[Any]] = {name: column.split() for name, column in columns.items()}
        arrays |= {name: parquet.split(values, kept) for name, values in of_labels.items()}
        rests = {key: parquet.split(rest.numpy(), kept) for key, rest in soft_labels.rest_log_sum_exp.items()}
        ids = zip(table["sequence_id"].to_pylist(), table["document_id"].to_pylist(), strict=True)
        return [
            Row(
                sequence_id=sequence_id,
                document_id=document_id,
                **{name: values[place] for name, values in arrays.items()},
                rest_log_sum_exp={temperature: values[place] for temperature, values in rests.items()},
                source=self._source,
            )
            for place, (sequence_id, document_id) in enumerate(ids)
        ]

    def _rates(self, columns: dict[str, Ragged]) -> np.ndarray:
        """float32 `[P]`: of each kept position."""
        is_label = np.isin(columns["kept_positions"].places(), columns["label_positions"].places())
        keep = self._identity.keep
        return np.where(is_label, np.float32(keep.masked), np.float32(keep.unmasked))

    def _soft_labels(self, index: int, table: pa.Table, num_positions: int) -> SoftLabels:
        if code := self._coder.codebook.labels:
            return code.decode(self._labels.read_first(index, "soft_labels"), num_positions)
        values = {name: parquet.unragged(table[name])[0] for name in FLOAT_COLUMNS}
        for name in ("topk_logits", "rest"):
            check_finite(name, values[name])
        check_ids("topk_ids", values["topk_ids"], num_answers(self._identity, self._coder.vocab_size))
        top_k, temperatures = self._identity.soft_labels.top_k, self.metadata["rest_temperatures"]
        rest = torch.tensor(values["rest"].reshape(num_positions, len(temperatures)))
        return SoftLabels(
            topk_ids=torch.from_numpy(values["topk_ids"].astype(np.int64).reshape(num_positions, top_k)),
            topk_logits=torch.tensor(values["topk_logits"].reshape(num_positions, top_k)),
            rest_log_sum_exp={temperature: rest[:, i] for i, temperature in enumerate(temperatures)},
        )

    def _with_hidden(self, rows: list[Row], block: int, soft_labels: SoftLabels, stops: np.ndarray) -> list[Row]:
        """The rows of a block with their hidden states, or their levels."""
        assert self._hidden is not None
        names = [hidden_column(layer) for layer in self._layers]
        table = self._hidden.read_group(block, ["num_positions", *names])
        if any(column.null_count for column in table.columns):
            raise UserError("a block has hidden states that are missing")
        if table["num_positions"].to_pylist() != [stops[-1]]:
            raise UserError("a hidden object and its labels disagree about the kept positions")
        parts: dict[int, list[np.ndarray]] = {}
        for layer, name in zip(self._layers, names, strict=True):
            states = self._states(layer, table[name][0].as_buffer(), rows, soft_labels)
            parts[layer] = np.split(states, stops[:-1])
        by_row = [{layer: split[place] for layer, split in parts.items()} for place in range(len(rows))]
        if self._as_levels and self._coder.codebook.hidden:
            return [replace(row, levels=levels) for row, levels in zip(rows, by_row, strict=True)]
        return [replace(row, hidden=hidden) for row, hidden in zip(rows, by_row, strict=True)]

    def _states(self, layer: int, data: Any, rows: list[Row], soft_labels: SoftLabels) -> np.ndarray:
        """A block's hidden states, or levels, `[P, d]`."""
        code = self._coder.codebook.hidden.get(layer)
        if code is None:
            flat = np.frombuffer(data, HIDDEN_DTYPES[self._identity.hidden.code])
            check_finite("hidden states", flat)
            return flat.reshape(len(soft_labels), self._hidden_size)
        levels = code.decompress(bytes(data), len(soft_labels))
        if self._as_levels:
            return levels
        side = self._coder.side_information(rows, soft_labels)
        return np.asarray(self._coder.decode_hidden(layer, torch.from_numpy(levels), side).numpy())
