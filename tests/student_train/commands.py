"""Commands as processes of their own, to be ended in their middle."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def start(command: str, path: str, log: Path) -> subprocess.Popen[bytes]:
    """`student-train COMMAND` of a configuration, with a local Ray of its own."""
    with log.open("wb") as stderr:
        return subprocess.Popen(
            [sys.executable, "-m", "student_train.cli", command, path, "--json"],
            cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=stderr,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip


def wait_until(
    reached: Callable[[], Any], process: subprocess.Popen[bytes], log: Path, *, timeout_s: float = 120
) -> None:
    deadline = time.monotonic() + timeout_s
    while not reached():
        assert process.poll() is None, f"it ended: {log.read_text()}"
        if time.monotonic() > deadline:
            process.kill()  # it would take the cores of the tests after it
            raise AssertionError(f"it does not get on: {log.read_text()}")
        time.sleep(0.05)


def newest_step(run: Path) -> int:
    """Of the run's checkpoints; 0 for none."""
    return max((int(path.parent.name[5:]) for path in run.glob("checkpoints/*/state.json")), default=0)
