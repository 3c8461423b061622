"""What it took to make a student, from the run that left it."""

from student_train.export import MODEL_PREFIX
from student_train.run_folder import RUN_KEY, CacheDescription, read_run
from student_train.worth.records import CacheCost, Cost
from teacher_cache.storage.store import Store


def cost_of(path: str) -> Cost | None:
    """Of the model at a path; None unless it is the `model/` of a run of `student-train run`.

    Raises:
        UserError: a record of the run is damaged.
    """
    folder, _, name = path.rstrip("/").rpartition("/")
    if name != MODEL_PREFIX or not folder:
        return None
    store = Store(folder)
    if not store.exists(RUN_KEY):
        return None
    run = read_run(store)
    return Cost(
        training_s=run.summary.seconds if run.summary else run.steps[-1].seconds if run.steps else 0.0,
        num_workers=run.description.num_workers,
        device=run.description.device,
        num_steps=len(run.steps),
        num_tokens=sum(step.num_tokens for step in run.steps),
        caches=[_cache_cost(cache) for cache in run.description.caches],
    )


def _cache_cost(cache: CacheDescription) -> CacheCost:
    return CacheCost(
        url=cache.url,
        teacher=cache.teacher,
        num_views=cache.num_views,
        num_bytes=cache.num_views * (cache.label_bytes + cache.hidden_bytes),
        teacher_s=_teacher_s(cache),
    )


def _teacher_s(cache: CacheDescription) -> float | None:
    """Not known where the cache is no longer there, or says nothing of it."""
    return None
