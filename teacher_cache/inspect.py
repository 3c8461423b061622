"""Looking into a cache: what it holds, whether it is whole, what the teacher said."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from teacher_cache.errors import UserError
from teacher_cache.format import codebook, manifest, spec, teacher_files, token_counts
from teacher_cache.format.cache import Cache, open_cache
from teacher_cache.format.manifest import Manifest, Shard
from teacher_cache.format.row import Row
from teacher_cache.format.sequences import Sequences
from teacher_cache.shell.settings import to_dict

SAMPLE_ROWS = 64
"""Rows of a view that the teacher is asked about again."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What `verify` found."""

    ok: bool
    problems: list[str]
    """One line each, naming the object."""
    num_views: int
    num_objects: int
    num_bytes: int
    teacher: dict[str, float] | None
    """Largest differences between the cache and the teacher run anew; None if it was not asked."""


def info(cache: Cache) -> dict[str, Any]:
    """What a cache is and holds: identity, notes, and per sealed view its sizes."""
    views = [_view_info(cache, view) for view in range(cache.num_views)]
    return {
        "cache": cache.url,
        "fingerprint": cache.fingerprint,
        "num_views": len(views),
        "views": views,
        "units_committed_in_next_view": len(manifest.committed_units(cache.store, len(views))),
        "spec": to_dict(cache.spec),
        "notes": cache.notes,
    }


def _view_info(cache: Cache, view: int) -> dict[str, Any]:
    sealed = cache.manifest(view)
    shards = sealed.shards
    num_tokens, num_kept = sum(shard.num_tokens for shard in shards), sum(shard.num_kept for shard in shards)
    label_bytes = sum(shard.labels.num_bytes for shard in shards)
    hidden_bytes = sum(shard.hidden.num_bytes for shard in shards if shard.hidden)
    return {
        "view": view,
        "generation": sealed.generation,
        "manifest_sha256": sealed.sha256,
        "num_shards": len(shards),
        "num_sequences": sealed.num_sequences,
        "num_tokens": num_tokens,
        "num_labels": sum(shard.num_labels for shard in shards),
        "num_kept": num_kept,
        "label_bytes": label_bytes,
        "hidden_bytes": hidden_bytes,
        "bytes_per_token": (label_bytes + hidden_bytes) / num_tokens,
        "bytes_per_kept_position": (label_bytes + hidden_bytes) / max(num_kept, 1),
    }


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
    problems: list[str] = []
    num_objects = num_bytes = 0

    def attempt(check: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return check(*arguments)
        except UserError as error:
            problem = str(error)
        except FileNotFoundError as error:
            problem = f"{cache.url}: an object is missing: {error}"
        if problem not in problems:  # a damaged codebook or teacher is met again at each shard
            problems.append(problem)
        return None

    attempt(teacher_files.fetch, cache.store)
    attempt(_check_sequences, cache)
    for view in range(cache.num_views):
        if (sealed := attempt(cache.manifest, view)) is None:
            continue
        attempt(_check_origin, cache, sealed)
        first = 0
        for shard in sealed.shards:
            attempt(_check_shard, cache, shard, first)
            first += shard.num_sequences
            num_objects += 2 if shard.hidden else 1
            num_bytes += shard.num_bytes
            for ref in (shard.labels, shard.hidden):
                if ref:
                    cache.store.drop_copy(ref.sha256)
    teacher = _ask_again(cache) if ask_teacher and not problems else None
    return Verification(
        ok=not problems,
        problems=problems,
        num_views=cache.num_views,
        num_objects=num_objects,
        num_bytes=num_bytes,
        teacher=teacher,
    )


def _check_sequences(cache: Cache) -> None:
    for part in Sequences(cache.store).parts:
        part.ref.fetch(cache.store)
        cache.store.drop_copy(part.ref.sha256)


def _check_origin(cache: Cache, sealed: Manifest) -> None:
    """What stands beside a view is what the view was built from."""
    built_from, store = sealed.digests, cache.store
    found = {
        "spec.json": (built_from.spec, spec.digest(store)),
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
    from teacher_cache.teacher import Teacher, load_teacher

    loaded = load_teacher(str(cache.teacher.folder))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher = Teacher(loaded, getattr(torch, cache.spec.teacher.dtype), device)
    worst = {"logit": 0.0, "rest_log_sum_exp": 0.0, "hidden": 0.0}
    for row in sample(cache, SAMPLE_ROWS):
        input_ids, attention_mask = pad([row.input_ids], loaded.tokenizer.pad_token_id)
        layers = (*cache.spec.hidden.stored_layers, -1)
        states = {
            layer: h[0, row.kept_positions] for layer, h in teacher.encode(input_ids, attention_mask, layers).items()
        }
        logits, stored = teacher.logits(states[-1]).cpu(), SoftLabels.of_rows([row])
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


def sample(cache: Cache, num_rows: int) -> Iterator[Row]:
    """Rows of view 0, evenly spread over its shards."""
    shards = cache.manifest(0).shards
    step = max(1, len(shards) // num_rows)
    chosen = shards[::step][:num_rows]
    for shard in chosen:
        rows = cache.open_shard(shard).block(0)
        yield from rows[: -(-num_rows // len(chosen))]


def show(cache: Cache, *, view: int, start: int, stop: int) -> list[dict[str, Any]]:
    """Rows for a person: the text as the teacher saw it, and at each masked position what it said.

    Raises:
        UserError: the view is not sealed.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(cache.teacher.folder)
    return [_shown(row, tokenizer) for row in cache.rows(view, start, stop)]


def _shown(row: Row, tokenizer: Any) -> dict[str, Any]:
    kept = {int(position): place for place, position in enumerate(row.kept_positions)}
    labels = []
    for position, label in zip(row.label_positions, row.label_ids, strict=True):
        entry = {"position": int(position), "true": tokenizer.convert_ids_to_tokens(int(label))}
        if int(position) in kept:
            place = kept[int(position)]
            best = np.argsort(-row.topk_logits[place])
            entry["teacher"] = {
                tokenizer.convert_ids_to_tokens(int(row.topk_ids[place, i])): round(float(row.topk_logits[place, i]), 2)
                for i in best
            }
        labels.append(entry)
    return {
        "sequence_id": row.sequence_id,
        "document_id": row.document_id,
        "text": tokenizer.decode(row.input_ids),
        "kept": len(kept),
        "labels": labels,
    }


def render_rows(rows: list[dict[str, Any]]) -> str:
    """`show`'s rows as text."""
    blocks = []
    for row in rows:
        lines = [f"sequence {row['sequence_id']}, document {row['document_id']}, {row['kept']} positions kept"]
        lines.append(f"  {row['text']}")
        for label in row["labels"]:
            said = ", ".join(f"{token} {logit:g}" for token, logit in label.get("teacher", {}).items())
            lines.append(f"  at {label['position']}: {label['true']!r}; teacher: {said or 'not kept'}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)
