"""JSON documents that carry their own digest, in canonical form (RFC 8785)."""

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import rfc8785

from teacher_cache.errors import UserError

if TYPE_CHECKING:
    from teacher_cache.storage.store import Store

REMEDY = "move it away and run the same command again"
MAX_DOCUMENT_BYTES = 64 * 2**20
"""No JSON document of a cache may be larger: bounds memory before anything is parsed."""
MAX_DOCUMENT_VALUES = 2**22
"""Bounds what a document's bytes become: an empty list is 2 bytes, and 64 in memory."""


def sha256(data: bytes | memoryview) -> str:
    """SHA-256 in lower-case hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def canonical(payload: Any) -> bytes:
    """Canonical JSON: equal values give equal bytes."""
    return rfc8785.dumps(payload)


def digest_of(payload: Any) -> str:
    """SHA-256 of the canonical JSON of `payload`."""
    return sha256(canonical(payload))


def dump(payload: Mapping[str, Any]) -> bytes:
    """The document's bytes, its digest added under `sha256`."""
    return canonical({**payload, "sha256": digest_of(dict(payload))})


def read(store: "Store", key: str, *, remedy: str = REMEDY) -> dict[str, Any]:
    """The document under a key, without its digest.

    Raises:
        FileNotFoundError: there is none.
        UserError: see `parse`; or it is too large.
    """
    return parse(store.read(key, max_bytes=MAX_DOCUMENT_BYTES), name=f"{store.url}/{key}", remedy=remedy)


def _members(document: Mapping[str, Any]) -> dict[str, bytes]:
    """Canonical JSON of each member, `"name":value`, in canonical order (RFC 8785, section 3.2.3)."""
    names = sorted(document, key=lambda name: name.encode("utf-16-be"))
    return {name: canonical({name: document[name]})[1:-1] for name in names}


def _object(members: Mapping[str, bytes]) -> bytes:
    return b"{" + b",".join(members.values()) + b"}"


def parse(data: bytes, *, name: str, remedy: str = REMEDY) -> dict[str, Any]:
    """The document without its digest.

    Raises:
        UserError: `data` is no JSON object in canonical form, or its digest does not match.
    """
    num_values = sum(map(data.count, (b",", b"[", b"{")))
    if num_values > MAX_DOCUMENT_VALUES:
        raise UserError(
            f"{name} is refused: it has {num_values:,} values, the most are {MAX_DOCUMENT_VALUES:,}; {remedy}"
        )
    try:
        document = json.loads(data)
        members = _members(document)
        # Whatever else it says, as a key twice, is not what its writer meant.
        is_canonical = _object(members) == data
        del members["sha256"]
        claimed, found = document.pop("sha256"), sha256(_object(members))
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        raise UserError(
            f"{name} is not a document of a teacher cache (no JSON object with a digest); {remedy}"
        ) from None
    if claimed != found:
        raise UserError(f"{name} is damaged: its content does not match its own SHA-256; {remedy}")
    if not is_canonical:
        raise UserError(f"{name} is damaged: it is not in canonical form (RFC 8785); {remedy}")
    return dict(document)
