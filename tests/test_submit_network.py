"""Jobs on machines with addresses of their own, whose only way to a cache is a real object store; one is cut off."""

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from teacher_cache.format.cache import open_cache
from teacher_cache.storage.store import Store
from teacher_cache.verify import verify
from tests.cluster import Host, cluster
from tests.cluster_jobs import Submission, has, write, write_cache, write_student
from tests.cluster_network import Network, is_possible, network
from tests.cluster_relay import relay
from tests.s3 import Account

pytestmark = [pytest.mark.slow, pytest.mark.integration]


@pytest.fixture
def hosts() -> Iterator[tuple[Network, list[Host]]]:
    """A network and three hosts."""
    if not is_possible():
        pytest.skip("needs root and `ip`, for network namespaces")
    with network() as joined:
        yield joined, [joined.add(number) for number in (2, 3, 4)]


def test_a_host_that_is_cut_off_is_done_without(
    hosts: tuple[Network, list[Host]], ceph: str, ceph_account: Account, tmp_path: Path
) -> None:
    joined, (first, second, third) = hosts
    with (
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder,
        relay(ceph_account.endpoint, joined.gateway.ip) as (_, endpoint),
        cluster(Path(folder), head=joined.gateway, nodes=[first, second]) as running,
    ):
        names = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"]
        options = ("--cluster", str(write(tmp_path / "cluster.yaml", {"env": names})))
        environ = {"AWS_ENDPOINT_URL": endpoint}
        config = write_cache(tmp_path / "work", f"{ceph}/cache")
        build = Submission(running, tmp_path, "teacher_cache.cli", config, *options, **environ)
        build.wait_for(has(f"{ceph}/cache", "commits/00000"))
        joined.cut(running.node_of("ray::Map").host)
        assert build.result()["state"] == "succeeded"
        assert verify(open_cache(f"{ceph}/cache")).ok
        running.add_node(third)
        config = write_student(tmp_path / "student.yaml", f"{ceph}/cache", f"{ceph}/student", steps=60)
        learn = Submission(running, tmp_path, "student_train.cli", config, *options, **environ)
        learn.wait_for(has(f"{ceph}/student", "checkpoints"))
        joined.cut(running.node_of("ray::RayTrainWorker").host)
        assert learn.result()["state"] == "succeeded"
        metrics = Store(f"{ceph}/student").read("metrics.jsonl", max_bytes=2**20).decode().splitlines()
        assert [json.loads(line)["step"] for line in metrics] == list(range(1, 61))
        said = build.said() + learn.said()
        assert os.environ["AWS_SECRET_ACCESS_KEY"] not in said
