"""A cache that is ready to be asked about."""

import contextlib
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from teacher_cache.config import ExecutionConfig
from teacher_cache.errors import UserError
from teacher_cache.format import codebook
from teacher_cache.format.cache import open_cache
from teacher_cache.format.sequences import Sequences
from teacher_cache.format.spec import Identity
from teacher_cache.pipeline.executors import Executor, executor
from teacher_cache.pipeline.single_writer import writable
from teacher_cache.pipeline.workers import Receipt, UnitWorker
from teacher_cache.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class Job:
    """A cache that is ready to be asked about, and who asks."""

    store: Store
    identity: Identity
    corpus: Sequences
    execution: ExecutionConfig
    workers: Executor
    progress: bool
    run: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    """Names the marks of this call's attempts."""

    def __post_init__(self) -> None:
        self.corpus.check(self.identity.fingerprint)

    @property
    def num_units(self) -> int:
        return -(-self.corpus.num_sequences // self.identity.unit_sequences)

    @property
    def worker_arguments(self) -> dict[str, Any]:
        store = self.store
        return {
            "url": store.url,
            "single_writer": store.single_writer,
            "run": self.run,
            "batch_tokens": self.execution.batch_tokens,
        }

    def ask(self, units: Iterable[tuple[int, int]], *, repair: bool = False) -> Iterator[Receipt]:
        """Receipts of units, each named by view and number, in any order.

        Raises:
            UserError: something failed that would fail for every unit.
        """
        items = ({"view": view, "unit": unit, "repair": repair} for view, unit in units)
        for item in self.workers.actors(items, UnitWorker, self.worker_arguments):
            receipt = Receipt(**item)
            if receipt.is_fatal:
                raise UserError(receipt.error)
            yield receipt


@contextlib.contextmanager
def opened(url: str, execution: ExecutionConfig, *, progress: bool) -> Iterator[Job]:
    """A cache whose sequences and codebook are made, ready to be asked about.

    Raises:
        UserError: it is not so far.
    """
    cache = open_cache(url)
    begun = f"{cache.url} is at its beginning; run `teacher-cache build` with its configuration first"
    try:
        corpus = Sequences(cache.store)
    except FileNotFoundError:
        raise UserError(begun) from None
    if codebook.is_needed(cache.spec) and not codebook.exists(cache.store):
        raise UserError(begun)
    with executor(execution) as workers, writable(url) as store:
        yield Job(
            store=store,
            identity=cache.spec,
            corpus=corpus,
            execution=execution,
            workers=workers,
            progress=progress,
        )
