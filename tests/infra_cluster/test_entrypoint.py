"""A manifest's command as its Pods would run it: the driver on a head that takes no work, and a worker's node."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from teacher_cache.format.cache import open_cache
from tests import caches
from tests.infra_cluster import manifests
from tests.infra_cluster.test_kubernetes import BUILD, CONFIG, ROOT


@pytest.fixture
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    head = manifests.cluster_of(BUILD)["headGroupSpec"]["rayStartParams"]
    arguments = {"num_cpus": int(head["num-cpus"]), "object_store_memory": int(head["object-store-memory"])}
    running = Cluster(initialize_head=True, head_node_args={**arguments, "include_dashboard": False})
    running.add_node(num_cpus=4, object_store_memory=150 * 2**20)
    yield running
    running.shutdown()


@pytest.mark.ray
def test_the_build_of_the_manifest_is_one_on_a_small_corpus(cluster, tmp_path):
    small = caches.make_spec(tmp_path / "cache")
    _, command, path, *overrides = shlex.split(BUILD["spec"]["entrypoint"])
    configuration = tmp_path / "cache.yaml"
    configuration.write_text(manifests.mounted_files(BUILD, CONFIG)[path])
    changes = {
        "cache": small.cache,
        "corpus.paths": json.dumps(small.corpus.paths),
        "corpus.sequence_length": 24,
        "teacher.model": small.teacher.model,
        "unit_sequences": 8,
        "execution.num_workers": [1, 2],
        "execution.gpus_per_worker": 0,
        "execution.cpus_per_worker": 1,
    }
    words = [command, str(configuration), *overrides, *(f"{key}={value}" for key, value in changes.items()), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "teacher_cache.cli", *words],
        cwd=ROOT,
        env=os.environ | {"RAY_ADDRESS": cluster.address},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    built = open_cache(small.cache)
    assert built.num_views == 3
    assert json.loads(done.stdout)["num_units_built"] == 3 * len(built.manifest(0).shards)
