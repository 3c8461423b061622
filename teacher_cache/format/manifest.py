"""Commits, one JSON a unit, and sealed manifests, one row a shard: the only truth that readers trust."""

import dataclasses
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from teacher_cache.errors import UserError
from teacher_cache.format import documents, parquet
from teacher_cache.format.objects import MAX_LIST_BYTES, ObjectRef, create_list
from teacher_cache.format.refusal import refusing
from teacher_cache.format.shard_list import COUNTS, Shard, Shards, check_columns, check_shard, columns_of
from teacher_cache.storage.parallel import in_blocks
from teacher_cache.storage.store import Store

__all__ = ["Digests", "Manifest", "Shard", "Shards"]

COMMIT_REMEDY = "move it away and run `teacher-cache build` again, which asks the teacher about its unit anew"


@dataclass(frozen=True, kw_only=True)
class Digests:
    """Of everything else that a view's readers rely on."""

    spec: str
    teacher: str
    sequences: str
    codebook: str | None = None
    """Only where a code needs one."""
    token_counts: str | None = None
    """Only for masking policy `rare`, whose masks it decides."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A sealed view: its shards by unit, and totals over all of them."""

    fingerprint: str
    view: int
    generation: int
    digests: Digests
    shards: Shards
    sha256: str

    @property
    def sizes(self) -> np.ndarray:
        """`[U]` int64: sequences of each shard."""
        return self.shards.columns["num_sequences"]

    @property
    def num_sequences(self) -> int:
        return self.shards.total("num_sequences")

    @property
    def num_tokens(self) -> int:
        return self.shards.total("num_tokens")

    @property
    def num_labels(self) -> int:
        return self.shards.total("num_labels")

    @property
    def num_kept(self) -> int:
        return self.shards.total("num_kept")

    @property
    def label_bytes(self) -> int:
        return self.shards.total("labels_num_bytes")

    @property
    def hidden_bytes(self) -> int:
        return self.shards.total("hidden_num_bytes") if self.shards.has_hidden else 0

    @property
    def num_bytes(self) -> int:
        return self.label_bytes + self.hidden_bytes


def commit(store: Store, view: int, shard: Shard, fingerprint: str, *, teacher_s: float | None = None) -> Shard:
    """Commits a unit; the first attempt wins, and what it committed is returned.

    `teacher_s` is noted beside it: for how long the teacher was asked.
    """
    document = {
        "fingerprint": fingerprint,
        "view": view,
        "owner": uuid.uuid4().hex,
        "shard": dataclasses.asdict(shard),
        "teacher_s": None if teacher_s is None else round(teacher_s, 3),
    }
    key = _commit_key(view, shard.unit)
    if store.create(key, documents.dump(document)):
        return shard
    return read_commit(store, view, shard.unit, fingerprint)


def read_commit(store: Store, view: int, unit: int, fingerprint: str) -> Shard:
    """What the winning attempt committed.

    Raises:
        FileNotFoundError: the unit is not committed.
        UserError: the commit is damaged, another cache's, or not of a shard of this unit.
    """
    document, name = _read_document(store, view, unit, fingerprint)
    with refusing(name, COMMIT_REMEDY):
        shard = _committed(document["shard"])
        if shard.unit != unit:
            raise UserError(f"it commits unit {shard.unit}")
        check_shard(shard, view)
        return shard


def _read_document(store: Store, view: int, unit: int, fingerprint: str) -> tuple[dict[str, Any], str]:
    """A commit, and its name for messages."""
    key = _commit_key(view, unit)
    name, document = f"{store.url}/{key}", documents.read(store, key, remedy=COMMIT_REMEDY)
    if (document.get("fingerprint"), document.get("view")) != (fingerprint, view):
        raise UserError(f"{name} belongs to another cache or view; {COMMIT_REMEDY}")
    return document, name


def teacher_seconds(store: Store, sealed: Manifest) -> float | None:
    """For how long teachers were asked about a view's units as they were first committed, of all workers together; None
    where a commit does not say it.

    Raises:
        FileNotFoundError: a commit is missing.
        UserError: a commit is damaged, or another cache's.
    """
    view, fingerprint = sealed.view, sealed.fingerprint
    total = 0.0
    for block in in_blocks(lambda unit: _read_document(store, view, unit, fingerprint)[0], len(sealed.shards)):
        for document in block:
            seconds = document.get("teacher_s")
            if not isinstance(seconds, int | float):
                return None
            total += seconds
    return total


def _committed(stored: Mapping[str, Any]) -> Shard:
    """The shard of a commit; raises anything where it is none."""
    labels, hidden = (None if stored[part] is None else ObjectRef(**stored[part]) for part in ("labels", "hidden"))
    if labels is None:
        raise UserError("its shard has no labels")
    shard = Shard(**{**stored, "labels": labels, "hidden": hidden})
    numbers = [
        shard.unit,
        *(getattr(shard, name) for name in COUNTS),
        *(ref.num_bytes for ref in (labels, hidden) if ref),
    ]
    if any(type(number) is not int for number in numbers):  # a boolean is an int, too
        raise UserError("its shard has counts that are no whole numbers")
    return shard


def committed_units(store: Store, view: int) -> set[int]:
    """Units of a view that need no teacher again."""
    names = (key.rsplit("/", 1)[1].removesuffix(".json") for key in store.list(commits_folder(view)))
    return {int(name) for name in names if name.isdecimal() and f"{int(name):09d}" == name}


def _commit_key(view: int, unit: int) -> str:
    return f"{commits_folder(view)}/{unit:09d}.json"


def commits_folder(view: int) -> str:
    return f"commits/{view:05d}"


def manifest_key(view: int, generation: int) -> str:
    return f"manifests/{view:05d}-{generation:05d}.parquet"


def seal(store: Store, *, view: int, num_units: int, fingerprint: str, digests: Digests) -> Manifest:
    """Writes generation 0 of a view's manifest from the commits of all its units.

    Raises:
        FileNotFoundError: a unit is not committed.
        UserError: a commit is refused, see `read_commit`; or the view is sealed with other shards.
    """
    blocks = in_blocks(lambda unit: read_commit(store, view, unit, fingerprint), num_units)
    shards = Shards.joined(view, [columns_of(view, block) for block in blocks])
    if not create(store, shards, generation=0, fingerprint=fingerprint, digests=digests):
        raise UserError(f"{store.url}: view {view} is sealed with other shards; run `teacher-cache verify {store.url}`")
    return read(store, view)


def add_generation(store: Store, sealed: Manifest, replaced: Mapping[int, Shard]) -> Manifest:
    """Writes a view's next generation, with other shards of some units; who has an older one open keeps it.

    Raises:
        UserError: another wrote that generation first; or the shards are not such as the view has.
    """
    view, generation = sealed.view, sealed.generation + 1
    shards = sealed.shards.replaced(replaced)
    if not create(store, shards, generation=generation, fingerprint=sealed.fingerprint, digests=sealed.digests):
        key = manifest_key(view, generation)
        raise UserError(f"{store.url}/{key} was written by another meanwhile; run the same command again")
    return read(store, view, generation)


def create(store: Store, shards: Shards, *, generation: int, fingerprint: str, digests: Digests) -> bool:
    """Writes a manifest that lists `shards`; False if another is there."""
    metadata: dict[str, Any] = {"fingerprint": fingerprint, "view": shards.view, "generation": generation}
    metadata["digests"] = dataclasses.asdict(digests)
    return create_list(store, manifest_key(shards.view, generation), shards.columns, metadata=metadata)


def newest_generation(store: Store, view: int) -> int | None:
    """The generation that new readers use; None for an unsealed view."""
    generation = 0
    while store.exists(manifest_key(view, generation)):
        generation += 1
    return generation - 1 if generation else None


def read(store: Store, view: int, generation: int | None = None, *, fingerprint: str | None = None) -> Manifest:
    """A sealed view's manifest, of a generation (None: its newest) and of the cache with a fingerprint (None: of any).

    Raises:
        UserError: the view is not sealed, has no such generation, or its manifest is damaged or another cache's.
    """
    chosen = newest_generation(store, view) if generation is None else generation
    if chosen is None:
        raise UserError(
            f"{store.url}: view {view} is not sealed; finish it with `teacher-cache build` and its configuration"
        )
    key = manifest_key(view, chosen)
    try:
        data = store.read(key, max_bytes=MAX_LIST_BYTES)
    except FileNotFoundError:
        raise UserError(f"{store.url}/{key} is missing: view {view} has no generation {chosen}") from None
    name = f"{store.url}/{key}"
    columns, metadata = parquet.read_list(data, name=name)
    with refusing(name, parquet.LIST_REMEDY):
        check_columns(columns)
        if (found := (metadata["view"], metadata["generation"])) != (view, chosen):
            raise UserError(f"{name} is damaged: it holds the manifest of view {found[0]}, generation {found[1]}")
        if fingerprint not in (None, metadata["fingerprint"]):
            raise UserError(f"the manifest of view {view} belongs to another cache ({metadata['fingerprint']})")
        return Manifest(
            fingerprint=metadata["fingerprint"],
            view=view,
            generation=chosen,
            digests=Digests(**metadata["digests"]),
            shards=Shards(view=view, columns=columns),
            sha256=documents.sha256(data),
        )
