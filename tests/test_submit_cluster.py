"""Both commands as jobs on a cluster, of which machines die."""

import json
import re
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from teacher_cache.format.cache import open_cache
from teacher_cache.verify import verify
from tests import caches
from tests.cluster import LOCALHOST, Cluster, cluster, wait_until
from tests.cluster_jobs import PATIENCE_S, Submission, has, write, write_cache, write_student
from tests.cluster_relay import relay

pytestmark = pytest.mark.ray
SECRET = "not-for-everyone"


@pytest.fixture(scope="module")
def running() -> Iterator[Cluster]:
    """A head without CPUs, and two nodes; who kills one adds another."""
    with (
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder,
        cluster(Path(folder), nodes=[LOCALHOST] * 2) as started,
    ):
        yield started


@pytest.fixture
def submit(running: Cluster, tmp_path: Path) -> Any:
    def start(module: str, config: Path, *options: str, **environ: str) -> Submission:
        return Submission(running, tmp_path, module, config, *options, **environ)

    return start


def test_a_build_outlives_a_node_and_the_network(running: Cluster, submit: Any, tmp_path: Path) -> None:
    config = write_cache(tmp_path / "work")
    values = yaml.safe_load(config.read_text())
    values["corpus"]["text_field"] = "${oc.env:A_SECRET}"
    write(config, values)
    options = ("--cluster", str(write(tmp_path / "cluster.yaml", {"env": ["A_SECRET"]})))
    with relay(running.address) as (network, url):
        job = submit("teacher_cache.cli", config, *options, "--address", url, A_SECRET=SECRET)
        job.wait_for(has(tmp_path / "work/cache", "commits/00000"))
        network.cut()
        running.kill(running.node_of("ray::Map"))
        wait_until(lambda: "does not answer" in job.said(), PATIENCE_S, job.said)
        network.mend()
        result = job.result()
    running.add_node()
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
    assert again["message"] == "it was done before; --again does it anew"
    anew = submit("teacher_cache.cli", config, *options, "--again", "--no-wait", A_SECRET=SECRET).result()
    assert (anew["job"], anew["state"]) == (result["job"].removesuffix("1") + "2", "submitted")


def test_a_job_is_left_stopped_and_begun_again(submit: Any, tmp_path: Path) -> None:
    config = write_cache(tmp_path / "work")
    options = ("execution.gpus_per_worker=1",)  # which no node has
    first = submit("teacher_cache.cli", config, *options)
    first.wait_for(lambda: "the cluster has room for 0 of 2 workers of 1 CPU(s) and 1 GPU(s)" in first.said())
    first.process.send_signal(signal.SIGINT)
    first.result(status=130)
    assert "-1 goes on; the same command follows it again, and stops it with --stop" in first.said()
    joined = submit("teacher_cache.cli", config, *options)
    joined.wait_for(lambda: "is at work on this already" in joined.said())
    stopped = submit("teacher_cache.cli", config, *options, "--stop").result()
    assert stopped["state"] == joined.result(status=1)["state"] == "stopped"
    assert "interrupted; run the same command again to go on" in joined.said(), "it had time to end by itself"
    refused = submit("teacher_cache.cli", config, *options, "--stop")
    refused.result(status=2)
    assert "no job of this configuration is at work at http://" in refused.said()
    second = submit("teacher_cache.cli", config, *options, "--no-wait").result()
    assert (second["state"], second["job"]) == ("submitted", stopped["job"].removesuffix("1") + "2")
    assert submit("teacher_cache.cli", config, *options, "--stop").result()["job"] == second["job"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("cache") / "cache"
    return caches.build_cache(folder, num_documents=120, unit_sequences=1).url


def test_a_student_outlives_a_node(running: Cluster, submit: Any, cache: str, tmp_path: Path) -> None:
    config = write_student(tmp_path / "student.yaml", cache, tmp_path / "student", steps=60)
    job = submit("student_train.cli", config)
    job.wait_for(has(tmp_path / "student", "checkpoints"))
    running.kill(running.node_of("ray::RayTrainWorker"))
    assert job.result()["state"] == "succeeded"
    running.add_node()
    metrics = [json.loads(line) for line in (tmp_path / "student/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == list(range(1, 61))
    assert (tmp_path / "student/model/model.safetensors").exists()
    assert "step 60/60" in job.said()


def test_two_students_learn_at_once(submit: Any, cache: str, tmp_path: Path) -> None:
    configs = [write_student(tmp_path / f"{name}.yaml", cache, tmp_path / name, steps=20) for name in "ab"]
    begun = [submit("student_train.cli", config, "--no-wait", "execution.num_workers=1") for config in configs]
    assert [job.result()["state"] for job in begun] == ["submitted", "submitted"]
    joined = [submit("student_train.cli", config, "execution.num_workers=1") for config in configs]
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
