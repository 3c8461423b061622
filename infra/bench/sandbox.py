"""Work done in a child process that may die of it: of a fatal error, or for want of memory or time."""

import multiprocessing
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
MAX_BYTES = 512 * 2**20
MAX_SECONDS = 20


@dataclass(frozen=True)
class Died:
    """An item of which the child died."""

    cause: str


def in_sandbox(
    items: Sequence[Item], work: Callable[[Item], Result], *, max_bytes: int = MAX_BYTES
) -> Iterator[Result | Died]:
    """The results of all items in order; after an item that a child dies of, another child goes on.

    A child may take `max_bytes` beyond what its parent has.
    """
    context = multiprocessing.get_context("fork")  # `work` and items come along as they are
    done = 0
    while done < len(items):
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(items[done:], work, sender, max_bytes))
        child.start()
        sender.close()
        try:
            while done < len(items):
                result = receiver.recv()
                done += 1
                yield result
        except EOFError:
            child.join()
            done += 1
            yield Died(f"the process ended with status {child.exitcode}")
        child.join()


def _child(items: Sequence[Any], work: Callable[[Any], Any], sender: Connection, max_bytes: int) -> None:
    limit = _size() + max_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for item in items:
        signal.alarm(MAX_SECONDS)  # ends the process
        sender.send(work(item))
        signal.alarm(0)


def _size() -> int:
    """Bytes of this process's address space (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
