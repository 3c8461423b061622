"""What is wrong with Kubernetes manifests, as far as it can be known without a cluster.

Four looks: KubeRay's own schemas (CRDs); Kubernetes' schemas, for its own kinds and for each
Pod template; rules that KubeRay's operator applies after the schemas (v1.7.0,
ray-operator/controllers/ray/utils/validation.go); and whether all that is referred to exists. Unknown fields are
refused, as `kubectl --validate=strict` does.
"""

import gzip
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

Manifest = dict[str, Any]
Schemas = Mapping[str, Any]
"""JSON schema by kind."""
KUBERAY = Path(__file__).with_name("kuberay-1.7.0-schemas.json.gz")
KUBERNETES_VERSION = "1.37"
QUANTITY = re.compile(r"\d+(\.\d+)?([munkMGTPE]|[KMGTPE]i|[eE]\d+)?")
LONGEST_NAME = {"RayJob": 47, "RayCluster": 53}
NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def read(path: Path) -> list[Manifest]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def kuberay_schemas() -> Schemas:
    """Of KubeRay's CRDs (v1.7.0, Apache-2.0) without their descriptions, refusing unknown fields."""
    return {kind: _strict(schema) for kind, schema in json.loads(gzip.decompress(KUBERAY.read_bytes())).items()}


def _strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _strict(value) for key, value in schema.items()}
    if isinstance(made.get("properties"), dict) and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


def problems(documents: Sequence[Manifest], schemas: Schemas) -> list[str]:
    """Of manifests that are applied together; `schemas` may be empty."""
    found = [problem for document in documents for problem in _schema_problems(document, schemas)]
    rays = [document for document in documents if document["kind"] in LONGEST_NAME]
    for document in rays:
        found += [f"{document['kind']}: {problem}" for problem in _ray_problems(document, documents)]
    return found


def cluster_of(document: Manifest) -> Manifest:
    spec: Manifest = document["spec"]
    return spec["rayClusterSpec"] if document["kind"] == "RayJob" else spec


def _groups(document: Manifest) -> dict[str, Manifest]:
    """The head's group and the workers', by name."""
    cluster = cluster_of(document)
    workers = {group["groupName"]: group for group in cluster.get("workerGroupSpecs", [])}
    return {"head": cluster.get("headGroupSpec", {}), **workers}


def _schema_problems(document: Manifest, schemas: Schemas) -> Iterator[str]:
    kind = document["kind"]
    if schema := schemas.get(kind):
        for error in jsonschema.Draft202012Validator(schema).iter_errors(document):
            yield f"{kind}: {error.json_path}: {error.message}"
    if kind in ("ConfigMap", "Secret"):
        yield from _kubernetes_problems(document, kind)


def _kubernetes_problems(document: Manifest, what: str) -> Iterator[str]:
    try:
        kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{what}: {'.'.join(map(str, error.path))}: {error.message}"


def _ray_problems(document: Manifest, documents: Sequence[Manifest]) -> Iterator[str]:
    name = document["metadata"]["name"]
    if not NAME.fullmatch(name) or len(name) > LONGEST_NAME[document["kind"]]:
        yield f"name {name!r} is no DNS label or too long"
    cluster = cluster_of(document)
    if cluster.get("authOptions", {}).get("mode") == "token" and "rayVersion" not in cluster:
        yield "token authentication needs rayVersion"
    names = Counter(group["groupName"] for group in cluster.get("workerGroupSpecs", []))
    yield from (f"worker group {group} is named {count} times" for group, count in names.items() if count > 1)
    for group, spec in _groups(document).items():
        yield from (f"{group}: {problem}" for problem in _replica_problems(spec))
        yield from (f"{group}: {problem}" for problem in _pod_problems(spec.get("template", {}), documents))
    if document["kind"] == "RayJob":
        yield from _entrypoint_problems(document, documents)


def _replica_problems(group: Manifest) -> Iterator[str]:
    least, most = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
    if not 0 <= least <= most:
        yield f"minReplicas {least} is negative or above maxReplicas {most}"
    elif not least <= group.get("replicas", least) <= most:
        yield f"replicas {group['replicas']} is not in {least} to {most}"


def _pod_problems(template: Manifest, documents: Sequence[Manifest]) -> Iterator[str]:
    pod = template.get("spec", {})
    yield from _kubernetes_problems(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": pod}, "Pod"
    )
    if pod.get("restartPolicy") not in (None, "Never"):  # what autoscaler v2 allows
        yield f"restartPolicy {pod['restartPolicy']!r} must be Never"
    volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
    for container in pod.get("containers", []):
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                yield f"volumeMount {mount['name']!r} has no volume"
        for amounts in container.get("resources", {}).values():
            yield from (f"{key}: {text!r} is no quantity" for key, text in amounts.items() if not _is_quantity(text))
        for source in container.get("envFrom", []):
            yield from _missing("Secret", source.get("secretRef", {}).get("name"), documents)
    for volume in volumes.values():
        yield from _missing("ConfigMap", volume.get("configMap", {}).get("name"), documents)


def _is_quantity(text: Any) -> bool:
    return isinstance(text, int | str) and QUANTITY.fullmatch(str(text)) is not None


def _missing(kind: str, name: str | None, documents: Sequence[Manifest]) -> Iterator[str]:
    if name is not None and (kind, name) not in {(other["kind"], other["metadata"]["name"]) for other in documents}:
        yield f"there is no {kind} {name!r}"


def _entrypoint_problems(job: Manifest, documents: Sequence[Manifest]) -> Iterator[str]:
    for word in shlex.split(job["spec"]["entrypoint"]):
        if word.startswith("/") and word not in mounted_files(job, documents):
            yield f"entrypoint: there is no file {word}"


def mounted_files(job: Manifest, documents: Sequence[Manifest]) -> dict[str, str]:
    """Text of the files that ConfigMaps put before the driver, by path."""
    configs = {
        document["metadata"]["name"]: document["data"] for document in documents if document["kind"] == "ConfigMap"
    }
    pod = cluster_of(job)["headGroupSpec"]["template"]["spec"]
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0].get("volumeMounts", [])}
    return {
        f"{mounts[volume['name']]}/{name}": text
        for volume in pod.get("volumes", [])
        if "configMap" in volume and volume["name"] in mounts
        for name, text in configs.get(volume["configMap"]["name"], {}).items()
    }
