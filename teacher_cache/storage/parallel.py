"""Requests to a store, many at a time: an object store answers each in tens of milliseconds, but a thousand at once."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

NUM_THREADS = 32
BLOCK = 4096
"""Answers held at once."""

T = TypeVar("T")


def in_blocks(request: Callable[[int], T], count: int) -> Iterator[list[T]]:
    """What `request` answers to 0 … `count` - 1, in order, block after block.

    Raises the first error that a request raises; of its block, what is not begun is left.
    """
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        for start in range(0, count, BLOCK):
            yield list(threads.map(request, range(start, min(start + BLOCK, count))))
