"""Jobs on a test's cluster, as a user submits them."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from teacher_cache.shell.settings import to_dict
from teacher_cache.storage.store import Store
from tests import caches
from tests.cluster import Cluster, kill_tree, wait_until
from tests.student_train import runs

PATIENCE_S = 300.0


class Submission:
    """`submit`, as a user's process with what it has said so far."""

    def __init__(self, user: Cluster, folder: Path, module: str, config: Path, *options: str, **environ: str) -> None:
        self._said = folder / f"said-{time.monotonic_ns()}"
        command = [sys.executable, "-m", module, "submit", str(config), "--json", *options]
        if "--address" not in options:
            command += ["--address", user.address]
        self.out = self._said.with_suffix(".out")
        with self._said.open("wb") as err, self.out.open("wb") as out:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=err, cwd=folder, env=user.environment(**environ)
            )

    def said(self) -> str:
        """On standard error."""
        return self._said.read_text(errors="replace")

    def result(self, *, status: int = 0) -> dict[str, Any]:
        """Of the command, once it has ended with a status."""
        try:
            wait_until(lambda: self.process.poll() is not None, PATIENCE_S, self.said)
        finally:
            kill_tree(self.process)
        assert self.process.returncode == status, self.said()[-3000:]
        result: dict[str, Any] = json.loads(self.out.read_text() or "{}")
        return result

    def wait_for(self, happened: Callable[[], bool]) -> None:
        """Until something has happened, before the command's end."""
        wait_until(lambda: self.process.poll() is not None or happened(), PATIENCE_S, self.said)
        assert happened(), self.said()[-3000:]


def has(url: Path | str, prefix: str) -> Callable[[], bool]:
    """Whether a store holds anything below a prefix."""
    store = Store(str(url))
    return lambda: bool(store.list(prefix))


def write(path: Path, values: Any) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


def write_cache(folder: Path, url: str | None = None, **overrides: Any) -> Path:
    """The configuration of a cache of 120 units, for two workers; without `url` it lies in the same folder."""
    folder.mkdir()
    execution = {"num_workers": 2, "gpus_per_worker": 0}
    spec = caches.make_spec(folder / "cache", num_documents=120, unit_sequences=1, execution=execution, **overrides)
    return write(folder / "cache.yaml", to_dict(spec) | ({"cache": url} if url else {}))


def write_student(path: Path, cache: str, output: Path | str, **overrides: Any) -> Path:
    """The configuration of a student of two workers."""
    execution = runs.make_execution(num_workers=2, checkpoint_steps=2, log_steps=1)
    values = {"student": {"dropout": 0.0}, "batch_sequences": 16, "execution": execution} | overrides
    return write(path, {"caches": [cache], "output": str(output)} | values)
