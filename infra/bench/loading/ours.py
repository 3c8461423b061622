"""Our own reader, as students use it."""

from collections.abc import Iterator
from functools import partial

from infra.bench.loading.contender import BATCH_ROWS, LAYER, Epochs, Reading, batch_of, in_batches
from student_train.batch import MicroBatch
from student_train.reader import Reader
from teacher_cache.format.cache import Cache, open_cache
from teacher_cache.format.coder import Coder

NAME = "teacher-cache"
PACKAGE = None
SETTINGS = (
    f"student_train.reader.Reader, batches of {BATCH_ROWS} a rank, left as levels and decoded by decode_hidden; "
    "in order: Cache.rows, decoded block by block"
)


def prepare(reading: Reading) -> None:
    """Imports what is otherwise imported when a cache is opened."""
    import teacher_cache.format.codebook
    import teacher_cache.format.shard
    import teacher_cache.targets.hidden_code
    import teacher_cache.targets.label_code  # noqa: F401

    if "://" in reading.source:
        import s3fs  # noqa: F401


def open_epochs(reading: Reading) -> tuple[Epochs, list[Coder]]:
    cache = open_cache(reading.source, disk_cache=reading.copies)
    if not reading.is_shuffled:
        return partial(_in_order, cache, reading), [cache.coder]
    return partial(_shuffled, Reader([cache], view=0, layers=(LAYER,)), reading), [cache.coder]


def _shuffled(reader: Reader, reading: Reading, epoch: int) -> Iterator[MicroBatch]:
    size = BATCH_ROWS * reading.num_ranks
    ranks = {"rank": reading.rank, "num_ranks": reading.num_ranks}
    for rows in reader.batches(seed=0, epoch=epoch, batch_sequences=size, **ranks):
        if rows:
            yield batch_of(rows)


def _in_order(cache: Cache, reading: Reading, epoch: int) -> Iterator[MicroBatch]:
    size = cache.manifest(0).num_sequences
    start, stop = (size * rank // reading.num_ranks for rank in (reading.rank, reading.rank + 1))
    yield from in_batches(cache.rows(0, start, stop))
