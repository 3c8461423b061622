"""A command with all its processes, in a session of its own, to be killed one by one or all at once."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

import psutil

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # by default 15: on a busy machine they would hardly run
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    "TOKENIZERS_PARALLELISM": "false",
}
POLL_S = 0.03


class RunningCommand:
    """`python -m MODULE ARGUMENTS…` in a session and a temporary folder of its own."""

    def __init__(self, *arguments: str) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="chaos-"))  # short: a socket's path has at most 107 bytes
        environment = os.environ | ENVIRONMENT | {"TMPDIR": str(self._folder), "RAY_TMPDIR": str(self._folder)}
        environment.pop("RAY_ADDRESS", None)
        command = [sys.executable, "-m", *arguments]
        with (self._folder / "out").open("wb") as out, (self._folder / "err").open("wb") as err:
            self._driver = subprocess.Popen(command, stdout=out, stderr=err, env=environment, start_new_session=True)
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def has_ended(self) -> bool:
        return self._driver.poll() is not None

    def wait(self, until_s: float) -> bool:
        """Whether the command ended before so many seconds after its start."""
        while not self.has_ended() and self.seconds < until_s:
            time.sleep(POLL_S)
        return self.has_ended()

    def kill(self, kind: str, until_s: float, draw: Random) -> bool:
        """Kills a process of a kind as soon as there is one; False if there was none before the command ended."""
        while not self.has_ended() and self.seconds < until_s:
            victims = [process for process in self._alive() if _kind(process, self._driver.pid) == kind]
            if victims:
                with contextlib.suppress(psutil.NoSuchProcess):
                    draw.choice(victims).kill()
                    return True
            time.sleep(POLL_S)
        return False

    def close(self) -> None:
        """Kills what is left of the command's processes, and deletes its temporary folder."""
        while left := self._alive():
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(POLL_S)
        self._driver.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def summary(self) -> dict[str, Any] | None:
        """What the command printed; None unless it succeeded."""
        if self._driver.returncode != 0:
            return None
        out = (self._folder / "out").read_text()
        found: dict[str, Any] = json.loads(out[out.index("{\n") :])
        return found

    def messages(self) -> list[str]:
        """The lines on standard error so far."""
        return (self._folder / "err").read_text(errors="replace").splitlines()

    def last_words(self) -> str:
        """What the command said at its end."""
        return f"status {self._driver.returncode}: {' | '.join(self.messages()[-3:])[:200]}"

    def _alive(self) -> list[psutil.Process]:
        """The command's processes: those of its session, whoever is their parent by now."""
        found = []
        for pid in psutil.pids():
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                if os.getsid(pid) == self._driver.pid and (process := psutil.Process(pid)).status() != "zombie":
                    found.append(process)
        return found


def _kind(process: psutil.Process, driver: int) -> str:
    """driver, actor (a worker at one of our tasks or actors), trainer (one of Ray Train's workers), raylet, agent (of
    the raylet) or gcs."""
    if process.pid == driver:
        return "driver"
    with contextlib.suppress(psutil.NoSuchProcess):
        title = " ".join(process.cmdline())
        if title.startswith("ray::Map"):
            return "actor"
        if title.startswith("ray::RayTrainWorker"):
            return "trainer"
        if title.startswith("ray::") and title.endswith("Agent"):
            return "agent"
        return {"raylet": "raylet", "gcs_server": "gcs"}.get(process.name(), "other")
    return "other"
