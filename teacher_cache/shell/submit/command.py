"""`submit`, as both command lines have it."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from teacher_cache.errors import Interrupted, UserError
from teacher_cache.shell import settings
from teacher_cache.shell.submit.config import ClusterConfig
from teacher_cache.shell.submit.job import (
    PACKAGES,
    Command,
    Job,
    attempt_id,
    attempt_of,
    check_places,
    job_name,
    make_job,
)
from teacher_cache.shell.submit.server import JobServer

Spec = TypeVar("Spec")


def run(
    options: argparse.Namespace,
    kind: Callable[[Mapping[str, Any]], type[Spec]],
    command: Command,
    places: Callable[[Spec], Mapping[str, Iterable[str]]],
) -> dict[str, Any]:
    """Submits a configuration's job, or stops it.

    Args:
        kind: what a configuration with these values is.
        places: files and URLs that all machines must find, by key of the configuration.

    Raises:
        UserError: what is wrong with the configuration, before anything is sent; or with the job server.
        Interrupted: the job goes on.
    """
    cluster = settings.load(ClusterConfig, options.cluster) if options.cluster else ClusterConfig()
    overrides = [*options.overrides, f"{command.address_key}=null"]
    written = settings.as_written(options.config, overrides)
    values = settings.resolved(written, source=options.config)
    spec = settings.parse(kind(values), values, source=options.config)
    check_places(places(spec))
    address = options.address or cluster.address
    if options.stop:
        return stop(JobServer(address), job_name(command, spec))
    job = make_job(command, spec, written, cluster, os.environ)
    return submit(JobServer(address), job, wait=not options.no_wait, again=options.again)


def submit(server: JobServer, job: Job, *, wait: bool, again: bool = False) -> dict[str, Any]:
    """Starts a job, or joins the one that is at work; one that has succeeded is started only `again`."""
    last = server.newest(job.name)
    if last and last.status == "SUCCEEDED" and not again:
        return _result(last.submission_id, "succeeded", "it was done before; --again does it anew")
    if last and not last.status.is_terminal():
        job_id = last.submission_id
        _say(f"job {job_id} is at work on this already; this is its log\n")
    else:
        job_id = attempt_id(job.name, attempt_of(last.submission_id) + 1 if last else 1)
        server.submit(job, job_id)
        _say(f"job {job_id} was submitted to {server.address}\n")
    if not wait:
        return _result(job_id, "submitted", "the same command follows it, and stops it with --stop")
    return _followed(server, job_id)


def stop(server: JobServer, name: str) -> dict[str, Any]:
    """Stops a job and waits for its end.

    Raises:
        UserError: it is not at work.
    """
    last = server.newest(name)
    if last is None or last.status.is_terminal():
        raise UserError(f"no job of this configuration is at work at {server.address}")
    record = server.stop(last.submission_id)
    return _result(last.submission_id, record.status.lower(), "the same command without --stop goes on")


def _followed(server: JobServer, job_id: str) -> dict[str, Any]:
    from teacher_cache.shell.submit.follow import follow

    try:
        record = follow(server, job_id, _say)
    except KeyboardInterrupt:
        raise Interrupted(
            f"job {job_id} goes on; the same command follows it again, and stops it with --stop"
        ) from None
    return _result(job_id, record.status.lower(), explained(record)) | {"ok": record.status == "SUCCEEDED"}


def _result(job_id: str, state: str, message: str) -> dict[str, Any]:
    return {"job": job_id, "state": state, "message": message}


def explained(record: Any) -> str:
    """What a job's end means, and what to do."""
    message = record.message or ""
    if missing := re.search(r"No module named '?(\w+)", message):
        key = "code: shipped" if missing[1] in PACKAGES else "requirements"
        return f"the cluster has no {missing[1]}: install it on its machines, or set `{key}` in the cluster's file"
    if record.status == "SUCCEEDED":
        return "done"
    if record.driver_exit_code is None:  # the command was not started, or was killed
        return message
    return f"ended with status {record.driver_exit_code}, see its log above; the same command tries again"


def _say(text: str) -> None:
    print(text, end="", file=sys.stderr, flush=True)
