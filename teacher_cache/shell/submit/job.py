"""A job, made of a configuration without asking anyone."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from teacher_cache.errors import UserError
from teacher_cache.format.documents import digest_of
from teacher_cache.shell.settings import to_dict
from teacher_cache.shell.submit.config import ClusterConfig
from teacher_cache.storage.urls import normal_url, redacted

PACKAGES = ("teacher_cache", "student_train")
DIGEST_DIGITS = 12
STOP_WAIT_S = 60
"""How long a job that is stopped may take to withdraw what it has under way, before it is killed."""
SETTINGS = {
    "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S),
    "TQDM_MININTERVAL": "10",  # a bar in a log is a line each time
}
END = "CONFIGURATION"


@dataclass(frozen=True, kw_only=True)
class Command:
    """What runs a configuration: `python -m MODULE NAME`."""

    module: str
    name: str
    address_key: str = "execution.address"
    """Where a configuration names a cluster. In a job nothing stands there: RAY_ADDRESS names its own."""


@dataclass(frozen=True, kw_only=True)
class Job:
    name: str
    """The same for the same command and values; an attempt's id is this and its number."""
    entrypoint: str
    runtime_env: dict[str, Any] = field(repr=False)
    """As Ray takes it. Holds values of environment variables: it is sent, and never shown."""


def job_name(command: Command, spec: Any) -> str:
    """A job's name, by the digest of what a configuration asks for, defaults included. How the work is done is no part
    of it: another job with fewer workers would write to the same place."""
    program = command.module.partition(".")[0].replace("_", "-")
    return f"{program}-{command.name}-{digest_of(_asked(to_dict(spec)))[:DIGEST_DIGITS]}"


def _asked(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _asked(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if key not in ("execution", "max_concurrent")
    }


def make_job(
    command: Command, spec: Any, written: Mapping[str, Any], cluster: ClusterConfig, environ: Mapping[str, str]
) -> Job:
    """The job that runs a configuration.

    Args:
        spec: what the configuration says here; decides the name.
        written: its plain values with `${…}` as written: variables of the environment are filled in by the job, so
            that what everyone may read of a job holds none of their values.

    Raises:
        UserError: a variable that the job would need does not go with it, or is not set here; or a URL holds a secret.
    """
    if left_out := sorted({name for name in variables_read(written) if name in environ} - {*cluster.env}):
        raise UserError(
            f"the configuration reads environment variables that would not go with the job: {', '.join(left_out)}; "
            "name them under `env` in the cluster's file (--cluster)"
        )
    text = entrypoint(command, written)
    if secrets := [line.strip() for line in redacted(text).splitlines() if line not in text.splitlines()]:
        raise UserError(
            f"a URL holds a password or a signature, which all who may see the job would read: {secrets[0]}; "
            "give credentials by environment variables, named under `env` in the cluster's file (--cluster)"
        )
    return Job(
        name=job_name(command, spec),
        entrypoint=text,
        runtime_env=runtime_env(cluster, environ),
    )


def variables_read(written: Mapping[str, Any]) -> set[str]:
    """Names in `${oc.env:NAME}` anywhere in a configuration."""
    return set(re.findall(r"\$\{\s*oc\.env\s*:\s*(\w+)", json.dumps(written)))


def entrypoint(command: Command, written: Mapping[str, Any]) -> str:
    """A shell's command that needs no file: the configuration is its standard input."""
    # No line of it can end the input early: values of several lines are indented.
    text = yaml.safe_dump(dict(written), sort_keys=False, allow_unicode=True)
    return f"python -m {command.module} {command.name} /dev/stdin <<'{END}'\n{text}{END}"


def runtime_env(cluster: ClusterConfig, environ: Mapping[str, str]) -> dict[str, Any]:
    """Code, packages and environment variables of a job, as Ray takes them.

    Raises:
        UserError: a variable is not set.
    """
    if unset := [name for name in cluster.env if name not in environ]:
        raise UserError(
            f"environment variables under `env` are not set here: {', '.join(unset)}; set them, or take them out"
        )
    values: dict[str, Any] = {"env_vars": SETTINGS | {name: environ[name] for name in cluster.env}}
    if cluster.code == "shipped":
        root = Path(__file__).parents[3]
        values["py_modules"] = [str(root / package) for package in PACKAGES]
    if cluster.requirements:
        values["pip"] = str(cluster.requirements)
    return values


def check_places(places: Mapping[str, Iterable[str]]) -> None:
    """Refuses places, by key of the configuration, that a job cannot find.

    Raises:
        UserError: one is relative to the folder that this process runs in, or carries a password or a signature.
    """
    for key, urls in places.items():
        for url in urls:
            if "://" not in url and not Path(url).is_absolute():
                or_url = "" if key.endswith(("model", "hub", "initial_weights")) else "a URL (s3://…), or "
                raise UserError(
                    f"{key}: {url} is relative to this folder, which a job does not have; write {or_url}an absolute "
                    "path of a folder that all machines of the cluster share"
                )
            try:
                normal_url(url)
            except UserError as error:
                raise UserError(f"{key}: {error}") from None


def attempt_id(name: str, attempt: int) -> str:
    """What Ray knows an attempt by: it takes no id a second time."""
    return f"{name}-{attempt}"


def attempt_of(job_id: str) -> int:
    """The attempt's number."""
    return int(job_id.rpartition("-")[2])
