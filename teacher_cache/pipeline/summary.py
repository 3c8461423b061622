"""The last step of every build: its views, and what was done and is there."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from teacher_cache.pipeline.job import Job
from teacher_cache.pipeline.views import Built, build_views


@dataclass(frozen=True, kw_only=True)
class BuildSummary:
    """What a build did and what the cache now holds."""

    cache: str
    fingerprint: str
    num_views: int
    """That the spec asks for; the figures below are of these."""
    num_sequences: int
    """Of the corpus; each is in every view."""
    num_tokens: int
    num_units_built: int
    """By this call; the others were committed before."""
    num_kept: int
    num_bytes: int
    """Of all shards of all views."""
    bytes_per_token: float
    """Per corpus token and view."""
    bytes_per_kept_position: float
    seconds: float
    teacher_seconds: float
    """For how long teachers were asked about this call's units, of all workers together."""
    tokens_per_s: float
    """Over this call's units, from the first that was given out to the last view sealed; 0 if there were none."""


def finish_views(job: Job, num_views: int, start: float) -> BuildSummary:
    """Builds views that are not sealed; `start` is when the call began."""
    asked = time.perf_counter()
    built = build_views(job, num_views)
    end = time.perf_counter()
    return _summary(job, built, seconds=end - start, asked_s=end - asked)


def _summary(job: Job, built: Sequence[Built], *, seconds: float, asked_s: float) -> BuildSummary:
    num_bytes, num_kept = sum(view.sealed.num_bytes for view in built), sum(view.sealed.num_kept for view in built)
    num_tokens = job.corpus.num_tokens
    return BuildSummary(
        cache=job.store.url,
        fingerprint=job.identity.fingerprint,
        num_views=len(built),
        num_sequences=job.corpus.num_sequences,
        num_tokens=num_tokens,
        num_units_built=sum(view.num_units for view in built),
        num_kept=num_kept,
        num_bytes=num_bytes,
        bytes_per_token=num_bytes / (num_tokens * len(built)),
        bytes_per_kept_position=num_bytes / max(num_kept, 1),
        seconds=seconds,
        teacher_seconds=sum(view.teacher_s for view in built),
        tokens_per_s=sum(view.num_tokens for view in built) / asked_s,
    )
