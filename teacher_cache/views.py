"""One view: its units given to workers, what failed reported, and the view sealed when whole."""

import contextlib
import random
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from teacher_cache.config import ExecutionConfig
from teacher_cache.errors import Interrupted, UserError
from teacher_cache.executors import Executor
from teacher_cache.format import attempts, codebook, manifest, teacher_files, token_counts
from teacher_cache.format import spec as spec_file
from teacher_cache.format.manifest import Digests, Manifest, Shard
from teacher_cache.format.sequences import Sequences
from teacher_cache.format.spec import Identity
from teacher_cache.storage.store import Store
from teacher_cache.workers import Receipt, UnitWorker

GRACE_S = 60.0
"""How long a unit that was marked, but not committed, may still be under way at another builder."""


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

    @property
    def num_units(self) -> int:
        return -(-self.corpus.num_sequences // self.identity.unit_sequences)

    @property
    def worker_arguments(self) -> dict[str, Any]:
        return {
            "url": self.store.url,
            "batch_tokens": self.execution.batch_tokens,
            "num_threads": self.execution.cpus_per_worker,
        }

    def ask(self, view: int, units: Sequence[int], *, repair: bool = False) -> Iterator[Receipt]:
        """Receipts of units, in any order.

        Raises:
            UserError: something failed that would fail for every unit.
        """
        items = ({"view": view, "unit": unit, "repair": repair} for unit in units)
        arguments = {**self.worker_arguments, "run": self.run, "commits": not self.store.single_writer}
        for item in self.workers.actors(items, UnitWorker, arguments):
            receipt = Receipt(**item)
            if receipt.is_fatal:
                raise UserError(receipt.error)
            yield receipt


@dataclass(frozen=True, kw_only=True)
class Built:
    """What a call did, and not others before or beside it."""

    num_units: int
    num_tokens: int
    sealed: Manifest
    """The whole view."""


def build_view(job: Job, view: int) -> Built:
    """Builds the units of a view that are not committed yet, and seals it.

    Raises:
        UserError: some units failed; all others are committed.
        Interrupted: what is committed stays so.
    """
    generation = manifest.newest_generation(job.store, view)
    if generation is not None:
        return Built(num_units=0, num_tokens=0, sealed=manifest.read(job.store, view, generation))
    pending = _in_order(job, view, manifest.committed_units(job.store, view))
    num_units = num_tokens = 0
    failed: set[int] = set()
    try:
        for receipt in _watched(job, view, pending):
            if receipt.error:
                failed.add(receipt.unit)
            elif receipt.is_new:
                _commit(job, view, receipt.shard)
                num_units, num_tokens = num_units + 1, num_tokens + receipt.shard.num_tokens
    except BaseException as stop:
        with contextlib.suppress(UserError):  # what is under way ends with this call, and is no failed attempt
            attempts.withdraw(job.store, view, run=job.run)
        if isinstance(stop, KeyboardInterrupt):
            raise _interrupted(job, view) from None
        raise
    _check_failed(job, view, failed)
    sealed = manifest.seal(
        job.store, view=view, num_units=job.num_units, fingerprint=job.identity.fingerprint, digests=_origin(job)
    )
    return Built(num_units=num_units, num_tokens=num_tokens, sealed=sealed)


def _interrupted(job: Job, view: int) -> Interrupted:
    num_done = len(manifest.committed_units(job.store, view))
    return Interrupted(
        f"interrupted: {num_done:,} of {job.num_units:,} units of view {view} are committed; "
        "run the same command again to go on"
    )


def _in_order(job: Job, view: int, done: set[int]) -> list[int]:
    """Units to do, those with marks last; builders who start at once begin at different places."""
    pending = [unit for unit in range(job.num_units) if unit not in done]
    start = random.Random(job.run).randrange(max(1, len(pending)))
    marked = attempts.marks(job.store, view).keys()
    return sorted(pending[start:] + pending[:start], key=lambda unit: unit in marked)


def _watched(job: Job, view: int, pending: Sequence[int]) -> Iterator[Receipt]:
    """Receipts, with a progress bar."""
    num_bytes = 0
    with tqdm(
        desc=f"view {view}",
        unit=" tokens",
        unit_scale=True,
        disable=not job.progress,
        total=job.corpus.num_tokens,
        # Units hold like numbers of tokens, so those done before are shown by their share.
        initial=job.corpus.num_tokens * (job.num_units - len(pending)) // job.num_units,
    ) as bar:
        for receipt in job.ask(view, pending):
            if not receipt.error:
                num_bytes += receipt.shard.num_bytes
                bar.set_postfix_str(f"{num_bytes / 2**20:.1f} MiB written", refresh=False)
                bar.update(receipt.shard.num_tokens)
            yield receipt


def _commit(job: Job, view: int, shard: Shard) -> None:
    """Commits what a worker may not, see `Store.single_writer`."""
    if job.store.single_writer:
        manifest.commit(job.store, view, shard, job.identity.fingerprint)
        attempts.withdraw(job.store, view, unit=shard.unit)


def _check_failed(job: Job, view: int, failed: set[int]) -> None:
    """Reports units that were given up, and forgets their attempts, so that the next build tries them.

    Raises:
        UserError: there are any.
    """
    if not failed:
        return
    marks = {unit: keys for unit, keys in attempts.marks(job.store, view).items() if unit in failed}
    causes = {unit: {key: attempts.cause(job.store, key) for key in keys} for unit, keys in marks.items()}
    if any(cause is None and job.run not in key for found in causes.values() for key, cause in found.items()):
        _wait_for_others(job, view, failed)
    failed = failed - manifest.committed_units(job.store, view)
    if not failed:
        return
    for unit in failed:
        attempts.withdraw(job.store, view, unit=unit)
    told = "\n".join(f"  {_told(job, unit, list(causes.get(unit, {}).values()))}" for unit in sorted(failed)[:5])
    raise UserError(
        f"{len(failed)} of {job.num_units} units of view {view} failed, all others are committed:\n{told}\n"
        "mend the cause and run the build again: it does only these"
    )


def _wait_for_others(job: Job, view: int, units: set[int]) -> None:
    """Until units are committed, for `GRACE_S` at most."""
    deadline = time.monotonic() + GRACE_S
    while not units <= manifest.committed_units(job.store, view) and time.monotonic() < deadline:
        time.sleep(min(1.0, GRACE_S))


def _told(job: Job, unit: int, causes: Sequence[str | None]) -> str:
    size = job.identity.unit_sequences
    first, last = unit * size, min((unit + 1) * size, job.corpus.num_sequences) - 1
    found = [cause or "its process died" for cause in causes] or ["its attempts left no cause"]
    distinct = "; ".join(dict.fromkeys(found))
    return f"unit {unit} (sequences {first} to {last}), {len(causes)} attempts: {distinct}"


def _origin(job: Job) -> Digests:
    """Digests of all that a view is built from."""
    store, identity = job.store, job.identity
    return Digests(
        spec=spec_file.digest(store),
        teacher=teacher_files.digest(store),
        sequences=job.corpus.sha256,
        codebook=codebook.digest(store) if codebook.is_needed(identity) else None,
        token_counts=token_counts.digest(store) if identity.masking.policy == "rare" else None,
    )


def repair_view(job: Job, view: int, units: Sequence[int]) -> dict[int, Shard]:
    """Asks the teacher again about units of a sealed view, and adds a generation to its manifest where they differ.

    Raises:
        UserError: a unit failed again; the manifest is as it was.
    """
    receipts = list(job.ask(view, units, repair=True))
    if errors := [f"unit {receipt.unit}: {receipt.error}" for receipt in receipts if receipt.error]:
        raise UserError(f"view {view} is not repaired, the teacher fails at {'; '.join(errors)}")
    sealed = manifest.read(job.store, view)
    made = {receipt.unit: receipt.shard for receipt in receipts}
    if changed := {unit: shard for unit, shard in made.items() if shard != sealed.shards[unit]}:
        manifest.add_generation(job.store, sealed, changed)
    return made
