"""LitData: chunks of arrays as bytes, uncompressed."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from infra.bench.loading.contender import SHARD_ROWS, Epochs, Reading, bytes_of, in_batches, row_of_bytes
from student_train.batch import MicroBatch
from teacher_cache.format.coder import Coder
from teacher_cache.format.row import Row

NAME = "LitData"
PACKAGE = "litdata"
MAX_PRE_DOWNLOAD = 8
SETTINGS = (
    f"chunks of {SHARD_ROWS} rows of bytes an array, uncompressed, as it has them; StreamingDataset, iterated where "
    f"it is read, max_pre_download {MAX_PRE_DOWNLOAD}; shuffle: its own, which stays within a chunk and permutes chunks"
)


def write(rows: Iterable[Row], folder: Path) -> None:
    from litdata.streaming.cache import Cache

    folder.mkdir(parents=True, exist_ok=True)
    # Compression would be ignored for bytes. As arrays with zstd, rows take a tenth less and are read more slowly.
    chunks = Cache(str(folder), chunk_size=SHARD_ROWS)
    for place, row in enumerate(rows):
        chunks[place] = bytes_of(row)
    chunks.done()
    chunks.merge()


def prepare(reading: Reading) -> None:
    from litdata.streaming import downloader

    # Its client refuses plain HTTP, which S3 servers of tests speak, and has no setting for it.
    cast(dict[str, Any], downloader._OBSTORE_CLIENT_OPTIONS)["allow_http"] = True


def open_epochs(reading: Reading) -> tuple[Epochs, list[Coder]]:
    from litdata import StreamingDataset

    is_remote = "://" in reading.source
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    dataset = StreamingDataset(
        reading.source,
        cache_dir=str(reading.copies),
        shuffle=reading.is_shuffled,
        max_pre_download=MAX_PRE_DOWNLOAD,
        storage_options={"endpoint_url": endpoint} if is_remote and endpoint else {},
    )

    def epochs(epoch: int) -> Iterator[MicroBatch]:
        yield from in_batches(map(row_of_bytes, dataset))

    return epochs, []
