"""Runs of one contender in one setting: its ranks as processes of their own, started together, their memory watched."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from infra.bench.loading.contender import Reading

DEADLINE_S = 900.0
SAMPLE_S = 0.1
"""Between two looks at the memory."""


class RunError(Exception):
    """A contender failed; the message ends as its own output."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a contender took."""

    rows_per_s: float
    """Of all ranks in the first epoch, from opening to the last batch: with nothing on the local disk but what is read.

    Not from the first batch on: a shuffling loader may have fetched and decoded any share of its data by then.
    """
    steady_rows_per_s: float
    """Of the second epoch, from its first batch to the first of the third: a whole turn without a start, from what the
    first epoch left on the local disk.
    """
    first_batch_s: float
    """Of the slowest rank, from opening."""
    undecoded_rows_per_s: float
    """As `steady_rows_per_s`, without the time in `decode_hidden`: what a student gets whose GPU decodes the levels."""
    peak_bytes: int
    """Most proportional memory (PSS) of all processes, beyond what they took once the library was imported."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is run."""

    module: str
    source: str
    is_shuffled: bool
    num_ranks: int
    reference: str | None = None
    """A folder: the rows are compared with that cache's instead of timed."""
    tolerance: float = 0.0

    def of_rank(self, rank: int, copies: Path) -> str:
        """What `process` takes."""
        reading = Reading(
            source=self.source, copies=copies, is_shuffled=self.is_shuffled, rank=rank, num_ranks=self.num_ranks
        )
        how = {"module": self.module, "reference": self.reference, "tolerance": self.tolerance}
        return json.dumps({**how, "reading": asdict(reading) | {"copies": str(copies)}})


def run(job: Job, scratch: Path) -> Run:
    """Times a job; `scratch` is a folder on the disk that is to be measured."""
    answers, peak_bytes = _run(job, scratch)
    return Run(
        rows_per_s=sum(found["num_rows"] for found in answers) / max(found["last_s"] for found in answers),
        steady_rows_per_s=sum(found["num_rows"] / _turn_s(found) for found in answers),
        first_batch_s=max(found["first_s"][0] for found in answers),
        undecoded_rows_per_s=sum(found["num_rows"] / (_turn_s(found) - found["decode_s"]) for found in answers),
        peak_bytes=peak_bytes,
    )


def _turn_s(found: dict[str, Any]) -> float:
    return float(found["first_s"][2] - found["first_s"][1])


def places_read(job: Job, scratch: Path) -> list[int]:
    """The rows that a job with a reference compared, by their places in it."""
    answers, _ = _run(job, scratch)
    return [place for places in answers for place in places]


def _run(job: Job, scratch: Path) -> tuple[list[Any], int]:
    """Every rank's answer, and the peak of their memory."""
    with tempfile.TemporaryDirectory(dir=scratch, ignore_cleanup_errors=True) as folder, ExitStack() as stack:
        copies = Path(folder, "copies")
        copies.mkdir()
        num_processes = 1 if job.module == "ray_data" else job.num_ranks
        port = _free_port()
        starts = [(job, rank, copies, Path(folder), port) for rank in range(num_processes)]
        ranks = [stack.enter_context(_started(*start)) for start in starts]
        for rank in ranks:
            rank.hear("ready")
        memory = stack.enter_context(_watched([rank.process.pid for rank in ranks]))
        for rank in ranks:
            rank.tell()
        answers = [answer for rank in ranks for answer in json.loads(rank.hear())]
        memory.look()  # once at least, however short it was
    return answers, memory.peak_bytes - memory.first_bytes


@dataclass(frozen=True)
class _Rank:
    """A running process."""

    process: subprocess.Popen[str]
    log: Path

    def hear(self, expected: str | None = None) -> str:
        """Its next line."""
        assert self.process.stdout
        line = self.process.stdout.readline().strip()
        if not line or (expected and line != expected):
            raise RunError(self.log.read_text(errors="replace").strip()[-2000:])
        return line

    def tell(self) -> None:
        assert self.process.stdin
        print(file=self.process.stdin, flush=True)


@contextmanager
def _started(job: Job, rank: int, copies: Path, folder: Path, port: int) -> Iterator[_Rank]:
    """A rank's process; with all that it started it is killed at the end, or when it takes too long."""
    log = folder / f"{rank}.log"
    command = [sys.executable, "-m", "infra.bench.loading.process", job.of_rank(rank, copies)]
    with log.open("w") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | _rank_variables(job, rank, port) | {"TMPDIR": str(folder)},
            start_new_session=True,
        )
    timer = threading.Timer(DEADLINE_S, process.kill)
    timer.start()
    try:
        yield _Rank(process, log)
    finally:
        timer.cancel()
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """Kills it and its children, also those in sessions of their own."""
    children = _family(process.pid)
    for child in children:
        with suppress(psutil.Error):
            child.send_signal(signal.SIGKILL)
    psutil.wait_procs(children, timeout=10)
    process.communicate()


def _rank_variables(job: Job, rank: int, port: int) -> dict[str, str]:
    """As launchers set them; loaders find their place by them."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "GLOBAL_RANK": rank, "MASTER_PORT": port}
    if job.module == "ray_data":
        return {}
    sizes = {"WORLD_SIZE": job.num_ranks, "LOCAL_WORLD_SIZE": job.num_ranks}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in (names | sizes).items()}}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class _Memory:
    """Memory of some processes and all their children."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        self.first_bytes = self.peak_bytes = self._now()

    def look(self) -> None:
        self.peak_bytes = max(self.peak_bytes, self._now())

    def _now(self) -> int:
        return sum(_pss(process) for pid in self._pids for process in _family(pid))


def _family(pid: int) -> list[psutil.Process]:
    """A process and all below it, none if it has ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def _pss(process: psutil.Process) -> int:
    """Proportional bytes (Linux): what processes share counts once."""
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0


@contextmanager
def _watched(pids: Sequence[int]) -> Iterator[_Memory]:
    """Memory that is looked at all the while."""
    memory, done = _Memory(pids), threading.Event()

    def watch() -> None:
        while not done.wait(SAMPLE_S):
            memory.look()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield memory
    finally:
        done.set()
        thread.join()
