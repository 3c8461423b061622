"""What must hold of a run, however often it was killed, and of the reading order for any number of workers."""

import math
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from student_train.batch import sequence_hash
from student_train.config import StudentSpec
from student_train.order import global_batches
from student_train.reader import Reader
from student_train.run_folder import StepReport, read_run
from student_train.student import build_student
from teacher_cache.format.cache import Cache
from teacher_cache.format.manifest import Shard
from teacher_cache.storage.store import Store

RUN_SEED = StudentSpec(caches=("unused",), output="unused").seed
NUMBERS_OF_WORKERS = (1, 2, 3, 4)
KEY_BIASES = "k_lin.bias"
"""Of no effect on what a student says; they move by rounding only."""


def expected_digests(cache: Cache, *, batch_sequences: int, num_epochs: int) -> list[int]:
    """Of the sequences that each step has to read, by the pure order."""
    digests = []
    for epoch in range(num_epochs):
        view = epoch % cache.num_views
        for ids in global_batches(cache, view=view, seed=RUN_SEED, epoch=epoch, batch_sequences=batch_sequences):
            digests.append(sum(map(sequence_hash, ids.tolist())) % 2**62)
    return digests


def num_wrong_steps(steps: Sequence[StepReport], digests: Sequence[int]) -> int:
    """Steps that are missing, there twice, out of order, or read other sequences than they had to."""
    told = [(report.step, report.rows_digest) for report in steps]
    return sum(left != right for left, right in zip_longest(told, enumerate(digests, start=1)))


def steps_of(output: Path) -> list[StepReport]:
    return read_run(Store(str(output))).steps


def read_student(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "model" / "model.safetensors")


def largest_error(student: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> float:
    """Relative, in the norm of each tensor; infinite where tensors are missing."""
    if student.keys() != reference.keys():
        return float("inf")
    names = [name for name in reference if not name.endswith(KEY_BIASES)]
    return max(_relative(student[name] - reference[name], reference[name]) for name in names)


def error_of_way(student: dict[str, torch.Tensor], reference: dict[str, torch.Tensor], spec: StudentSpec) -> float:
    """How far two students are apart, over how far training moved the second."""
    folder = Cache(Store(spec.caches[0])).teacher.folder
    start = dict(build_student(folder, spec.student).named_parameters())
    names = reference.keys() & start.keys()
    apart = [(student[name] - reference[name]).flatten() for name in names]
    way = [(reference[name] - start[name].detach()).flatten() for name in names]
    return _relative(torch.cat(apart), torch.cat(way))


def _relative(error: torch.Tensor, value: torch.Tensor) -> float:
    ratio = float(error.norm() / value.norm())
    return ratio if math.isfinite(ratio) else math.inf  # `max` would lose what is no number


def num_batches_that_differ(cache: Cache, *, batch_sequences: int, num_epochs: int) -> int:
    """Global batches that several workers together read otherwise than one alone does."""
    differ = 0
    for epoch in range(num_epochs):
        asked: dict[str, Any] = {"view": epoch % cache.num_views, "seed": RUN_SEED, "epoch": epoch}
        asked["batch_sequences"] = batch_sequences
        alone = list(global_batches(cache, **asked))
        for num_ranks in NUMBERS_OF_WORKERS[1:]:
            parts = [list(global_batches(cache, rank=rank, num_ranks=num_ranks, **asked)) for rank in range(num_ranks)]
            shared = [np.concatenate(batch) for batch in zip(*parts, strict=True)]
            pairs = zip_longest(alone, shared, fillvalue=np.empty(0))
            differ += sum(not np.array_equal(np.sort(one), np.sort(several)) for one, several in pairs)
    return differ


class CountingCache(Cache):
    """Counts the bytes of the objects that it opens."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.num_bytes = 0

    def open_shard(self, shard: Shard, **options: Any) -> Any:
        self.num_bytes += shard.labels.num_bytes + (shard.hidden.num_bytes if shard.hidden else 0)
        return super().open_shard(shard, **options)


def largest_share(url: str, num_ranks: int, *, batch_sequences: int) -> float:
    """Bytes that the worker with the most to read opens in an epoch, times the number of workers, over those that one
    worker alone opens: 1 where they share evenly."""
    shares = [_bytes_read(url, rank, num_ranks, batch_sequences) for rank in range(num_ranks)]
    return max(shares) * num_ranks / _bytes_read(url, 0, 1, batch_sequences)


def _bytes_read(url: str, rank: int, num_ranks: int, batch_sequences: int) -> int:
    cache = CountingCache(Store(url))
    reader = Reader([cache], view=0, layers=(-1,))
    asked = {"seed": RUN_SEED, "epoch": 0, "batch_sequences": batch_sequences, "rank": rank, "num_ranks": num_ranks}
    for _ in reader.batches(**asked):
        pass
    return cache.num_bytes
