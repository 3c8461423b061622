"""What a contender is asked to do, and the arrays that all of them hand over."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from student_train.batch import MicroBatch, collate
from teacher_cache.format.coder import Coder
from teacher_cache.format.row import Row

BATCH_ROWS = 64
SHARD_ROWS = 128
"""Of a shard of every contender; a cache's unit."""
REACH_ROWS = 2048
"""That a peer shuffles together, where it can be told: eight of our windows."""
LAYER, PAD_ID = -1, 0


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What one rank reads, and how."""

    source: str
    """Folder or URL of the contender's data."""
    copies: Path
    """Empty folder on the local disk, shared by all ranks, for what is downloaded or unpacked."""
    is_shuffled: bool
    rank: int
    num_ranks: int


Epochs = Callable[[int], Iterator[MicroBatch]]
"""From an epoch's number to its batches."""


class Contender(Protocol):
    """A module of this package."""

    NAME: str
    PACKAGE: str | None
    """What to install; None: it is our own."""
    SETTINGS: str

    def write(self, rows: Iterable[Row], folder: Path) -> None:
        """Stores the payload; of peers only."""

    def prepare(self, reading: Reading) -> None:
        """Imports the library; what it takes is counted neither as time nor as memory."""

    def open_epochs(self, reading: Reading) -> tuple[Epochs, list[Coder]]:
        """The rank's epochs, and what decodes their levels if they have any."""


DTYPES = {
    "ids": np.int64,
    "input_ids": np.int32,
    "label_positions": np.uint16,
    "label_ids": np.int32,
    "kept_positions": np.uint16,
    "rates": np.float32,
    "topk_ids": np.int32,
    "topk_logits": np.float16,
    "rest": np.float32,
    "hidden": np.float16,
}
"""As a careful user of a peer would store a row: no pickles, and the smallest types that lose nothing.

Packed logits are steps of a 64th, which float16 holds exactly down to -32.
"""
MATRICES = ("topk_ids", "topk_logits", "rest", "hidden")
"""Of a row for each kept position."""


def arrays_of(row: Row) -> dict[str, np.ndarray]:
    """A row by `DTYPES`."""
    values: dict[str, Any] = {name: getattr(row, name, None) for name in DTYPES}
    values |= {
        "ids": (row.sequence_id, row.document_id),
        "rest": np.stack(list(row.rest_log_sum_exp.values()), axis=1),
        "hidden": row.hidden[LAYER],
    }
    return {name: np.asarray(values[name], dtype) for name, dtype in DTYPES.items()}


def bytes_of(row: Row) -> dict[str, bytes]:
    """A row whose types are known to who reads it."""
    return {name: array.tobytes() for name, array in arrays_of(row).items()}


def row_of_bytes(data: Mapping[str, bytes]) -> Row:
    """What `bytes_of` made of a row, without a copy."""
    arrays = {name: np.frombuffer(data[name], dtype) for name, dtype in DTYPES.items()}
    return row_of(with_shapes(arrays))


def with_shapes(flat: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays of which all were stored flat."""
    num_kept = len(flat["kept_positions"])
    return {name: array.reshape(num_kept, -1) if name in MATRICES else array for name, array in flat.items()}


TEMPERATURES = (1.0, 2.0, 4.0)
"""Of the columns of `rest`; the defaults of a cache."""


def row_of(arrays: dict[str, Any]) -> Row:
    """What `arrays_of` made of a row; hidden states stay float16, `collate` widens them."""
    return Row(
        sequence_id=int(arrays["ids"][0]),
        document_id=int(arrays["ids"][1]),
        input_ids=arrays["input_ids"],
        label_positions=arrays["label_positions"].astype(np.int64),
        label_ids=arrays["label_ids"],
        kept_positions=arrays["kept_positions"].astype(np.int64),
        rates=arrays["rates"],
        topk_ids=arrays["topk_ids"],
        topk_logits=arrays["topk_logits"].astype(np.float32),
        rest_log_sum_exp={temperature: arrays["rest"][:, i] for i, temperature in enumerate(TEMPERATURES)},
        hidden={LAYER: arrays["hidden"]},
    )


def batch_of(rows: list[Row]) -> MicroBatch:
    """What is handed over: a student's micro-batch. Only transform-coded states are still levels."""
    return collate(rows, pad_id=PAD_ID, hidden_layer=LAYER)


def in_batches(rows: Iterable[Row]) -> Iterator[MicroBatch]:
    """Batches of `BATCH_ROWS`; the last may be short."""
    batch = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH_ROWS:
            yield batch_of(batch)
            batch = []
    if batch:
        yield batch_of(batch)
