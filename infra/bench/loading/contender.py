"""What a contender is asked to do, and the arrays that all of them hand over."""

from collections.abc import Callable, Iterable, Iterator
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


def arrays_of(row: Row) -> dict[str, np.ndarray]:
    """A row as a careful user of a peer would store it: no pickles, and the smallest types that lose nothing.

    Packed logits are steps of a 64th, which float16 holds exactly down to -32.
    """
    rests = list(row.rest_log_sum_exp.values())
    return {
        "ids": np.array([row.sequence_id, row.document_id], np.int64),
        "input_ids": row.input_ids.astype(np.int32),
        "label_positions": row.label_positions.astype(np.uint16),
        "label_ids": row.label_ids.astype(np.int32),
        "kept_positions": row.kept_positions.astype(np.uint16),
        "rates": row.rates.astype(np.float32),
        "topk_ids": row.topk_ids.astype(np.int32),
        "topk_logits": row.topk_logits.astype(np.float16),
        "rest": np.stack(rests, axis=1).astype(np.float32),
        "hidden": row.hidden[LAYER].astype(np.float16),
    }


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
        rest_log_sum_exp=dict(zip(TEMPERATURES, arrays["rest"].T, strict=True)),
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
