"""The caches that a run learns from: opened, checked against each other and against what the losses need."""

from collections.abc import Sequence

from student_train.config import StudentSpec
from student_train.losses import teacher_parts
from student_train.order import NUM_LANES
from student_train.run_folder import CacheDescription
from teacher_cache.errors import UserError
from teacher_cache.format.cache import Cache, open_cache
from teacher_cache.targets.soft_labels import check_stored


def open_caches(spec: StudentSpec) -> list[Cache]:
    """Opens the caches, and checks that they are sealed, fit together, and hold what the losses need.

    Raises:
        UserError: they do not.
    """
    caches = [open_cache(url, disk_cache=spec.execution.disk_cache) for url in spec.caches]
    first = caches[0]
    for cache in caches:
        if cache.spec.task:
            raise UserError(f"{cache.url} is a cache of a task: students learn from it by `student-train finetune`")
        cache.manifest(0)
        same = (cache.spec.teacher, cache.spec.corpus.tokenizer_sha256) == (
            first.spec.teacher,
            first.spec.corpus.tokenizer_sha256,
        )
        if not same:
            raise UserError(f"{cache.url} and {first.url} are of different teachers or tokenizers: one run needs one")
        _check_targets(cache, spec)
        alike = [(c.spec.soft_labels, c.last_hidden_layer, c.spec.hidden.code) for c in (cache, first)]
        if alike[0] != alike[1]:
            raise UserError(
                f"{cache.url} and {first.url} differ in soft_labels, hidden.code or the name of the last hidden layer: "
                "one run needs caches built alike"
            )
    if len({cache.spec.keep.unmasked > 0 for cache in caches}) > 1:
        raise UserError("some caches keep unmasked positions and some do not: their losses have different means")
    return caches


def _check_targets(cache: Cache, spec: StudentSpec) -> None:
    if teacher_parts(spec.loss) and cache.last_hidden_layer is None:
        raise UserError(
            f"{cache.url} stores no last hidden states, which loss.soft_labels: replay and loss.weights.cosine need; "
            "use loss.soft_labels=bucket and loss.weights.cosine=0, or a cache with hidden.layers: [-1]"
        )
    stored = cache.spec.soft_labels
    exact = stored.top_k == cache.teacher.vocab_size
    if spec.loss.soft_labels == "bucket" and spec.loss.weights.soft_labels and not exact:
        check_stored(spec.loss.temperature, stored.temperatures)


def views_line(caches: Sequence[Cache], *, num_views: int, num_epochs: int) -> str:
    """Which sealed views a run reads, for a person; `num_views` were sealed when it began."""
    num_sealed = min(cache.num_views for cache in caches)
    line = f"{num_epochs:,} epoch(s) read {min(num_epochs, num_views)} of {num_sealed} sealed view(s)"
    if num_views < num_sealed:
        return f"{line}: those that were sealed when the run began"
    return f"{line} in turn; the run keeps to these when more are sealed" if num_views < num_epochs else line


def describe(cache: Cache, *, num_views: int) -> CacheDescription:
    """What the records of a run that reads so many views say of a cache."""
    view = cache.manifest(0)
    return CacheDescription(
        url=cache.url,
        fingerprint=cache.fingerprint,
        teacher=str(cache.notes.get("teacher", {}).get("model", "unknown")),
        num_views=num_views,
        num_sequences=view.num_sequences,
        num_tokens=view.num_tokens,
        num_kept=view.num_kept,
        label_bytes=view.label_bytes,
        hidden_bytes=view.hidden_bytes,
    )


def idle_workers(caches: Sequence[Cache], num_workers: int) -> int:
    """Workers that have no shard to read: there are fewer shards, or lanes, than workers."""
    return max(0, num_workers - min(NUM_LANES, sum(len(cache.manifest(0).shards) for cache in caches)))
