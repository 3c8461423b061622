"""Requests tried again until a store is well: the only place that waits, so that no two waits multiply."""

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from teacher_cache.errors import StoreError
from teacher_cache.storage.errors import brief, is_transient, server_status
from teacher_cache.storage.urls import redacted

PATIENCE_S = 120.0
"""From a request's first failure, as a large upload may take longer; after that no further attempt begins."""
FIRST_ANSWER_S = 3.0
"""The same for a store that has never answered this process: a wrong endpoint, most often."""
HURRIED_S = 2.0
"""The same for what is asked within `hurried`."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 10.0

T = TypeVar("T")

_answered: WeakValueDictionary[int, Any] = WeakValueDictionary()
"""Filesystems that a server has answered, by identity: equal ones may have had another environment."""
_hurried: ContextVar[bool] = ContextVar("hurried", default=False)


@contextlib.contextmanager
def hurried() -> Iterator[None]:
    """For cleaning up after an end that a user waits for, perhaps because the store is gone: patience is short."""
    token = _hurried.set(True)
    try:
        yield
    finally:
        _hurried.reset(token)


def patiently(filesystem: Any, url: str, doing: str, attempt: Callable[[], T]) -> T:
    """What an attempt gives that meets no transient error; `doing` says in a message what is attempted.

    Raises:
        StoreError: errors were transient to the end of patience.
    """
    begun, failed = time.monotonic(), None
    for number, wait_s in enumerate(waits_s(), start=1):
        try:
            result = attempt()
        except Exception as error:
            if server_status(error) is not None or isinstance(error, FileNotFoundError):
                _answered[id(filesystem)] = filesystem
            if not is_transient(error):
                raise
            now = time.monotonic()
            failed = failed or now
            if now + wait_s > failed + _patience_s(filesystem):
                message = f"{redacted(url)}: {doing} failed {number} times in {now - begun:.0f} s, last: {brief(error)}"
                raise StoreError(f"{message}; {_advice(filesystem)}") from None
        else:
            _answered[id(filesystem)] = filesystem
            return result
        time.sleep(wait_s)
    raise AssertionError("waits never end")


def _has_answered(filesystem: Any) -> bool:
    return _answered.get(id(filesystem)) is filesystem


def _patience_s(filesystem: Any) -> float:
    patience_s = PATIENCE_S if _has_answered(filesystem) else FIRST_ANSWER_S
    return min(patience_s, HURRIED_S) if _hurried.get() else patience_s


def _advice(filesystem: Any) -> str:
    if _has_answered(filesystem):
        return "check the network, and run the command again when the store is well"
    return "check AWS_ENDPOINT_URL and the network"


def waits_s() -> Iterator[float]:
    """Seconds between attempts, without end: doubling, and spread so that clients do not come back all at once."""
    longest = FIRST_WAIT_S
    while True:
        yield random.uniform(0.5, 1.0) * longest
        longest = min(2 * longest, LONGEST_WAIT_S)
