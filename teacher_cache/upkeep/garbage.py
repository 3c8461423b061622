"""What no reader of a cache will ever ask for, found and deleted.

Builders leave it when they die: shards and parts of attempts that another's commit outran, marks of attempts, files
half written, the objects by which a store was tried.

Deleting must not race with a builder who is about to list what lies there already, for content-addressed objects are
not written twice. So only what belongs to something sealed is garbage: every unit of a sealed view is committed, a
commit never changes, and whoever comes later with another answer for the unit loses. The same holds for the parts
of sealed sequences. Only a repair lists more shards, in a new generation of the manifest: generations are looked for
again before each deletion, and a repair ends with a verification, which would name what is missing.
"""

import contextlib
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from teacher_cache.errors import UserError
from teacher_cache.format import manifest
from teacher_cache.format.attempts import MARK_KEY
from teacher_cache.format.cache import Cache
from teacher_cache.format.sequences import PART_KEY, Sequences
from teacher_cache.format.shard_list import SHARD_KEY
from teacher_cache.storage.local_files import TEMPORARY_KEY
from teacher_cache.storage.probe import PROBE_KEY
from teacher_cache.storage.store import Store

DAY_S = 86_400.0


@dataclass(frozen=True, kw_only=True)
class GcSummary:
    """What `gc` found."""

    cache: str
    deleted: bool
    """False: everything is where it was."""
    num_objects: int
    num_bytes: int
    num_young: int
    """Objects that nothing lists, but are not old enough, or in a view that is being repaired."""
    objects: list[str]
    """Keys."""


@dataclass(frozen=True, kw_only=True)
class _Stored:
    key: str
    path: str
    num_bytes: int
    modified: datetime
    """By the store's clock."""


@dataclass(frozen=True, kw_only=True)
class _Sealed:
    """What is sealed, and what that lists."""

    generations: Mapping[int, int]
    """Newest generation by view."""
    shards: frozenset[str]
    """Keys, of all generations."""
    parts: frozenset[str] | None
    """Keys; None while the sequences are not sealed."""


def gc(cache: Cache, *, dry_run: bool = True, older_than_s: float = DAY_S) -> GcSummary:
    """Finds what nothing lists, and deletes it unless `dry_run`; a builder may be at work meanwhile.

    Raises:
        UserError: a manifest is damaged, so that nobody knows what it lists; or the cache cannot be listed or written.
    """
    stored, now = _listing(cache.store)  # before the manifests: what they list since is not garbage
    sealed = _sealed(cache.store)
    garbage = [found for found in stored if _is_garbage(found.key, sealed)]
    old = [found for found in garbage if (now - found.modified).total_seconds() >= older_than_s]
    if not dry_run:
        old = [found for found in old if _delete(cache.store, found, sealed)]
    return GcSummary(
        cache=cache.url,
        deleted=not dry_run,
        num_objects=len(old),
        num_bytes=sum(found.num_bytes for found in old),
        num_young=len(garbage) - len(old),
        objects=[found.key for found in old],
    )


def _listing(store: Store) -> tuple[list[_Stored], datetime]:
    """All objects, and what time it is by the clock that dates them: that of an object written now."""
    key = f"probe/{uuid.uuid4().hex}"
    store.replace(key, b"")
    try:
        found = store.attempt("listing everything", lambda: store.fs.find(store.root, detail=True))
        stored = {entry.key: entry for entry in _entries(store, found)}
        if key not in stored:  # in a folder in which a file vanishes just now, none may be found
            raise UserError(f"{store.url} changes while it is listed; run the same command again")
        return [entry for entry in stored.values() if entry.key != key], stored[key].modified
    finally:
        store.delete_folder(key)


def _entries(store: Store, found: Mapping[str, Any]) -> Iterator[_Stored]:
    for path, told in found.items():
        if told["type"] == "file":
            yield _Stored(
                key=path.removeprefix(f"{store.root}/"),
                path=path,
                num_bytes=told["size"],
                modified=told["LastModified"] if "LastModified" in told else datetime.fromtimestamp(told["mtime"], UTC),
            )


def _sealed(store: Store) -> _Sealed:
    views = {int(key.rsplit("/", 1)[1].split("-")[0]) for key in store.list("manifests")}
    newest = {view: manifest.newest_generation(store, view) for view in views}
    generations = {view: generation for view, generation in newest.items() if generation is not None}
    keys: set[str] = set()
    for view, generation in generations.items():
        keys = keys.union(*(_shard_keys(store, view, older) for older in range(generation + 1)))
    try:
        parts = frozenset(part.ref.key for part in Sequences(store).parts)
    except FileNotFoundError:
        parts = None
    return _Sealed(generations=generations, shards=frozenset(keys), parts=parts)


def _shard_keys(store: Store, view: int, generation: int) -> set[str]:
    shards = manifest.read(store, view, generation).shards
    return {ref.key for shard in shards for ref in (shard.labels, shard.hidden) if ref}


def _is_garbage(key: str, sealed: _Sealed) -> bool:
    if shard := SHARD_KEY.fullmatch(key):
        return int(shard[1]) in sealed.generations and key not in sealed.shards
    if mark := MARK_KEY.fullmatch(key):
        return int(mark[1]) in sealed.generations
    if PART_KEY.fullmatch(key):
        return sealed.parts is not None and key not in sealed.parts
    return bool(TEMPORARY_KEY.fullmatch(key) or PROBE_KEY.fullmatch(key))


def _delete(store: Store, found: _Stored, sealed: _Sealed) -> bool:
    """Deletes an object, unless a repair of its view may list it by now."""
    if shard := SHARD_KEY.fullmatch(found.key):
        view = int(shard[1])
        if manifest.newest_generation(store, view) != sealed.generations[view]:
            return False
    with contextlib.suppress(FileNotFoundError):  # another `gc` was faster
        store.attempt(f"deleting {found.key}", lambda: store.fs.rm_file(found.path))
    return True
