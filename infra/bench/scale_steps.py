"""Steps of `infra.bench.scale`, one a process: what it took is then its own.

Usage: `python -m infra.bench.scale_steps STEP FOLDER NUM_UNITS`, which prints seconds and memory as JSON. Of the steps,
those in `PREPARING` make what the others read. Peaks are those of the kernel (Linux).
"""

import hashlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from student_train.order import epoch_order
from teacher_cache.config import ExecutionConfig
from teacher_cache.format import documents, manifest, spec
from teacher_cache.format.cache import open_cache
from teacher_cache.format.manifest import Digests, Shard, Shards
from teacher_cache.format.objects import ObjectRef
from teacher_cache.format.shard_list import Part, column_names, shard_key
from teacher_cache.format.spec import Identity
from teacher_cache.pipeline.job import Job
from teacher_cache.pipeline.views import _in_order
from teacher_cache.shell.settings import parse
from teacher_cache.storage.store import Store

UNIT_SEQUENCES, SEQUENCE_LENGTH = 1024, 512
BATCH_SEQUENCES = 4000
NONE = "0" * 64
DIGESTS = Digests(spec=NONE, teacher=NONE, sequences=NONE)
IDENTITY = parse(
    Identity,
    {
        "objective": "masked_lm",
        "corpus": {
            "files": (),
            "text_field": "text",
            "sequence_length": SEQUENCE_LENGTH,
            "packing": "full",
            "tokenizer_sha256": NONE,
        },
        "teacher": {"sha256": NONE, "dtype": "float32"},
        "masking": {},
        "keep": {},
        "soft_labels": {},
        "hidden": {},
        "unit_sequences": UNIT_SEQUENCES,
    },
)
FINGERPRINT = IDENTITY.fingerprint
COUNTS = {"num_sequences": UNIT_SEQUENCES, "num_tokens": 524_000, "num_labels": 78_000, "num_kept": 123_000}
OBJECT_BYTES = 14_800_000


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What a step took."""

    seconds: float
    cpu_s: float
    """Of all cores: `seconds` are more where the machine has other work."""
    start_mb: float
    """Memory before it: Python and what it imports."""
    peak_mb: float


def made_shard(unit: int) -> Shard:
    def ref(part: Part) -> ObjectRef:
        sha256 = hashlib.sha256(f"{part} {unit}".encode()).hexdigest()
        return ObjectRef(key=shard_key(0, unit, part, sha256), sha256=sha256, num_bytes=OBJECT_BYTES)

    return Shard(unit=unit, labels=ref("labels"), hidden=ref("hidden"), **COUNTS)


def make_commits(folder: Path, units: Iterable[int]) -> None:
    """As `manifest.commit` does, but left to the disk's own time."""
    (folder / "commits/00000").mkdir(parents=True, exist_ok=True)
    for unit in units:
        document = {"fingerprint": FINGERPRINT, "view": 0, "owner": "0" * 32}
        data = documents.dump({**document, "shard": asdict(made_shard(unit))})
        (folder / f"commits/00000/{unit:09d}.json").write_bytes(data)


def make_half(folder: Path, num_units: int) -> None:
    """Commits of every other unit."""
    make_commits(folder, range(0, num_units, 2))


def make_rest(folder: Path, num_units: int) -> None:
    make_commits(folder, range(1, num_units, 2))


def make_sealed(folder: Path, num_units: int) -> None:
    """A cache with a sealed view, whose shards exist on paper only."""
    store = Store(str(folder))
    spec.create_or_check(store, IDENTITY, {})
    draw = np.random.default_rng(0)
    columns = {name: _column(name, num_units, draw) for name in column_names(True)}
    shards = Shards(view=0, columns=columns)
    manifest.create(store, shards, generation=0, fingerprint=FINGERPRINT, digests=DIGESTS)


def _column(name: str, num_units: int, draw: np.random.Generator) -> np.ndarray:
    if name.endswith("sha256"):
        return draw.integers(0, 256, (num_units, 32), dtype=np.uint8)
    spread = 1 if name == "num_sequences" else 1000
    return COUNTS.get(name, OBJECT_BYTES) - draw.integers(0, spread, num_units)


@dataclass(frozen=True)
class _Paper:
    """A corpus of so many sequences."""

    num_sequences: int

    def check(self, fingerprint: str) -> None:
        """It is of every identity."""


class _Counting:
    """Workers who only count what they are given."""

    def __init__(self) -> None:
        self.num_items = 0

    def actors(self, items: Iterable[dict[str, Any]], worker: type, arguments: dict[str, Any]) -> Iterator[Any]:
        self.num_items = sum(1 for _ in items)
        yield from ()


def plan(folder: Path, num_units: int) -> None:
    """What is to do, and an item of work for each unit; before, it lists what is done."""
    workers: Any = _Counting()
    corpus: Any = _Paper(num_units * UNIT_SEQUENCES)
    job = Job(
        store=Store(str(folder)),
        identity=IDENTITY,
        corpus=corpus,
        execution=ExecutionConfig(),
        workers=workers,
        progress=False,
    )
    list(job.ask((0, unit) for unit in _in_order(job, 0)))
    assert workers.num_items == num_units - len(manifest.committed_units(job.store, 0))


def seal(folder: Path, num_units: int) -> None:
    store = Store(str(folder))
    manifest.seal(store, view=0, num_units=num_units, fingerprint=FINGERPRINT, digests=DIGESTS)


def open_sealed(folder: Path, num_units: int) -> None:
    sealed = open_cache(str(folder)).manifest(0)
    assert len(sealed.shards) == num_units
    assert sealed.num_bytes > 0


def start(folder: Path, num_units: int, share: float = 0.0) -> None:
    """A student's first batch; `share` of an epoch went before."""
    cache = open_cache(str(folder))
    order = epoch_order([cache], view=0, seed=0, epoch=0)
    first = int(order.num_sequences * share) // BATCH_SEQUENCES * BATCH_SEQUENCES
    assert len(next(order.batches(BATCH_SEQUENCES, start_sequence=first))) == BATCH_SEQUENCES


def go_on(folder: Path, num_units: int) -> None:
    """A student's first batch after a kill in the middle of an epoch."""
    start(folder, num_units, share=0.5)


PREPARING = (make_half, make_rest, make_sealed)
STEPS: dict[str, Callable[[Path, int], None]] = {
    step.__name__: step for step in (*PREPARING, plan, seal, open_sealed, start, go_on)
}


def memory_mb(name: str) -> float:
    """Of this process, by a name in /proc/self/status: VmRSS is now, VmHWM at most."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


def take(step: str, folder: Path, num_units: int) -> Taken:
    start_mb, begin, cpu_begin = memory_mb("VmRSS"), time.perf_counter(), time.process_time()
    STEPS[step](folder, num_units)
    return Taken(
        seconds=time.perf_counter() - begin,
        cpu_s=time.process_time() - cpu_begin,
        start_mb=start_mb,
        peak_mb=memory_mb("VmHWM"),
    )


def main() -> None:
    step, folder, num_units = sys.argv[1:]
    print(json.dumps(asdict(take(step, Path(folder), int(num_units)))))


if __name__ == "__main__":
    main()
