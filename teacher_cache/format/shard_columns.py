"""What the columns of a shard's two files may hold, and whether what they hold fits together.

Legend: N sequences of a block, P values over all of them, d hidden size.
"""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from teacher_cache.errors import UserError
from teacher_cache.format import parquet
from teacher_cache.format.parquet import Column
from teacher_cache.format.spec import MAX_SEQUENCE_LENGTH, Identity

BLOCK_SEQUENCES = 128
"""Sequences of a row group, and of a row of the hidden file: the least that a reader decodes at once."""
MAX_HIDDEN_SIZE = 2**14
INPUT_COLUMNS = ("input_ids", "label_positions", "label_ids", "kept_positions")
ID_COLUMNS = ("sequence_id", "document_id")
FLOAT_COLUMNS = ("topk_ids", "topk_logits", "rest")


def labels_columns(identity: Identity) -> dict[str, Column]:
    """Of a labels file."""
    positions = BLOCK_SEQUENCES * identity.corpus.sequence_length
    top_k, num_rests = identity.soft_labels.top_k, len(identity.soft_labels.temperatures)
    columns = {name: Column(type=pa.int64(), max_values=BLOCK_SEQUENCES) for name in ID_COLUMNS}
    for name in INPUT_COLUMNS:
        value = pa.uint16() if name.endswith("positions") else pa.int32()
        columns[name] = Column(type=pa.list_(value), max_values=positions)
    if identity.soft_labels.code == "packed":
        # An entry of a row, id or logit or rest, is at most a word of 16 bits and an escape of 31.
        most = 16 * positions * (2 * top_k + num_rests)
        return columns | {"soft_labels": Column(type=pa.binary(), max_values=BLOCK_SEQUENCES, max_bytes=most)}
    for name in FLOAT_COLUMNS:
        value = pa.int32() if name == "topk_ids" else pa.float32()
        in_a_row = max(num_rests, 1) if name == "rest" else top_k
        columns[name] = Column(type=pa.list_(value), max_values=positions * in_a_row)
    return columns


def hidden_columns(identity: Identity, hidden_size: int) -> dict[str, Column]:
    """Of a hidden file."""
    # A state is at most 4 bytes a component uncoded, 2 words coded, and its share of a lane.
    most = 8 * BLOCK_SEQUENCES * identity.corpus.sequence_length * (hidden_size + 1)
    states = Column(type=pa.large_binary(), max_values=1, max_bytes=most)
    columns = {"num_positions": Column(type=pa.int64(), max_values=1)}
    return columns | {hidden_column(layer): states for layer in identity.hidden.stored_layers}


def hidden_column(layer: int) -> str:
    return f"hidden_{layer}"


def checked_hidden_size(claimed: object) -> int:
    if type(claimed) is not int or not 0 <= claimed <= MAX_HIDDEN_SIZE:
        raise UserError(f"its hidden_size is {claimed!r}; it must be a whole number up to {MAX_HIDDEN_SIZE:,}")
    return claimed


@dataclass(frozen=True)
class Ragged:
    """A list column of a block."""

    values: np.ndarray
    """`[P]`."""
    offsets: np.ndarray
    """`[N + 1]`."""

    @property
    def sizes(self) -> np.ndarray:
        """`[N]`."""
        return np.diff(self.offsets)

    def split(self) -> list[np.ndarray]:
        return parquet.split(self.values, self.offsets)

    def places(self) -> np.ndarray:
        """int64 `[P]`: of positions, so that those of different sequences differ."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes) * (MAX_SEQUENCE_LENGTH + 1) + self.values


def inputs(table: pa.Table, identity: Identity, *, vocab_size: int | None) -> dict[str, Ragged]:
    """The columns of a block's inputs, by name; `vocab_size` None where it is not known.

    Raises:
        UserError: they do not fit together.
    """
    for name in ID_COLUMNS:
        if table[name].null_count or table[name].to_numpy().min(initial=0) < 0:
            raise UserError(f"{name} holds a number that is missing or negative")
    columns = {name: Ragged(*parquet.unragged(table[name])) for name in INPUT_COLUMNS}
    lengths, longest = columns["input_ids"].sizes, identity.corpus.sequence_length
    if lengths.min(initial=1) < 1 or lengths.max(initial=1) > longest:
        raise UserError(f"it holds a sequence that is empty or longer than {longest:,}")
    for name in ("label_positions", "kept_positions"):
        columns[name] = replace(columns[name], values=columns[name].values.astype(np.int64))
        _check_positions(name, columns[name], lengths)
    if (columns["label_ids"].sizes != columns["label_positions"].sizes).any():
        raise UserError("label_ids and label_positions differ in number")
    check_ids("input_ids", columns["input_ids"].values, vocab_size)
    check_ids("label_ids", columns["label_ids"].values, num_answers(identity, vocab_size))
    return columns


def num_answers(identity: Identity, vocab_size: int | None) -> int | None:
    """How many things a teacher can say at a position: the outputs of a task, otherwise tokens."""
    return identity.task.num_outputs if identity.task else vocab_size


def check_ids(name: str, ids: np.ndarray, size: int | None) -> None:
    """Raises a UserError if an id is not below `size`, where that is known."""
    if ids.min(initial=0) < 0 or (size is not None and ids.max(initial=0) >= size):
        raise UserError(f"{name} holds a token id that the vocabulary has not, or an output that the task has not")


def check_finite(name: str, values: np.ndarray) -> None:
    """Raises a UserError if a value is none."""
    if not np.isfinite(values).all():
        raise UserError(f"{name} holds a value that is not finite")


def _check_positions(name: str, column: Ragged, lengths: np.ndarray) -> None:
    ascends = np.diff(column.values, prepend=-1) > 0
    ascends[column.offsets[:-1][column.sizes > 0]] = True  # each sequence starts anew
    if not ascends.all() or (column.values >= np.repeat(lengths, column.sizes)).any():
        raise UserError(f"{name} holds positions that are out of order or beyond their sequence")
