"""Attempts at units, counted in the store, so that a unit which ends the process that computes it is found out.

An attempt leaves a mark before the teacher is asked, and takes it away when the unit is committed: so the marks of a
view are few. One with a cause failed; one without is under way, or died with its process, which cannot be told apart
from here. Hence units with marks are tried after all others, and given up at `MAX_ATTEMPTS` marks.
"""

import re
import uuid

from teacher_cache.errors import UserError
from teacher_cache.format import documents
from teacher_cache.storage.store import Store

MAX_ATTEMPTS = 3
MARK_KEY = re.compile(r"attempts/(\d+)/[^/]+\.json")
"""With the view."""


def marks(store: Store, view: int) -> dict[int, list[str]]:
    """Keys of the marks of a view, by unit."""
    found: dict[int, list[str]] = {}
    for key in store.list(_folder(view)):
        unit = key.rsplit("/", 1)[1].split("-")[0]
        if unit.isdecimal():
            found.setdefault(int(unit), []).append(key)
    return found


def begin(store: Store, *, view: int, unit: int, run: str) -> str:
    """Marks an attempt of a run of `build`; the mark's key."""
    key = f"{_folder(view)}/{unit:09d}-{run}-{uuid.uuid4().hex[:8]}.json"
    store.replace(key, documents.dump({"cause": None}))
    return key


def fail(store: Store, mark: str, cause: str) -> None:
    """Writes into a mark what went wrong."""
    store.replace(mark, documents.dump({"cause": cause}))


def cause(store: Store, mark: str) -> str | None:
    """What a marked attempt failed of; None if it died, is under way, or cannot be read."""
    try:
        data = store.read(mark, max_bytes=documents.MAX_DOCUMENT_BYTES)
        found = documents.parse(data, name=f"{store.url}/{mark}").get("cause")
    except (FileNotFoundError, UserError):
        return None
    return str(found) if found else None


def withdraw(store: Store, view: int, *, unit: int | None = None, run: str | None = None) -> None:
    """Takes marks of a view away: those of a unit, or of a run."""
    for marked, keys in marks(store, view).items():
        for key in keys:
            if unit in (None, marked) and (run is None or f"-{run}-" in key):
                store.delete_folder(key)


def _folder(view: int) -> str:
    return f"attempts/{view:05d}"
