"""References to content-addressed objects: what manifests and commits list."""

from dataclasses import dataclass
from pathlib import Path

from teacher_cache.format import documents
from teacher_cache.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class ObjectRef:
    """One immutable object of a cache."""

    key: str
    sha256: str
    num_bytes: int

    def fetch(self, store: Store) -> Path:
        """A local file with the object's checked bytes."""
        return store.fetch(self.key, digest=self.sha256, num_bytes=self.num_bytes)


def put_content(store: Store, prefix: str, suffix: str, data: bytes) -> ObjectRef:
    """Writes `<prefix>-<digest><suffix>`: no attempt ever overwrites another's bytes.

    Other bytes that lie there are not what their name says, so they are damaged, and healed.
    """
    digest = documents.sha256(data)
    key = f"{prefix}-{digest[:16]}{suffix}"
    if not store.create(key, data):
        store.replace(key, data)
    return ObjectRef(key=key, sha256=digest, num_bytes=len(data))
