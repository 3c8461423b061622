"""Looking into a cache: what it holds, and what the teacher said."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from teacher_cache.format import manifest, spec_document
from teacher_cache.format.manifest import Manifest
from teacher_cache.storage.store import Store

if TYPE_CHECKING:
    from teacher_cache.format.cache import Cache
    from teacher_cache.format.row import Row
    from teacher_cache.format.spec import TaskObjective


def info(url: str) -> dict[str, Any]:
    """What a cache is and holds, as its files say: identity, notes, and per sealed view its sizes.

    Raises:
        UserError: there is no cache, or its spec or a manifest is damaged.
    """
    store = Store(url)
    spec = spec_document.read(store)
    views: list[dict[str, Any]] = []
    while manifest.newest_generation(store, len(views)) is not None:
        views.append(_view_info(manifest.read(store, len(views), fingerprint=spec.fingerprint)))
    return {
        "cache": store.url,
        "fingerprint": spec.fingerprint,
        "num_views": len(views),
        "views": views,
        "units_committed_in_next_view": len(manifest.committed_units(store, len(views))),
        "spec": spec.identity,
        "notes": spec.notes,
    }


def _view_info(sealed: Manifest) -> dict[str, Any]:
    return {
        "view": sealed.view,
        "generation": sealed.generation,
        "manifest_sha256": sealed.sha256,
        "num_shards": len(sealed.shards),
        "num_sequences": sealed.num_sequences,
        "num_tokens": sealed.num_tokens,
        "num_labels": sealed.num_labels,
        "num_kept": sealed.num_kept,
        "label_bytes": sealed.label_bytes,
        "hidden_bytes": sealed.hidden_bytes,
        "bytes_per_token": sealed.num_bytes / max(sealed.num_tokens, 1),
        "bytes_per_kept_position": sealed.num_bytes / max(sealed.num_kept, 1),
    }


def sample(cache: "Cache", num_rows: int) -> Iterator["Row"]:
    """Rows of view 0, evenly spread over its shards."""
    shards = cache.manifest(0).shards
    step = max(1, len(shards) // num_rows)
    chosen = shards[::step][:num_rows]
    for shard in chosen:
        rows = cache.open_shard(shard).block(0)
        yield from rows[: -(-num_rows // len(chosen))]


def show(cache: "Cache", *, view: int, start: int, stop: int) -> list[dict[str, Any]]:
    """Rows for a person: the text as the teacher saw it, and at each masked position what it said.

    Raises:
        UserError: the view is not sealed.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(cache.teacher.folder)
    task = cache.spec.task
    return [
        {
            "sequence_id": row.sequence_id,
            "document_id": row.document_id,
            "text": tokenizer.decode(row.input_ids),
            "kept": len(row.kept_positions),
            "labels": _answers(row, task, tokenizer) if task and not task.labels else _labels(row, task, tokenizer),
        }
        for row in cache.rows(view, start, stop)
    ]


def _labels(row: "Row", task: "TaskObjective | None", tokenizer: Any) -> list[dict[str, Any]]:
    """What is true, a token or a task's class, and what the teacher said there, the likeliest first."""
    name: Callable[[int], str] = task.labels.__getitem__ if task else tokenizer.convert_ids_to_tokens
    kept = {int(position): place for place, position in enumerate(row.kept_positions)}
    labels = []
    for position, label in zip(row.label_positions, row.label_ids, strict=True):
        entry = {"position": int(position), "true": name(int(label))}
        if int(position) in kept:
            place = kept[int(position)]
            best = np.argsort(-row.topk_logits[place])
            entry["teacher"] = {
                name(int(row.topk_ids[place, i])): round(float(row.topk_logits[place, i]), 2) for i in best
            }
        labels.append(entry)
    return labels


def _answers(row: "Row", task: "TaskObjective", tokenizer: Any) -> list[dict[str, Any]]:
    """What the teacher said where a task has no classes: a number; or the likeliest start and end of an answer."""
    labels = []
    for output in range(task.num_outputs):
        place = int(np.argmax(row.topk_logits[:, output]))
        position = int(row.kept_positions[place])
        name = ("start", "end")[output] if task.kind == "question_answering" else "value"
        entry = {"position": position, "teacher": {name: round(float(row.topk_logits[place, output]), 2)}}
        labels.append(entry | {"token": tokenizer.convert_ids_to_tokens(int(row.input_ids[position]))})
    return labels


def render_rows(rows: list[dict[str, Any]]) -> str:
    """`show`'s rows as text."""
    blocks = []
    for row in rows:
        lines = [f"sequence {row['sequence_id']}, document {row['document_id']}, {row['kept']} positions kept"]
        lines.append(f"  {row['text']}")
        for label in row["labels"]:
            said = ", ".join(f"{token} {logit:g}" for token, logit in label.get("teacher", {}).items())
            what = label.get("true", label.get("token"))
            lines.append(f"  at {label['position']}: {what!r}; teacher: {said or 'not kept'}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)
