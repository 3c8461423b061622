"""One measured process: it reads as one rank of a contender, or for Ray Data as all of them.

Usage: `python -m infra.bench.loading.process JOB`, a JSON object as `runs` makes it. It prints `ready` once its
library is imported, waits for a line, reads, and prints what it took as JSON.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from infra.bench.loading.checks import check
from infra.bench.loading.contender import LAYER, Epochs, Reading
from student_train.batch import MicroBatch, decode_hidden
from teacher_cache.format.coder import Coder

NUM_PASSES = 2


@dataclass(kw_only=True)
class Taken:
    """What a rank took for `NUM_PASSES` epochs and the first batch of another."""

    num_rows: int = 0
    """Of one epoch."""
    first_s: list[float] = field(default_factory=list)
    """From the start to the first batch of each epoch."""
    last_s: float = 0.0
    """From the start to the last batch of the first epoch."""
    decode_s: float = 0.0
    """In `decode_hidden`, from the second epoch's first batch to the third's."""


def take(begin: float, epochs: Epochs, coders: list[Coder]) -> Taken:
    """Reads; `begin` is the monotonic time of the start."""
    taken = Taken()
    for epoch in range(NUM_PASSES + 1):
        for place, batch in enumerate(_decoded(epochs(epoch), coders, taken)):
            if place == 0:
                taken.first_s.append(time.monotonic() - begin)
                taken.decode_s = 0.0 if epoch < NUM_PASSES else taken.decode_s
            if epoch == NUM_PASSES:
                break
            if epoch == 0:
                taken.num_rows += len(batch.input_ids)
                taken.last_s = time.monotonic() - begin
    return taken


def _decoded(batches: Iterator[MicroBatch], coders: list[Coder], taken: Taken) -> Iterator[MicroBatch]:
    """The batches with hidden states, on CPU."""
    for batch in batches:
        begin = time.monotonic()
        whole = decode_hidden(batch, coders, LAYER)
        taken.decode_s += time.monotonic() - begin
        yield whole


def take_checked(reference: str, tolerance: float, epochs: Epochs, coders: list[Coder]) -> list[int]:
    """Places of the rows of an epoch in the reference cache, each row compared with it."""
    return check((decode_hidden(batch, coders, LAYER) for batch in epochs(0)), reference, tolerance)


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    job: dict[str, Any] = json.loads(sys.argv[1])
    reading = Reading(**job["reading"] | {"copies": Path(job["reading"]["copies"])})
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // reading.num_ranks))
    contender: Any = import_module(f"infra.bench.loading.{job['module']}")
    contender.prepare(reading)
    print("ready", file=out, flush=True)
    sys.stdin.readline()
    found = [_plain(taken) for taken in _read(contender, reading, job)]
    print(json.dumps(found), file=out, flush=True)
    sys.stdin.readline()  # until its memory was looked at
    os._exit(0)  # what loaders do at exit is not measured, and may take long


def _read(contender: Any, reading: Reading, job: dict[str, Any]) -> list[Any]:
    work = partial(take, time.monotonic())
    if job["reference"]:
        work = partial(take_checked, job["reference"], job["tolerance"])
    if hasattr(contender, "take_all"):
        found: list[Any] = contender.take_all(reading, work)
        return found
    return [work(*contender.open_epochs(reading))]


def _plain(taken: Any) -> Any:
    return asdict(taken) if isinstance(taken, Taken) else taken


if __name__ == "__main__":
    main()
