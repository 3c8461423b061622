"""The kinds of files of a cache, and how each is read by who needs it: a student, a builder, `verify`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infra.bench.tiny_caches import UNSEALED
from teacher_cache.errors import UserError
from teacher_cache.format import codebook, documents, manifest, sequences, token_counts
from teacher_cache.format.cache import Cache, open_cache
from teacher_cache.format.coder import Coder
from teacher_cache.format.manifest import Shard
from teacher_cache.format.sequences import Sequences
from teacher_cache.format.shard import ShardReader
from teacher_cache.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Files that are read alike."""

    name: str
    folder: Path
    """Of the cache."""
    keys: list[str]
    read: Callable[[str], Any]
    """What the file with a key says, as plain values that can be compared."""
    is_checked: bool = True
    """False: it is read without its digest, so that other data may come."""


def kinds(caches: dict[str, Cache]) -> list[Kind]:
    """Of all files of some caches, by name."""
    return [kind for name, cache in caches.items() for kind in _kinds(name, cache)]


def _kinds(name: str, cache: Cache) -> Iterator[Kind]:
    for pattern, read, is_checked in _readers(cache):
        folder = Path(cache.url)
        paths = (path for path in folder.glob(pattern) if path.is_file() and not path.name.startswith("."))
        keys = sorted(str(path.relative_to(folder)) for path in paths)
        if keys:
            title = f"{name}: {pattern}" if is_checked else f"{name}: {pattern}, unchecked"
            yield Kind(name=title, folder=folder, keys=keys, read=read, is_checked=is_checked)


def _readers(cache: Cache) -> list[tuple[str, Callable[[str], Any], bool]]:
    """Patterns of keys, how they are read, and whether digests are checked."""
    plain = [
        ("spec.json", _spec),
        (codebook.KEY, _codes),
        ("teacher/*", _teacher),
        (token_counts.KEY, _mask_probability),
        ("sequences/commits/*", _tokenised),
        (sequences.MANIFEST_KEY, _sequences),
        ("sequences/parts/*", _sequences),
        ("commits/*/*", _commit),
        ("manifests/*", _manifest),
        ("shards/*/*", _shard),
    ]
    unchecked = [
        (f"{UNSEALED}/shards/*/*", _unchecked_shard),
        (f"{UNSEALED}/sequences/parts/*", _unchecked_part),
        (f"{UNSEALED}/{codebook.KEY}", _unchecked_codes),
        ("teacher/*", _unchecked_teacher),
    ]
    # One cache object for all: what is not damaged is read once.
    return [(pattern, partial(read, cache), True) for pattern, read in plain] + [
        (pattern, partial(read, cache), False) for pattern, read in unchecked
    ]


def _spec(cache: Cache, key: str) -> Any:
    found = open_cache(cache.url)
    return plain_values((found.spec, found.notes))


def _codes(cache: Cache, key: str) -> Any:
    anew = open_cache(cache.url)
    found = codebook.read(anew.store, anew.spec, vocab_size=cache.teacher.vocab_size)
    return plain_values((found.labels, found.hidden))


def _teacher(cache: Cache, key: str) -> Any:
    folder = open_cache(cache.url).teacher.folder
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


def _mask_probability(cache: Cache, key: str) -> Any:
    return plain_values(token_counts.read_mask_probability(cache.store))


def _tokenised(cache: Cache, key: str) -> Any:
    return plain_values(sequences.read_commit(cache.store, int(Path(key).stem)))


def _sequences(cache: Cache, key: str) -> Any:
    found = Sequences(Store(cache.url))
    return plain_values((found.fingerprint, found.num_documents, list(found.read(0, found.num_sequences))))


def _commit(cache: Cache, key: str) -> Any:
    _, view, unit = Path(key).with_suffix("").parts
    return plain_values(manifest.read_commit(cache.store, int(view), int(unit), cache.fingerprint))


def _manifest(cache: Cache, key: str) -> Any:
    found = open_cache(cache.url).manifest(0)
    return plain_values((found.fingerprint, found.digests, found.shards))


def _shard_of(cache: Cache, key: str) -> Shard:
    return next(
        shard
        for shard in cache.manifest(0).shards
        if key in (shard.labels.key, shard.hidden.key if shard.hidden else None)
    )


def _shard(cache: Cache, key: str) -> Any:
    shard = _shard_of(cache, key)
    for ref in (shard.labels, shard.hidden):
        if ref:
            cache.store.drop_copy(ref.sha256)
    return plain_values(list(cache.open_shard(shard).rows()))


def _unchecked_shard(cache: Cache, key: str) -> Any:
    """Decoded to hidden states, and left as levels: as `verify` and as a student read."""
    shard, folder = _shard_of(cache, key.removeprefix(f"{UNSEALED}/")), Path(cache.url) / UNSEALED
    files = folder / shard.labels.key, folder / shard.hidden.key if shard.hidden else None
    layers = cache.spec.hidden.stored_layers
    readers = [
        ShardReader(*files, cache.spec, cache.coder, layers=layers, as_levels=as_levels) for as_levels in (False, True)
    ]
    return plain_values([list(reader.rows()) for reader in readers])


def _unchecked_codes(cache: Cache, key: str) -> Any:
    """As if all shards were coded with it."""
    store, size = Store(f"{cache.url}/{UNSEALED}"), cache.teacher.vocab_size
    codes = replace(codebook.read(store, cache.spec, vocab_size=size), sha256=cache.coder.codebook.sha256)
    shard, folder = cache.manifest(0).shards[0], Path(cache.url)
    assert shard.hidden, "a cache with a codebook here has hidden states"
    files, layers = (folder / shard.labels.key, folder / shard.hidden.key), cache.spec.hidden.stored_layers
    try:
        coder = Coder(codebook=codes, head=cache.head)
        return plain_values(list(ShardReader(*files, cache.spec, coder, layers=layers).rows()))
    except UserError as error:  # of the shard, which is whole
        raise UserError(f"{key}: {error}") from None


def _unchecked_part(cache: Cache, key: str) -> Any:
    """As if the manifest named the file's digest, whatever it is."""
    sealed, data = Sequences(cache.store), (Path(cache.url) / key).read_bytes()
    (part,) = (part for part in sealed.parts if part.ref.key == key.removeprefix(f"{UNSEALED}/"))
    forged = replace(part.ref, key=key, sha256=documents.sha256(data), num_bytes=len(data))
    sealed.parts = [replace(part, ref=forged)]
    return plain_values(list(sealed.read(part.first_sequence, part.first_sequence + part.num_sequences)))


def _unchecked_teacher(cache: Cache, key: str) -> Any:
    teacher = type(cache.teacher)(cache.teacher.folder)
    return plain_values((teacher.vocab_size, teacher.num_layers, teacher.hidden_size, teacher.read_head()))


def plain_values(value: Any) -> Any:
    """Records, arrays and tensors as what `==` compares whole."""
    if is_dataclass(value):
        return {field.name: plain_values(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, torch.Tensor):
        return plain_values(value.numpy())
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, dict):
        return {key: plain_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(item) for item in value]
    return value
