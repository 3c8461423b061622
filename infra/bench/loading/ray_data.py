"""Ray Data: Parquet files with a list column an array, hidden states as bytes, zstd."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.bench.loading.contender import (
    BATCH_ROWS,
    REACH_ROWS,
    SHARD_ROWS,
    Epochs,
    Reading,
    arrays_of,
    batch_of,
    row_of,
    with_shapes,
)
from student_train.batch import MicroBatch
from teacher_cache.format.coder import Coder
from teacher_cache.format.row import Row

NAME = "Ray Data"
PACKAGE = "ray[data]"
SETTINGS = (
    f"Parquet of {SHARD_ROWS} rows a file, zstd:3, hidden states as one binary a row; iter_batches of {BATCH_ROWS} as "
    f"Arrow tables, prefetch_batches 4, shuffle files and local_shuffle_buffer_size {REACH_ROWS}; two workers: "
    "streaming_split, equal, to two actors, as Ray Train does"
)
Take = Callable[[Epochs, list[Coder]], Any]
"""What a rank does with its epochs."""


def write(rows: Iterable[Row], folder: Path) -> None:
    folder.mkdir(parents=True)
    rest = iter(rows)
    for place, some in enumerate(iter(lambda: list(islice(rest, SHARD_ROWS)), [])):
        pq.write_table(_table(some), folder / f"{place:05d}.parquet", compression="zstd", compression_level=3)


def _table(rows: list[Row]) -> pa.Table:
    plain = [arrays_of(row) for row in rows]
    columns = {name: _lists([arrays[name].ravel() for arrays in plain]) for name in plain[0] if name != "hidden"}
    return pa.table(columns | {"hidden": pa.array([arrays["hidden"].tobytes() for arrays in plain], pa.large_binary())})


def _lists(arrays: list[np.ndarray]) -> pa.Array:
    offsets = np.cumsum([0, *map(len, arrays)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(arrays)))


def prepare(reading: Reading) -> None:
    import ray
    from ray.data import DataContext

    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = not reading.is_shuffled


def open_epochs(reading: Reading) -> tuple[Epochs, list[Coder]]:
    return _epochs_of(_dataset(reading), reading), []


def take_all(reading: Reading, take: Take) -> list[Any]:
    """What each rank took: this process's own where it is alone, otherwise that of an actor each."""
    if reading.num_ranks == 1:
        return [take(*open_epochs(reading))]
    import ray

    @ray.remote(num_cpus=0)
    class Rank:
        def take(self, split: Any) -> Any:
            return take(_epochs_of(split, reading), [])

    ranks = [Rank.remote() for _ in range(reading.num_ranks)]
    splits = _dataset(reading).streaming_split(reading.num_ranks, equal=True)
    taken: list[Any] = ray.get([rank.take.remote(split) for rank, split in zip(ranks, splits, strict=True)])
    return taken


def _dataset(reading: Reading) -> Any:
    import ray

    filesystem, path = None, reading.source
    if "://" in path:
        filesystem, path = pa.fs.S3FileSystem(**_endpoint()), path.removeprefix("s3://")
    return ray.data.read_parquet(path, filesystem=filesystem, shuffle="files" if reading.is_shuffled else None)


def _endpoint() -> dict[str, str]:
    scheme, found, host = os.environ.get("AWS_ENDPOINT_URL", "").partition("://")
    return {"endpoint_override": host, "scheme": scheme} if found else {}


def _epochs_of(dataset: Any, reading: Reading) -> Epochs:
    buffer = {"local_shuffle_buffer_size": REACH_ROWS} if reading.is_shuffled else {}
    options = {"batch_size": BATCH_ROWS, "batch_format": "pyarrow", "prefetch_batches": 4, **buffer}

    def epochs(epoch: int) -> Iterator[MicroBatch]:
        for table in dataset.iter_batches(**options):
            yield batch_of([row_of(arrays) for arrays in _rows(table)])

    return epochs


def _rows(table: pa.Table) -> Iterator[dict[str, np.ndarray]]:
    lists = {name: _split(table[name].combine_chunks()) for name in table.column_names if name != "hidden"}
    for place, states in enumerate(table["hidden"]):
        arrays = {name: split[place] for name, split in lists.items()}
        arrays["hidden"] = np.frombuffer(states.as_buffer(), np.float16)
        yield with_shapes(arrays)


def _split(column: Any) -> list[np.ndarray]:
    if isinstance(column, pa.ChunkedArray):  # of a single chunk, as some versions of Arrow leave it
        column = pa.concat_arrays(column.chunks)
    offsets, values = column.offsets.to_numpy(), column.values.to_numpy(zero_copy_only=False)
    return [values[start:stop] for start, stop in pairwise(offsets)]
