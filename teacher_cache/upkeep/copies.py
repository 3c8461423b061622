"""A cache copied to another store, each object checked on both sides.

Keys stay as they are and objects are put only where there is none, so that a copy which was cut short goes on where it
stopped. Manifests come last: until then the copy has no sealed view.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from teacher_cache.errors import UserError
from teacher_cache.format import codebook, documents, manifest, sequences, spec, teacher_files, token_counts
from teacher_cache.format.cache import Cache
from teacher_cache.format.manifest import Manifest
from teacher_cache.format.objects import MAX_LIST_BYTES, ObjectRef
from teacher_cache.format.sequences import Sequences
from teacher_cache.pipeline.single_writer import writable
from teacher_cache.storage.store import Store

NUM_THREADS = 4
"""Objects under way at once, each whole in memory."""
BLOCK = 1024
"""Objects given to them at once."""

T = TypeVar("T")
Item = ObjectRef | str
"""An object, or the key of a JSON document, which carries its own digest."""


@dataclass(frozen=True, kw_only=True)
class CopySummary:
    """What `copy` did; of its sealed views a cache has in both places the same bytes now."""

    source: str
    cache: str
    """The copy's URL."""
    fingerprint: str
    num_views: int
    num_copied: int
    """Objects; the others were there, whole."""
    num_there: int
    bytes_copied: int


def copy(source: Cache, url: str) -> CopySummary:
    """Copies a cache's sealed views, and all that building on needs, to another folder or URL.

    Raises:
        UserError: no view is sealed; an object is missing or damaged; or `url` holds another cache.
    """
    views = [source.manifest(view) for view in range(max(source.num_views, 1))]  # raises where there is none
    _refuse_another(source, Store(url))
    with writable(url) as target, ThreadPoolExecutor(NUM_THREADS) as threads:
        put = partial(_put, source, target)
        sizes = [size for stage in _stages(source, views) for size in threads.map(put, stage)]
    return CopySummary(
        source=source.url,
        cache=target.url,
        fingerprint=source.fingerprint,
        num_views=len(views),
        num_copied=len(sizes) - sizes.count(None),
        num_there=sizes.count(None),
        bytes_copied=sum(size or 0 for size in sizes),
    )


def _refuse_another(source: Cache, target: Store) -> None:
    if not target.exists(spec.KEY):
        return
    there, _ = spec.read(target)
    if there.fingerprint != source.fingerprint:
        raise UserError(
            f"{target.url} holds another cache, of fingerprint {there.fingerprint}; {source.url} has "
            f"{source.fingerprint}: choose another URL"
        )


def _put(source: Cache, target: Store, item: Item) -> int | None:
    """Copies an object; its bytes, None if it was there."""
    ref = item if isinstance(item, ObjectRef) else _document(source.store, item)
    if _is_there(target, ref):
        return None
    try:
        data = source.store.read(ref.key, max_bytes=ref.num_bytes)
    except FileNotFoundError:
        raise UserError(f"{source.url}/{ref.key} is missing; run `teacher-cache verify {source.url}`") from None
    if documents.sha256(data) != ref.sha256:
        raise _damaged(source.url, ref.key, ref.sha256)
    target.create(ref.key, data)
    if not _is_there(target, ref):
        raise UserError(f"{target.url}/{ref.key} was written, but cannot be read; run the same command again")
    return ref.num_bytes


def _is_there(target: Store, ref: ObjectRef) -> bool:
    """Whether an object is at the copy's place, with the right bytes."""
    try:
        data = target.read(ref.key, max_bytes=max(ref.num_bytes, documents.MAX_DOCUMENT_BYTES))
    except FileNotFoundError:
        return False
    if documents.sha256(data) != ref.sha256:
        raise UserError(
            f"{target.url}/{ref.key} is there with other bytes than the cache to copy has (its SHA-256 is not "
            f"{ref.sha256}); move it away and run the same command again, or choose another URL"
        )
    return True


def _stages(source: Cache, views: Sequence[Manifest]) -> Iterator[Sequence[Item]]:
    """Objects in the order in which they may appear: each stage lists or needs only what came before."""
    store, built_from = source.store, views[0].digests
    sequence_list = _named(store, sequences.MANIFEST_KEY, built_from.sequences)  # `Sequences` does not name a lost one
    yield [_named(store, spec.KEY, built_from.spec)]  # claims the place
    yield teacher_files.listed(store)
    yield [_named(store, teacher_files.MANIFEST_KEY, built_from.teacher)]
    yield from _blocks([part.ref for part in Sequences(store).parts])
    yield from _blocks(store.list("sequences/commits"))
    if built_from.token_counts:
        yield [_named(store, token_counts.KEY, built_from.token_counts)]
    yield [sequence_list]
    if built_from.codebook:
        yield [_named(store, codebook.KEY, built_from.codebook)]
    for sealed in views:
        for shards in _blocks(sealed.shards):
            yield [ref for shard in shards for ref in (shard.labels, shard.hidden) if ref]
        yield from _blocks(store.list(manifest.commits_folder(sealed.view)))
    for sealed in views:
        yield from ([ref] for ref in _manifests(store, sealed))


def _blocks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """A view may have a million shards."""
    for start in range(0, len(items), BLOCK):
        yield items[start : start + BLOCK]


def _document(store: Store, key: str) -> ObjectRef:
    data = _read(store, key)
    documents.parse(data, name=f"{store.url}/{key}")
    return _ref(key, data)


def _manifests(store: Store, sealed: Manifest) -> Iterator[ObjectRef]:
    """A view's manifests, generation 0 last: a reader who finds it goes on to the newest.

    Shards that only older generations list are not copied: nobody has these open at the new place.
    """
    for generation in range(sealed.generation, -1, -1):
        key = manifest.manifest_key(sealed.view, generation)
        yield _named(store, key, manifest.read(store, sealed.view, generation).sha256)


def _named(store: Store, key: str, digest: str) -> ObjectRef:
    """An object that the manifests name by its digest alone."""
    data = _read(store, key)
    if documents.sha256(data) != digest:
        raise _damaged(store.url, key, digest)
    return _ref(key, data)


def _read(store: Store, key: str) -> bytes:
    try:
        return store.read(key, max_bytes=MAX_LIST_BYTES)
    except FileNotFoundError:
        raise UserError(f"{store.url}/{key} is missing; run `teacher-cache verify {store.url}`") from None


def _ref(key: str, data: bytes) -> ObjectRef:
    return ObjectRef(key=key, sha256=documents.sha256(data), num_bytes=len(data))


def _damaged(url: str, key: str, digest: str) -> UserError:
    return UserError(f"{url}/{key} is damaged: its SHA-256 is not {digest}; run `teacher-cache verify {url}`")
