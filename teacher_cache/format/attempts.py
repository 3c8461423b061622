"""Attempts at units, counted in the store, so that a unit which ends the process that computes it is found out.

An attempt leaves a mark before the teacher is asked, and takes it away when the unit is committed: so the marks of a
view are few. One with a cause failed; one without is under way, or died with its process, which cannot be told apart
from here. Hence units with marks are tried after all others, and given up at `MAX_ATTEMPTS` marks. A run that ends
early says so, and its marks count no more.
"""

import re
import uuid

from teacher_cache.errors import UserError
from teacher_cache.format import documents
from teacher_cache.storage.store import Store

MAX_ATTEMPTS = 3
MARK_KEY = re.compile(r"attempts/(\d+)/[^/]+\.json")
"""With the view; of marks, and of what a run leaves that ended early."""
ENDED = "ended-"
CODEBOOK = 999_999_999
"""Counts as a unit of view 0."""


def marks(store: Store, view: int, *, run: str | None = None) -> dict[int, list[str]]:
    """Keys of the marks of a view, by unit, but those of ended runs; all, or those of one run."""
    keys = store.list(_folder(view))
    ended = {key.rsplit(ENDED, 1)[1].removesuffix(".json") for key in keys if ENDED in key}
    found: dict[int, list[str]] = {}
    for key in keys:
        unit, _, rest = key.rsplit("/", 1)[1].partition("-")
        by = rest.split("-")[0]
        if unit.isdecimal() and by not in ended and run in (None, by):
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
        found = documents.read(store, mark).get("cause")
    except (FileNotFoundError, UserError):
        return None
    return str(found) if found else None


def withdraw(store: Store, view: int, unit: int) -> None:
    """Takes a unit's marks away, also those that do not count."""
    _delete(store, view, f"/{unit:09d}-")


def end(store: Store, view: int, run: str) -> None:
    """Takes a run's marks away, and makes those void that its workers leave before they learn of the end."""
    _delete(store, view, f"-{run}-")
    store.replace(f"{_folder(view)}/{ENDED}{run}.json", documents.dump({}))


def _delete(store: Store, view: int, part: str) -> None:
    for key in store.list(_folder(view)):
        if part in key:
            store.delete_folder(key)


def _folder(view: int) -> str:
    return f"attempts/{view:05d}"
