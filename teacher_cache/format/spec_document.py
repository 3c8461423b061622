"""`spec.json` as plain values; `spec` gives them types.

Apart from these, because importing pydantic takes longer than telling what a cache holds.
"""

from dataclasses import dataclass
from typing import Any, Final

from teacher_cache.errors import UserError
from teacher_cache.format import documents
from teacher_cache.format.refusal import refusing
from teacher_cache.storage.store import Store

KEY = "spec.json"
FORMAT_VERSION: Final = 2
REMEDY = "restore it, or move it away and run `teacher-cache build` again"


@dataclass(frozen=True, kw_only=True)
class SpecDocument:
    """As stored: intact and of this format version, but its values are not checked."""

    fingerprint: str
    identity: dict[str, Any]
    notes: dict[str, Any]


def read(store: Store) -> SpecDocument:
    """The spec of the cache at `store`.

    Raises:
        UserError: there is no cache, or its spec is damaged or of another format version.
    """
    name = f"{store.url}/{KEY}"
    try:
        document = documents.read(store, KEY, remedy=REMEDY)
    except FileNotFoundError:
        raise UserError(f"{store.url} is no teacher cache: it has no {KEY}") from None
    with refusing(name, REMEDY):
        version = document["identity"].get("format_version")
        if version != FORMAT_VERSION:
            raise UserError(
                f"{name} has format version {version!r}; this program reads version {FORMAT_VERSION}: use the release "
                "that wrote it, or run `teacher-cache build` with another URL"
            )
        return SpecDocument(
            fingerprint=document["fingerprint"], identity=document["identity"], notes=dict(document["notes"])
        )
