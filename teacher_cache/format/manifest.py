"""Commits, one JSON a unit, and sealed manifests, one row a shard: the only truth that readers trust."""

import dataclasses
import uuid
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from teacher_cache.errors import UserError
from teacher_cache.format import documents, parquet
from teacher_cache.format.objects import ObjectRef
from teacher_cache.format.store import Store

MAX_MANIFEST_BYTES = 2**31


@dataclass(frozen=True, kw_only=True)
class Shard:
    """What a unit became."""

    unit: int
    labels: ObjectRef
    hidden: ObjectRef | None
    num_sequences: int
    num_tokens: int
    """Non-pad positions, [CLS] and [SEP] included: the denominator of the soft-label and cosine losses."""
    num_labels: int
    """Masked positions: the denominator of the masked-LM loss."""
    num_kept: int

    @property
    def num_bytes(self) -> int:
        return self.labels.num_bytes + (self.hidden.num_bytes if self.hidden else 0)


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
    """A sealed view: its shards by unit."""

    fingerprint: str
    view: int
    generation: int
    digests: Digests
    shards: tuple[Shard, ...]
    sha256: str

    @property
    def num_sequences(self) -> int:
        return sum(shard.num_sequences for shard in self.shards)


def commit(store: Store, view: int, shard: Shard, fingerprint: str) -> Shard:
    """Commits a unit; the first attempt wins, and what it committed is returned."""
    document = {"fingerprint": fingerprint, "view": view, "owner": uuid.uuid4().hex, "shard": dataclasses.asdict(shard)}
    key = _commit_key(view, shard.unit)
    if store.create(key, documents.dump(document)):
        return shard
    return read_commit(store, view, shard.unit, fingerprint)


def read_commit(store: Store, view: int, unit: int, fingerprint: str) -> Shard:
    """What the winning attempt committed.

    Raises:
        FileNotFoundError: the unit is not committed.
        UserError: the commit is damaged or another cache's.
    """
    key = _commit_key(view, unit)
    name = f"{store.url}/{key}"
    document = documents.parse(store.read(key, max_bytes=documents.MAX_DOCUMENT_BYTES), name=name)
    if (document.get("fingerprint"), document.get("view")) != (fingerprint, view):
        raise UserError(f"{name} belongs to another cache or view: move it away and run the build again")
    shard = document["shard"]
    refs = {part: ObjectRef(**shard[part]) if shard[part] else None for part in ("labels", "hidden")}
    return Shard(**{**shard, **refs})


def committed_units(store: Store, view: int) -> set[int]:
    """Units of a view that need no teacher again."""
    return {int(key.rsplit("/", 1)[1].removesuffix(".json")) for key in store.list(f"commits/{view:05d}")}


def _commit_key(view: int, unit: int) -> str:
    return f"commits/{view:05d}/{unit:09d}.json"


def _manifest_key(view: int, generation: int) -> str:
    return f"manifests/{view:05d}-{generation:05d}.parquet"


def seal(store: Store, *, view: int, num_units: int, fingerprint: str, digests: Digests) -> Manifest:
    """Writes generation 0 of a view's manifest from the commits of all its units."""
    shards = [read_commit(store, view, unit, fingerprint) for unit in range(num_units)]
    metadata = {"fingerprint": fingerprint, "view": view, "generation": 0, "digests": dataclasses.asdict(digests)}
    data = parquet.write_list([_flat(shard) for shard in shards], _SCHEMA, metadata=metadata)
    if not store.create(_manifest_key(view, 0), data):
        raise UserError(f"{store.url}: view {view} is sealed with other shards; run `teacher-cache verify {store.url}`")
    return read(store, view)


def newest_generation(store: Store, view: int) -> int | None:
    """The generation that new readers use; None for an unsealed view."""
    generation = 0
    while store.exists(_manifest_key(view, generation)):
        generation += 1
    return generation - 1 if generation else None


def read(store: Store, view: int) -> Manifest:
    """The newest generation of a sealed view.

    Raises:
        UserError: the view is not sealed, or its manifest is damaged.
    """
    generation = newest_generation(store, view)
    if generation is None:
        raise UserError(
            f"{store.url}: view {view} is not sealed; finish it with `teacher-cache build` and its configuration"
        )
    key = _manifest_key(view, generation)
    data = store.read(key, max_bytes=MAX_MANIFEST_BYTES)
    rows, metadata = parquet.read_list(data, name=f"{store.url}/{key}")
    if (metadata["view"], metadata["generation"]) != (view, generation):
        found = f"view {metadata['view']}, generation {metadata['generation']}"
        raise UserError(f"{store.url}/{key} is damaged: it holds the manifest of {found}")
    return Manifest(
        fingerprint=metadata["fingerprint"],
        view=view,
        generation=generation,
        digests=Digests(**metadata["digests"]),
        shards=tuple(_shard(row) for row in rows),
        sha256=documents.sha256(data),
    )


_SCHEMA = pa.schema(
    [("unit", pa.int64())]
    + [
        (f"{part}_{name}", kind)
        for part in ("labels", "hidden")
        for name, kind in (("key", pa.string()), ("sha256", pa.string()), ("num_bytes", pa.int64()))
    ]
    + [(name, pa.int64()) for name in ("num_sequences", "num_tokens", "num_labels", "num_kept")]
)


def _flat(shard: Shard) -> dict[str, Any]:
    row = dataclasses.asdict(shard)
    refs = {part: row.pop(part) or {"key": None, "sha256": None, "num_bytes": None} for part in ("labels", "hidden")}
    return row | {f"{part}_{name}": value for part, ref in refs.items() for name, value in ref.items()}


def _shard(row: dict[str, Any]) -> Shard:
    def ref(part: str) -> ObjectRef | None:
        values = {name: row.pop(f"{part}_{name}") for name in ("key", "sha256", "num_bytes")}
        return ObjectRef(**values) if values["key"] is not None else None

    labels, hidden = ref("labels"), ref("hidden")
    if labels is None:
        raise UserError("a manifest lists a shard without labels: the cache is damaged")
    return Shard(labels=labels, hidden=hidden, **row)
