"""Whether a cache is whole: every object read, every digest checked, every row decoded; and its bad units mended."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from teacher_cache.errors import StoreError, UserError
from teacher_cache.format import codebook, manifest, sequences, spec, teacher_files, token_counts
from teacher_cache.format.cache import Cache, open_cache
from teacher_cache.format.manifest import Manifest, Shard
from teacher_cache.format.sequences import Sequences
from teacher_cache.inspect import sample
from teacher_cache.storage.parallel import in_blocks

SAMPLE_ROWS = 64
"""Rows of a view that the teacher is asked about again."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What `verify` found."""

    cache: str
    ok: bool
    problems: list[str]
    """One line each, naming the object."""
    bad_units: list[tuple[int, int]]
    """View and unit, where nothing but shards is damaged: what the teacher can be asked again."""
    num_views: int
    num_objects: int
    num_bytes: int
    teacher: dict[str, float] | None
    """Largest differences between the cache and the teacher run anew; None if it was not asked."""


def verify(cache: Cache, *, ask_teacher: bool = False) -> Verification:
    """Reads every object, checks every digest, and decodes every row of every sealed view.

    Raises:
        UserError: no view is sealed, so there is nothing whole to verify.
    """
    if not cache.num_views:
        cache.manifest(0)  # raises
    with tempfile.TemporaryDirectory() as folder:  # what the store holds, not what this machine has of it
        return _verify(open_cache(cache.url, disk_cache=folder), ask_teacher=ask_teacher)


def _verify(cache: Cache, *, ask_teacher: bool) -> Verification:
    problems = _Problems(cache.url)
    problems.met(teacher_files.fetch, cache.store)
    problems.met(_check_sequences, cache)
    views = [cache.manifest(view) for view in range(cache.num_views) if not problems.met(cache.manifest, view)]
    for sealed in views:
        problems.met(_check_origin, cache, sealed)
    is_sound = not problems.found  # but for shards; a damaged codebook would make all of them look bad
    bad_units = [(sealed.view, unit) for sealed in views for unit in _bad_units(cache, sealed, problems)]
    _check_commits(cache, views, problems)
    return Verification(
        cache=cache.url,
        ok=not problems.found,
        problems=problems.found,
        bad_units=bad_units if is_sound else [],
        num_views=cache.num_views,
        num_objects=sum(len(sealed.shards) * (2 if sealed.shards.has_hidden else 1) for sealed in views),
        num_bytes=sum(sealed.num_bytes for sealed in views),
        teacher=_ask_again(cache) if ask_teacher and not problems.found else None,
    )


class _Problems:
    """What checks found, one line each."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.found: list[str] = []

    def met(self, check: Callable[..., Any], *arguments: Any) -> bool:
        """Whether a check raises; not for a store that does not answer: that says nothing of what it holds."""
        try:
            check(*arguments)
        except StoreError:
            raise
        except UserError as error:
            problem = str(error)
        except FileNotFoundError as error:
            problem = f"{self._url}: an object is missing: {error}"
        else:
            return False
        if problem not in self.found:  # a damaged codebook or teacher is met again at each shard
            self.found.append(problem)
        return True


def _bad_units(cache: Cache, sealed: Manifest, problems: _Problems) -> Iterator[int]:
    """Units of a view whose objects are missing, damaged or not what the manifest counts."""
    first = 0
    for shard in sealed.shards:
        if problems.met(_check_shard, cache, shard, first):
            yield shard.unit
        first += shard.num_sequences
        for ref in (shard.labels, shard.hidden):
            if ref:
                cache.store.drop_copy(ref.sha256)


def _check_sequences(cache: Cache) -> None:
    for part in Sequences(cache.store).parts:
        part.ref.fetch(cache.store, remedy=sequences.PART_REMEDY)
        cache.store.drop_copy(part.ref.sha256)


def _check_commits(cache: Cache, views: Sequence[Manifest], problems: _Problems) -> None:
    """Reads all commits: no reader of sealed views needs them, but who copies the cache, or asks what it cost."""
    store = cache.store
    checks: list[tuple[Any, ...]] = [
        (sequences.read_commit, store, file) for file in sorted(sequences.committed_files(store))
    ]
    for sealed in views:
        units = sorted(manifest.committed_units(store, sealed.view))
        checks += [(manifest.read_commit, store, sealed.view, unit, cache.fingerprint) for unit in units]
    for _ in in_blocks(lambda number: problems.met(*checks[number]), len(checks)):
        pass


def _check_origin(cache: Cache, sealed: Manifest) -> None:
    """What stands beside a view is what the view was built from."""
    built_from, store = sealed.digests, cache.store
    found = {
        spec.KEY: (built_from.spec, spec.digest(store)),
        "teacher": (built_from.teacher, teacher_files.digest(store)),
        "sequences": (built_from.sequences, Sequences(store).sha256),
    }
    if built_from.codebook:
        found[codebook.KEY] = (built_from.codebook, codebook.digest(store))
    if built_from.token_counts:
        found[token_counts.KEY] = (built_from.token_counts, token_counts.digest(store))
    others = [name for name, (before, now) in found.items() if before != now]
    if others:
        raise UserError(f"{cache.url}: {', '.join(others)}: not what view {sealed.view} was built from")


def _check_shard(cache: Cache, shard: Shard, first_sequence: int) -> None:
    rows = list(cache.open_shard(shard).rows())
    found = (
        [row.sequence_id for row in rows],
        sum(len(row.input_ids) for row in rows),
        sum(len(row.label_positions) for row in rows),
        sum(len(row.kept_positions) for row in rows),
    )
    ids = list(range(first_sequence, first_sequence + shard.num_sequences))
    if found != (ids, shard.num_tokens, shard.num_labels, shard.num_kept):
        raise UserError(f"{cache.url}/{shard.labels.key}: its rows are not those that the manifest counts")


def _ask_again(cache: Cache) -> dict[str, float]:
    """Runs the teacher on a sample of stored inputs and compares what it says with what is stored."""
    import torch

    from teacher_cache.targets.batching import pad
    from teacher_cache.targets.soft_labels import SoftLabels
    from teacher_cache.task_teacher import TaskTeacher, teacher_of
    from teacher_cache.teacher import load_teacher

    loaded = load_teacher(str(cache.teacher.folder), objective=cache.spec.objective)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher = teacher_of(loaded, cache.spec, device)
    worst = {"logit": 0.0, "rest_log_sum_exp": 0.0, "hidden": 0.0}
    for row in sample(cache, SAMPLE_ROWS):
        input_ids, attention_mask = pad([row.input_ids], loaded.tokenizer.pad_token_id)
        kept = torch.from_numpy(row.kept_positions)
        if isinstance(teacher, TaskTeacher):
            logits, states = teacher.answers(input_ids, attention_mask, kept).cpu(), {}
        else:
            layers = (*cache.spec.hidden.stored_layers, -1)
            states = {layer: h[0, kept] for layer, h in teacher.encode(input_ids, attention_mask, layers).items()}
            logits = teacher.logits(states[-1]).cpu()
        stored = SoftLabels.of_rows([row])
        if cache.spec.soft_labels.code == "packed":  # which keeps no level of a row
            logits = logits - logits.max(dim=-1, keepdim=True).values
        outside = logits.scatter(-1, stored.topk_ids, -torch.inf)
        found = {"logit": (logits.gather(-1, stored.topk_ids) - stored.topk_logits).abs()}
        for temperature, rest in stored.rest_log_sum_exp.items():
            found["rest_log_sum_exp"] = ((outside / temperature).logsumexp(-1) - rest).abs()
            worst = _worse(worst, found)
        for layer, hidden in row.hidden.items():
            found["hidden"] = (states[layer].float().cpu() - torch.tensor(hidden.astype(np.float32))).abs()
            worst = _worse(worst, found)
        worst = _worse(worst, found)
    return worst


def _worse(worst: dict[str, float], found: dict[str, Any]) -> dict[str, float]:
    new = {name: float(values.max()) if values.numel() else 0.0 for name, values in found.items()}
    return {name: max(value, new.get(name, 0.0)) for name, value in worst.items()}
