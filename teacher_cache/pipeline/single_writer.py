"""Who may write where: any number of builders where the store decides who was first, else one at a time."""

import contextlib
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from teacher_cache.errors import UserError
from teacher_cache.format import documents
from teacher_cache.storage.probe import probe
from teacher_cache.storage.retries import hurried
from teacher_cache.storage.store import Store

CLAIM_KEY = "writer.json"
BEAT_S, STALE_S = 30.0, 300.0
"""How often a builder says that it is alive, and after how long silence it may be dead."""
WATCH_BEATS = 2
"""For so many a claim that seems void is watched: the clock by which it was dated may be another than ours."""
SETTLE_S = 2.0
"""For another's claim of the same moment to show."""


@contextlib.contextmanager
def writable(url: str) -> Iterator[Store]:
    """The store of a cache for its builder.

    Where the store has no put-if-absent, this builder claims the cache, and its driver alone commits.

    Raises:
        UserError: the store lets several writers win, and another builder is at work.
    """
    store = Store(url)
    if probe(store):
        yield store
        return
    print(
        f"{store.url}: this store does not refuse to create what exists, so only one builder may run at a time; "
        "it is claimed for this one",
        file=sys.stderr,
    )
    alone = Store(url, single_writer=True)
    with _claimed(alone):
        yield alone


@contextlib.contextmanager
def _claimed(store: Store) -> Iterator[None]:
    owner, stop = uuid.uuid4().hex, threading.Event()
    _refuse_if_claimed(store)

    def beat() -> None:
        while not stop.wait(BEAT_S):
            with contextlib.suppress(Exception):  # the next one may pass; the build itself tells what is wrong
                if _is_owner(store, owner):
                    _claim(store, owner)
                else:
                    store.refuse_creation = f"{store.url}: another builder took this one for dead and claimed the cache"

    thread = threading.Thread(target=beat, name="claim", daemon=True)
    try:
        _claim(store, owner)
        time.sleep(SETTLE_S)
        if not _is_owner(store, owner):
            raise UserError(f"{store.url}: another builder claimed this cache at the same moment; wait for it to end")
        thread.start()
        yield
    finally:
        stop.set()
        if thread.ident:
            thread.join()
        with contextlib.suppress(UserError), hurried():
            if _is_owner(store, owner):
                store.delete_folder(CLAIM_KEY)


def _refuse_if_claimed(store: Store) -> None:
    there = _read(store)
    if not there:
        return
    silent_s = time.time() - there.get("time", 0)
    if 0 <= silent_s < STALE_S or _lives(store, there):
        raise UserError(
            f"{store.url}: another builder is at work ({there.get('host')}, process {there.get('process')}, last heard "
            f"of {max(0, silent_s):.0f} s ago) and this store cannot tell two apart; wait for it, or, if it is dead, "
            f"{STALE_S:.0f} s or delete {store.url}/{CLAIM_KEY}"
        )


def _lives(store: Store, claim: dict[str, Any]) -> bool:
    """Whether the builder who made a claim renews it."""
    watch_s = WATCH_BEATS * BEAT_S
    print(f"{store.url}: its last builder seems dead; its claim is watched for {watch_s:.0f} s", file=sys.stderr)
    deadline = time.monotonic() + watch_s
    while time.monotonic() < deadline:
        time.sleep(BEAT_S / 10)
        if (now := _read(store)) != claim:
            return bool(now)
    return False


def _claim(store: Store, owner: str) -> None:
    told = {"owner": owner, "host": socket.gethostname(), "process": os.getpid(), "time": int(time.time())}
    store.replace(CLAIM_KEY, documents.dump(told))


def _is_owner(store: Store, owner: str) -> bool:
    return _read(store).get("owner") == owner


def _read(store: Store) -> dict[str, Any]:
    """The claim there; empty where there is none that can be read."""
    try:
        return documents.read(store, CLAIM_KEY)
    except FileNotFoundError:
        return {}
