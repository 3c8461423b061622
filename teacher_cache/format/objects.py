"""Objects as a cache has them: named by their content, and listed in manifests."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from teacher_cache.format import documents, parquet
from teacher_cache.storage.store import Store

MAX_LIST_BYTES = 2**31


@dataclass(frozen=True, kw_only=True)
class ObjectRef:
    """One immutable object of a cache."""

    key: str
    sha256: str
    num_bytes: int

    def fetch(self, store: Store, *, remedy: str | None = None) -> Path:
        """A local file with the object's checked bytes: see `Store.fetch`."""
        return store.fetch(self.key, digest=self.sha256, num_bytes=self.num_bytes, remedy=remedy)


def put_content(store: Store, prefix: str, suffix: str, data: bytes) -> ObjectRef:
    """Writes `<prefix>-<digest><suffix>`: no attempt ever overwrites another's bytes.

    Other bytes that lie there are not what their name says, so they are damaged, and healed.
    """
    digest = documents.sha256(data)
    key = content_key(prefix, suffix, digest)
    if not store.create(key, data):
        store.replace(key, data)
    return ObjectRef(key=key, sha256=digest, num_bytes=len(data))


def content_key(prefix: str, suffix: str, sha256: str) -> str:
    """Where an object lies that is named by its content."""
    return f"{prefix}-{sha256[:16]}{suffix}"


def create_list(store: Store, key: str, columns: Mapping[str, np.ndarray], *, metadata: dict[str, Any]) -> bool:
    """Creates a manifest; False if one that lists anything else is there.

    Builders with two versions of Arrow write the same list in two ways.

    Raises:
        UserError: the one there is damaged.
    """
    if store.create(key, parquet.write_list(columns, metadata=metadata)):
        return True
    data = store.read(key, max_bytes=MAX_LIST_BYTES)
    there, metadata_there = parquet.read_list(data, name=f"{store.url}/{key}")
    same_names = (metadata_there, there.keys()) == (metadata, columns.keys())
    return same_names and all(np.array_equal(values, there[name]) for name, values in columns.items())
