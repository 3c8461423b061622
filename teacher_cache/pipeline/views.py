"""Views: their units given to workers, what failed reported, and each view sealed when whole."""

import contextlib
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from teacher_cache.errors import Interrupted, UserError
from teacher_cache.format import attempts, codebook, manifest, teacher_files, token_counts
from teacher_cache.format import spec as spec_file
from teacher_cache.format.manifest import Digests, Manifest
from teacher_cache.metrics import BuildMetrics
from teacher_cache.pipeline.job import Job
from teacher_cache.pipeline.workers import Receipt
from teacher_cache.storage.retries import hurried

GRACE_S, GRACE_UNITS = 60.0, 5
"""How long a unit that was marked, but not committed, may still be under way at another builder: so many seconds, or as
long as so many units took here."""


@dataclass(frozen=True, kw_only=True)
class Built:
    """What a call did, and not others before or beside it."""

    num_units: int
    num_tokens: int
    teacher_s: float
    """For how long teachers were asked, of all workers together."""
    sealed: Manifest
    """The whole view."""


class _View:
    """A view under way."""

    def __init__(self, job: Job, view: int) -> None:
        self._job, self.view = job, view
        generation = manifest.newest_generation(job.store, view)
        self.sealed: Manifest | None = None
        if generation is not None:
            self.sealed = manifest.read(job.store, view, generation, fingerprint=job.identity.fingerprint)
        self.pending = [] if self.sealed else _in_order(job, view)
        self.num_committed = job.num_units - len(self.pending)
        self.failed: set[int] = set()
        self._num_units, self._num_tokens, self._teacher_s = 0, 0, 0.0
        self.grace_s = GRACE_S
        self._metrics = BuildMetrics(
            cache=job.store.url, view=view, num_units=job.num_units, num_committed=self.num_committed
        )

    def take(self, receipt: Receipt) -> None:
        if receipt.error:
            self._metrics.failed()
            self.failed.add(receipt.unit)
            return
        self.num_committed += 1
        self._metrics.committed(receipt.shard, is_new=receipt.is_new, teacher_s=receipt.teacher_s)
        if receipt.is_new:
            _commit(self._job, self.view, receipt)
            self._num_units += 1
            self._num_tokens += receipt.shard.num_tokens
            self._teacher_s += receipt.teacher_s
            self.grace_s = max(self.grace_s, GRACE_UNITS * receipt.teacher_s)

    def seal_if_whole(self) -> None:
        job = self._job
        if not self.sealed and self.num_committed == job.num_units:
            self.sealed = manifest.seal(
                job.store,
                view=self.view,
                num_units=job.num_units,
                fingerprint=job.identity.fingerprint,
                digests=_origin(job),
            )

    def built(self) -> Built:
        assert self.sealed
        return Built(
            num_units=self._num_units, num_tokens=self._num_tokens, teacher_s=self._teacher_s, sealed=self.sealed
        )


def build_views(job: Job, num_views: int) -> list[Built]:
    """Builds the units of views that are not committed yet, by one pool of workers, and seals each view when whole.

    Raises:
        UserError: some units failed; all others are committed.
        Interrupted: what is committed stays so.
    """
    views = [_View(job, view) for view in range(num_views)]
    try:
        for view in views:
            view.seal_if_whole()
        for receipt in _watched(job, views):
            views[receipt.view].take(receipt)
            views[receipt.view].seal_if_whole()
        _check_failed(job, views)
    except BaseException as stop:
        unsealed = [view for view in views if not view.sealed]
        with contextlib.suppress(UserError), hurried():  # what is under way ends with this call, and did not fail
            for view in unsealed:
                attempts.end(job.store, view.view, job.run)
        if isinstance(stop, KeyboardInterrupt) and unsealed:
            raise _interrupted(job, unsealed[0]) from None
        raise
    return [view.built() for view in views]


def _interrupted(job: Job, view: _View) -> Interrupted:
    return Interrupted(
        f"interrupted: {view.num_committed:,} of {job.num_units:,} units of view {view.view} are committed; "
        "run the same command again to go on"
    )


def _in_order(job: Job, view: int) -> list[int]:
    """Units to do, those with marks last; builders who start at once begin at different places."""
    done = manifest.committed_units(job.store, view)
    pending = [unit for unit in range(job.num_units) if unit not in done]
    start = random.Random(job.run).randrange(max(1, len(pending)))
    marked = attempts.marks(job.store, view).keys()
    return sorted(pending[start:] + pending[:start], key=lambda unit: unit in marked)


def _watched(job: Job, views: Sequence[_View]) -> Iterator[Receipt]:
    """Receipts of all pending units, view after view, with a progress bar."""
    open_views = [view for view in views if not view.sealed]
    if not open_views:
        return
    first, last = open_views[0].view, open_views[-1].view
    num_bytes = 0
    with tqdm(
        desc=f"view {first}" if first == last else f"views {first} to {last}",
        unit=" tokens",
        unit_scale=True,
        disable=not job.progress,
        total=job.corpus.num_tokens * len(open_views),
        # Units hold like numbers of tokens, so those done before are shown by their share.
        initial=job.corpus.num_tokens * sum(view.num_committed for view in open_views) // job.num_units,
    ) as bar:
        for receipt in job.ask((view.view, unit) for view in open_views for unit in view.pending):
            if not receipt.error:
                num_bytes += receipt.shard.num_bytes
                bar.set_postfix_str(f"{num_bytes / 2**20:.1f} MiB written", refresh=False)
                bar.update(receipt.shard.num_tokens)
            yield receipt


def _commit(job: Job, view: int, receipt: Receipt) -> None:
    """Commits what a worker may not, see `Store.single_writer`."""
    if job.store.single_writer:
        fingerprint = job.identity.fingerprint
        manifest.commit(job.store, view, receipt.shard, fingerprint, teacher_s=receipt.teacher_s)
        attempts.withdraw(job.store, view, receipt.unit)


def _check_failed(job: Job, views: Sequence[_View]) -> None:
    """Reports units that were given up, and forgets their attempts, so that the next build tries them.

    Raises:
        UserError: there are any.
    """
    told = [failure for view in views if view.failed and (failure := _failure(job, view))]
    if told:
        raise UserError("\n".join([*told, "mend the cause and run the build again: it does only these"]))


def _failure(job: Job, view: _View) -> str:
    """What became of a view's failed units; empty if others did them meanwhile, and the view is sealed."""
    marks = {unit: keys for unit, keys in attempts.marks(job.store, view.view).items() if unit in view.failed}
    causes = {unit: {key: attempts.cause(job.store, key) for key in keys} for unit, keys in marks.items()}
    if any(cause is None and job.run not in key for found in causes.values() for key, cause in found.items()):
        _wait_for_others(job, view)
    failed = view.failed - manifest.committed_units(job.store, view.view)
    view.num_committed = job.num_units - len(failed)
    view.seal_if_whole()
    for unit in failed:
        attempts.withdraw(job.store, view.view, unit)
    units = [f"  {_told(job, unit, list(causes.get(unit, {}).values()))}" for unit in sorted(failed)[:5]]
    first = f"{len(failed)} of {job.num_units} units of view {view.view} failed, all others are committed:"
    return "\n".join([first, *units]) if failed else ""


def _wait_for_others(job: Job, view: _View) -> None:
    """Until units that failed here are committed, for `grace_s` at most."""
    told = f"units of view {view.view} may be under way at another builder: waiting for up to {view.grace_s:.0f} s"
    tqdm.write(told, file=sys.stderr)
    deadline = time.monotonic() + view.grace_s
    while not view.failed <= manifest.committed_units(job.store, view.view) and time.monotonic() < deadline:
        time.sleep(min(1.0, view.grace_s))


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
        token_counts=token_counts.digest(store) if identity.masks_rare else None,
    )


def repair_views(job: Job, bad_units: Sequence[tuple[int, int]]) -> None:
    """Asks the teacher again about units of sealed views, and adds a generation to the manifests where they differ.

    Raises:
        UserError: a unit failed again; its view's manifest is as it was.
    """
    _forget_attempts(job, bad_units)
    receipts = list(job.ask(bad_units, repair=True))
    failed = [receipt for receipt in receipts if receipt.error]
    for view in sorted({view for view, _ in bad_units} - {receipt.view for receipt in failed}):
        sealed = manifest.read(job.store, view)
        made = {receipt.unit: receipt.shard for receipt in receipts if receipt.view == view}
        if changed := {unit: shard for unit, shard in made.items() if shard != sealed.shards[unit]}:
            manifest.add_generation(job.store, sealed, changed)
    told = "; ".join(f"view {receipt.view}, {_told(job, receipt.unit, _causes(job, receipt))}" for receipt in failed)
    _forget_attempts(job, bad_units)
    if failed:
        raise UserError(f"not all is repaired, the teacher fails at {told}")


def _causes(job: Job, receipt: Receipt) -> list[str | None]:
    marks = attempts.marks(job.store, receipt.view).get(receipt.unit, [])
    return [attempts.cause(job.store, mark) for mark in marks]


def _forget_attempts(job: Job, units: Sequence[tuple[int, int]]) -> None:
    for view, unit in units:
        attempts.withdraw(job.store, view, unit)
