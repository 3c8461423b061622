"""The manifests are ones that Kubernetes, KubeRay's operator and our commands take; broken ones are refused."""

import copy
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import student_train.cli
import teacher_cache.cli
from student_train.config import StudentSpec
from teacher_cache import UserError
from teacher_cache.config import CacheSpec
from teacher_cache.shell import settings
from tests.infra_cluster import manifests
from tests.infra_cluster.manifests import Manifest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "infra" / "cluster" / "kubernetes"
CONFIG = manifests.read(FOLDER / "config.yaml")
BUILD, STUDENTS, CLUSTER = (manifests.read(FOLDER / f"{name}.yaml")[0] for name in ("build", "students", "cluster"))
SPECS: dict[str, type] = {"teacher-cache": CacheSpec, "student-train": StudentSpec}
MAINS = {"teacher-cache": teacher_cache.cli.main, "student-train": student_train.cli.main}
KUBERAY = manifests.kuberay_schemas()


@pytest.mark.parametrize("document", [BUILD, STUDENTS, CLUSTER], ids=lambda document: document["metadata"]["name"])
def test_manifests_are_right(document):
    assert document["kind"] in KUBERAY
    assert manifests.problems([*CONFIG, document], KUBERAY) == []


def spec(document: Manifest) -> Any:
    return document["spec"]


def worker(document: Manifest) -> Any:
    return manifests.cluster_of(document)["workerGroupSpecs"][0]


def pod(document: Manifest) -> Any:
    return worker(document)["template"]["spec"]


def container(document: Manifest) -> Any:
    return pod(document)["containers"][0]


Damage = Callable[[Manifest], Any]
Case = tuple[Manifest, Damage, str]
"""What is damaged, how, and what is to be found."""


def put(part: Callable[[Manifest], Any], **values: Any) -> Damage:
    return lambda document: part(document).update(values)


def name_a_group_twice(document: Manifest) -> None:
    manifests.cluster_of(document)["workerGroupSpecs"].append(copy.deepcopy(worker(document)))


BROKEN: dict[str, Case] = {
    "misspelt field": (BUILD, put(container, imagee="image:1"), "imagee"),
    "wrong type": (BUILD, put(container, ports=[{"containerPort": "8080"}]), "'8080' is not of type"),
    "missing field": (CLUSTER, lambda cluster: pod(cluster).pop("containers"), "'containers' is a required property"),
    "negative replicas": (BUILD, put(worker, minReplicas=-1), "minReplicas -1 is negative"),
    "fewest above most": (STUDENTS, put(worker, minReplicas=5), "above maxReplicas 4"),
    "too many at the start": (STUDENTS, put(worker, replicas=9), "replicas 9 is not in 1 to 4"),
    "bad quantity": (BUILD, put(container, resources={"limits": {"memory": "32Gigs"}}), "'32Gigs' is no quantity"),
    "unknown restartPolicy": (BUILD, put(pod, restartPolicy="Sometimes"), "restartPolicy 'Sometimes'"),
    "group named twice": (CLUSTER, name_a_group_twice, "teachers is named 2 times"),
    "no such Secret": (STUDENTS, put(container, envFrom=[{"secretRef": {"name": "keys"}}]), "no Secret 'keys'"),
    "no such ConfigMap": (BUILD, put(pod, volumes=[{"name": "a", "configMap": {"name": "b"}}]), "no ConfigMap 'b'"),
    "no such volume": (BUILD, put(container, volumeMounts=[{"name": "data", "mountPath": "/data"}]), "'data' has no"),
    "no such file": (BUILD, put(spec, entrypoint="teacher-cache build /config/a.yaml"), "no file /config/a.yaml"),
    "token without version": (CLUSTER, lambda cluster: spec(cluster).pop("rayVersion"), "needs rayVersion"),
    "name too long": (BUILD, lambda job: job["metadata"].update(name="b" * 48), "too long"),
    "field misspelt for KubeRay": (BUILD, put(spec, shutdownAfterJobFinish=True), "shutdownAfterJobFinish"),
    "wrong type for KubeRay": (CLUSTER, put(spec, enableInTreeAutoscaling="yes"), "'yes' is not of type 'boolean'"),
    "missing group": (CLUSTER, lambda cluster: spec(cluster).pop("headGroupSpec"), "'headGroupSpec' is a required"),
    "unknown mode": (CLUSTER, put(spec, authOptions={"mode": "password"}), "'password' is not one of"),
    "parameter that is no text": (BUILD, put(worker, rayStartParams={"num-cpus": 0}), "0 is not of type 'string'"),
}


def broken(document: Manifest, damage: Damage) -> str:
    """What is found in a damaged copy."""
    damaged = copy.deepcopy(document)
    damage(damaged)
    return "\n".join(manifests.problems([*CONFIG, damaged], KUBERAY))


@pytest.mark.parametrize("name", BROKEN)
def test_broken_manifests_are_refused(name):
    document, damage, message = BROKEN[name]
    assert message in broken(document, damage)


def test_a_misspelt_field_of_a_config_map_is_refused():
    config = [document | {"dataa": {}} if document["kind"] == "ConfigMap" else document for document in CONFIG]
    assert "dataa" in "\n".join(manifests.problems([*config, BUILD], KUBERAY))


@pytest.mark.parametrize("job", [BUILD, STUDENTS], ids=["build", "students"])
def test_entrypoints_are_commands_with_configurations_that_they_take(job, tmp_path):
    program, command, path, *overrides = shlex.split(job["spec"]["entrypoint"])
    assert program in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    with pytest.raises(SystemExit, match=r"^0$"):
        MAINS[program]([command, "--help"])
    written = tmp_path / "config.yaml"
    written.write_text(manifests.mounted_files(job, CONFIG)[path])
    execution = settings.load(SPECS[program], written, overrides).execution
    assert execution.address == "auto"
    assert execution.num_workers == (1, worker(job)["maxReplicas"])
    assert execution.gpus_per_worker == int(container(job)["resources"]["limits"]["nvidia.com/gpu"])
    with pytest.raises(UserError, match="num_worker: unknown key"):
        settings.load(SPECS[program], written, [*overrides, "execution.num_worker=2"])


def test_students_learn_from_the_cache_that_is_built(tmp_path):
    for name, text in CONFIG[0]["data"].items():
        (tmp_path / name).write_text(text)
    cache, student = (
        settings.load(spec, tmp_path / f"{name}.yaml")
        for name, spec in (("cache", CacheSpec), ("student", StudentSpec))
    )
    assert student.caches == (cache.cache,)


@pytest.mark.parametrize("document", [BUILD, STUDENTS, CLUSTER], ids=lambda document: document["metadata"]["name"])
def test_nodes_are_alike(document):
    """Ray's version, scraped ports, and room for local copies within the Pod's own disk."""
    cluster = manifests.cluster_of(document)
    pinned = dict(line.split("==") for line in (ROOT / "infra" / "constraints.txt").read_text().split())
    assert cluster["rayVersion"] == pinned["ray"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (monitor,) = manifests.read(FOLDER / "pod-monitor.yaml")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        template = group["template"]["spec"]
        (own,) = template["containers"]
        assert endpoint["port"] in [port["name"] for port in own["ports"]]
        assert template["securityContext"]["runAsNonRoot"]
        (disk,) = [volume["emptyDir"]["sizeLimit"] for volume in template["volumes"] if "emptyDir" in volume]
        (copies,) = [int(variable["value"]) for variable in own["env"]]
        assert copies < int(disk.removesuffix("Gi")) * 2**30
