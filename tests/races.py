"""Several writers at one moment."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from teacher_cache.storage.store import Store


def create_at_once(store: Store, key: str, contents: Sequence[bytes]) -> list[bool]:
    """Creates one object from as many threads as there are contents; which of them were told that they won."""
    start = Barrier(len(contents))

    def create(data: bytes) -> bool:
        start.wait()
        return store.create(key, data)

    with ThreadPoolExecutor(len(contents)) as threads:
        return list(threads.map(create, contents))
