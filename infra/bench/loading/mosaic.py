"""MosaicML Streaming: MDS shards of arrays as bytes, zstd."""

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from infra.bench.loading.contender import (
    BATCH_ROWS,
    REACH_ROWS,
    SHARD_ROWS,
    Epochs,
    Reading,
    bytes_of,
    in_batches,
    row_of_bytes,
)
from student_train.batch import MicroBatch
from teacher_cache.format.coder import Coder
from teacher_cache.format.row import Row

NAME = "MosaicML Streaming"
PACKAGE = "mosaicml-streaming"
SETTINGS = (
    f"MDS of a bytes column an array, zstd:3, about {SHARD_ROWS} rows a shard; StreamingDataset, iterated where it is "
    f"read, batch_size {BATCH_ROWS}, predownload {8 * BATCH_ROWS}, shuffle_algo py1e, shuffle_block_size {REACH_ROWS}"
)


def _streaming() -> Any:
    # Its data sets of pictures are imported with it, and want a torchvision that goes with the torch that is installed.
    sys.modules.setdefault("streaming.vision", ModuleType("streaming.vision"))
    import streaming

    return streaming


def write(rows: Iterable[Row], folder: Path) -> None:
    samples = [bytes_of(row) for row in rows]
    num_bytes = sum(len(data) for sample in samples for data in sample.values())
    size_limit = num_bytes * SHARD_ROWS // len(samples)
    # Not `ndarray`, which refuses empty arrays, and stores types and shapes that the reader knows.
    columns = dict.fromkeys(samples[0], "bytes")
    with _streaming().MDSWriter(out=str(folder), columns=columns, compression="zstd:3", size_limit=size_limit) as out:
        for sample in samples:
            out.write(sample)


def prepare(reading: Reading) -> None:
    _streaming()
    if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
        import boto3  # noqa: F401

        os.environ["S3_ENDPOINT_URL"] = endpoint
    is_local = "://" not in reading.source
    if is_local and reading.rank == 0:  # it unpacks shards where they lie
        for path in Path(reading.source).iterdir():
            os.link(path, reading.copies / path.name)


def open_epochs(reading: Reading) -> tuple[Epochs, list[Coder]]:
    dataset = _streaming().StreamingDataset(
        remote=reading.source if "://" in reading.source else None,
        local=str(reading.copies),
        batch_size=BATCH_ROWS,
        predownload=8 * BATCH_ROWS,
        shuffle=reading.is_shuffled,
        shuffle_algo="py1e",
        shuffle_block_size=REACH_ROWS,
        num_canonical_nodes=1,
    )

    def epochs(epoch: int) -> Iterator[MicroBatch]:
        yield from in_batches(map(row_of_bytes, dataset))

    return epochs, []
