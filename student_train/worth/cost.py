"""What it took to make a student, from the run that left it."""

from student_train.run_folder import MODEL_PREFIX, RUN_KEY, CacheDescription, read_run
from student_train.worth.records import CacheCost, Cost
from teacher_cache.errors import UserError
from teacher_cache.format import manifest
from teacher_cache.storage.store import Store

MAX_COMMITS = 100_000
"""Read for a teacher's time: each is a request."""


def cost_of(path: str) -> Cost | None:
    """Of the model at a path; None unless that is the output of `student-train run`, or the model in it.

    Raises:
        UserError: a record of the run is damaged.
    """
    folder, _, last_part = path.rstrip("/").rpartition("/")
    places = [path] + ([folder or "."] if last_part == MODEL_PREFIX else [])
    store = next((place for place in map(Store, places) if place.exists(RUN_KEY)), None)
    if store is None:
        return None
    run = read_run(store)
    last = run.steps[-1] if run.steps else None
    return Cost(
        training_s=run.summary.seconds if run.summary else last.seconds if last else 0.0,
        num_workers=run.description.num_workers,
        device=run.description.device,
        num_steps=len(run.steps),
        num_tokens=sum(step.num_tokens for step in run.steps),
        caches=[_cache_cost(cache, last.epoch + 1 if last else 0) for cache in run.description.caches],
    )


def _cache_cost(cache: CacheDescription, num_epochs: int) -> CacheCost:
    num_read = min(num_epochs, cache.num_views)  # a view an epoch
    return CacheCost(
        url=cache.url,
        teacher=cache.teacher,
        num_views=num_read,
        num_bytes=num_read * (cache.label_bytes + cache.hidden_bytes),
        teacher_s=_teacher_s(cache, num_read),
    )


def _teacher_s(cache: CacheDescription, num_views: int) -> float | None:
    """None where the cache is not there any more or was built again, is too large to ask, or does not say it."""
    store = Store(cache.url)
    try:
        views = [manifest.read(store, view, fingerprint=cache.fingerprint) for view in range(num_views)]
        if sum(len(sealed.shards) for sealed in views) > MAX_COMMITS:
            return None
        found = [manifest.teacher_seconds(store, sealed) for sealed in views]
    except (UserError, FileNotFoundError):
        return None
    known = [seconds for seconds in found if seconds is not None]
    return sum(known) if len(known) == len(found) else None
