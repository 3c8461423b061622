"""Whether a store lets exactly one of several writers win."""

import re
import uuid
from concurrent.futures import ThreadPoolExecutor

from teacher_cache.storage import local_files
from teacher_cache.storage.store import ConditionRefusedError, Store

PROBE_KEY = re.compile(r"probe/.*")
NUM_ROUNDS, NUM_WRITERS = 2, 8
"""Some stores look, then write, with no lock between: a race of two might not show it."""


def probe(store: Store) -> bool:
    """Whether `store.create` holds what it promises: tried on fresh keys, which are deleted afterwards.

    False for stores that ignore the condition of a PUT or do not know it, and for local folders without hard links.

    Raises:
        StoreError: the store cannot be reached or written.
    """
    if store.is_local:
        return store.attempt("trying links", lambda: local_files.has_links(store.root))
    try:
        return all(_one_wins(store, f"probe/{uuid.uuid4().hex}") for _ in range(NUM_ROUNDS))
    except ConditionRefusedError:
        return False


def _one_wins(store: Store, key: str) -> bool:
    bodies = [f"writer {number}".encode() for number in range(NUM_WRITERS)]
    with ThreadPoolExecutor(NUM_WRITERS) as writers:
        won = list(writers.map(lambda body: store.create(key, body), bodies))
    found = store.read(key, max_bytes=max(map(len, bodies)))
    store.delete_folder(key)
    return [body for body, has_won in zip(bodies, won, strict=True) if has_won] == [found]
