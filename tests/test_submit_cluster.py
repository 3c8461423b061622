"""Both commands as jobs on a cluster, of which machines die."""

import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from teacher_cache.format.cache import open_cache
from teacher_cache.shell.settings import to_dict
from teacher_cache.verify import verify
from tests import caches
from tests.cluster import Cluster, cluster, kill_tree, wait_until
from tests.cluster_relay import relay
from tests.student_train import runs

pytestmark = pytest.mark.ray
PATIENCE_S = 150.0
SECRET = "not-for-everyone"


@pytest.fixture(scope="module")
def running() -> Iterator[Cluster]:
    """A head without CPUs, and two nodes; who kills one adds another."""
    with (
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder,
        cluster(Path(folder), num_nodes=2) as started,
    ):
        yield started


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
            assert self.process.wait(PATIENCE_S) == status, self.said()[-3000:]
        finally:
            kill_tree(self.process)
        return json.loads(self.out.read_text() or "{}")

    def wait_for(self, folder: Path, pattern: str) -> None:
        """Until the job has written a file."""
        wait_until(lambda: self.process.poll() is not None or any(folder.glob(pattern)), PATIENCE_S, self.said)
        assert any(folder.glob(pattern)), self.said()[-3000:]


@pytest.fixture
def submit(running: Cluster, tmp_path: Path) -> Any:
    def start(module: str, config: Path, *options: str, **environ: str) -> Submission:
        return Submission(running, tmp_path, module, config, *options, **environ)

    return start


def write(path: Path, values: Any) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


def write_cache(folder: Path, *, num_documents: int = 120, **overrides: Any) -> Path:
    """The configuration of a cache of one sequence a unit, for two workers."""
    folder.mkdir()
    execution = {"num_workers": 2, "gpus_per_worker": 0}
    spec = caches.make_spec(
        folder / "cache", num_documents=num_documents, unit_sequences=1, execution=execution, **overrides
    )
    return write(folder / "cache.yaml", to_dict(spec))


def test_a_build_outlives_a_node_and_the_network(running: Cluster, submit: Any, tmp_path: Path) -> None:
    config = write_cache(tmp_path / "work")
    values = yaml.safe_load(config.read_text())
    values["corpus"]["text_field"] = "${oc.env:A_SECRET}"
    write(config, values)
    options = ("--cluster", str(write(tmp_path / "cluster.yaml", {"env": ["A_SECRET"]})))
    with relay(running.address) as (network, url):
        job = submit("teacher_cache.cli", config, *options, "--address", url, A_SECRET=SECRET)
        job.wait_for(tmp_path, "work/cache/commits/00000/*.json")
        network.cut()
        running.kill_node()
        wait_until(lambda: "does not answer" in job.said(), PATIENCE_S, job.said)
        network.mend()
        result = job.result()
    running.add_nodes(1)
    assert result["state"] == "succeeded"
    cache = open_cache(str(tmp_path / "work/cache"))
    assert [shard.unit for shard in cache.manifest(0).shards] == list(range(120))
    assert verify(cache).ok
    assert cache.spec.corpus.text_field == SECRET
    said = job.said() + job.out.read_text()
    assert SECRET not in said
    assert said.count("Running entrypoint for job") == 1, "what was read twice is shown once"
    assert re.search(r"num units built +\d", said)
    again = submit("teacher_cache.cli", config, *options, A_SECRET=SECRET).result()
    assert (again["job"], again["state"]) == (result["job"], "succeeded")
    assert again["message"].startswith("before;")


def test_a_job_is_left_stopped_and_begun_again(submit: Any, tmp_path: Path) -> None:
    config = write_cache(tmp_path / "work", views=3)
    first = submit("teacher_cache.cli", config)
    first.wait_for(tmp_path, "work/cache/commits/00000/*.json")
    first.process.send_signal(signal.SIGINT)
    first.result(status=130)
    assert "-1 goes on; the same command follows it again, and stops it with --stop" in first.said()
    stopped = submit("teacher_cache.cli", config, "--stop").result()
    assert stopped["state"] == "stopped"
    num_committed = len(list(tmp_path.glob("work/cache/commits/*/*.json")))
    assert num_committed < 3 * 120
    assert not list(tmp_path.glob("work/cache/attempts/*/*.json")), "it was given time to withdraw"
    refused = submit("teacher_cache.cli", config, "--stop")
    refused.result(status=2)
    assert "no job of this configuration is at work at http://" in refused.said()
    second = submit("teacher_cache.cli", config).result()
    assert (second["state"], second["job"]) == ("succeeded", stopped["job"].removesuffix("1") + "2")
    assert open_cache(str(tmp_path / "work/cache")).num_views == 3


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return caches.build_cache(tmp_path_factory.mktemp("cache") / "cache", num_documents=120, unit_sequences=1)


def write_student(folder: Path, cache: Any, name: str, **overrides: Any) -> Path:
    """The configuration of a student with one thread a worker."""
    execution = runs.make_execution(num_workers=2, checkpoint_steps=2, log_steps=1, max_failures=3)
    spec = runs.make_spec(cache, folder / name, execution=execution, **overrides)
    return write(folder / f"{name}.yaml", to_dict(spec))


def test_a_student_outlives_a_node(running: Cluster, submit: Any, cache: Any, tmp_path: Path) -> None:
    config = write_student(tmp_path, cache, "student", steps=60)
    job = submit("student_train.cli", config)
    job.wait_for(tmp_path, "student/checkpoints/*/state.json")
    running.kill_node()
    assert job.result()["state"] == "succeeded"
    running.add_nodes(1)
    metrics = [json.loads(line) for line in (tmp_path / "student/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == list(range(1, 61))
    assert (tmp_path / "student/model/model.safetensors").exists()
    assert "step 60/60" in job.said()


def test_two_students_learn_at_once(submit: Any, cache: Any, tmp_path: Path) -> None:
    configs = [write_student(tmp_path, cache, name, steps=20, seed=seed) for seed, name in enumerate("ab")]
    begun = [submit("student_train.cli", config, "--no-wait") for config in configs]
    assert [job.result()["state"] for job in begun] == ["submitted", "submitted"]
    joined = [submit("student_train.cli", config) for config in configs]
    assert [job.result()["state"] for job in joined] == ["succeeded", "succeeded"]
    for job, name in zip(joined, "ab", strict=True):
        assert "is at work on this already" in job.said()
        assert (tmp_path / name / "model/model.safetensors").exists()


@pytest.mark.parametrize("token", ["", "wrong"])
def test_without_its_token_a_cluster_is_closed(submit: Any, tmp_path: Path, token: str) -> None:
    job = submit("teacher_cache.cli", write_cache(tmp_path / "work"), RAY_AUTH_TOKEN=token, HOME=str(tmp_path))
    job.result(status=2)
    (line,) = job.said().splitlines()
    assert line.startswith("error: the job server at http://127.0.0.1:")
    assert "refuses this user" in line
    assert line.endswith("put the cluster's token into RAY_AUTH_TOKEN, or its file's path into RAY_AUTH_TOKEN_PATH")


def test_a_job_whose_command_fails_ends_with_1(submit: Any, tmp_path: Path) -> None:
    config = write_cache(tmp_path / "work")
    (tmp_path / "work/cache.txt").write_bytes(b"\xff")
    job = submit("teacher_cache.cli", config)
    assert job.result(status=1)["message"].startswith("ended with status 2, see its log above")
    assert "cache.txt is not UTF-8 at byte 0" in job.said()
