"""Fixtures for all tests: quiet, local and repeatable."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

from teacher_cache.shell import command

# Before Ray, transformers or a store's client is imported.
os.environ |= command.QUIET
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "15")
os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models, here and in processes: more threads wait for each other

import pytest
from hypothesis import HealthCheck, settings

from tests import ceph as ceph_server
from tests import s3 as s3_server

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a script's background job, whose children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no failure.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A real local Ray with 4 logical CPUs, started once."""
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, object_store_memory=150 * 2**20, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def moto_account() -> Iterator[s3_server.Account]:
    """An in-process S3 server, started once."""
    with s3_server.moto() as account:
        yield account


@pytest.fixture
def s3(moto_account: s3_server.Account, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a fresh bucket of the in-process S3 server, which the environment points to."""
    with moto_account.bucket(tmp_path_factory.mktemp("s3")) as url:
        yield url


@pytest.fixture(scope="session")
def ceph_gateway() -> Iterator[ceph_server.Gateway]:
    """A real Ceph gateway, started once."""
    if missing := ceph_server.missing_programs():
        pytest.skip(f"needs Ceph: {', '.join(missing)} not found; apt-get install radosgw ceph-mon ceph-osd")
    with tempfile.TemporaryDirectory() as folder, ceph_server.gateway(Path(folder)) as running:
        yield running


@pytest.fixture(scope="session")
def ceph_account(ceph_gateway: ceph_server.Gateway) -> s3_server.Account:
    """Where the Ceph gateway listens."""
    return ceph_gateway.account


@pytest.fixture
def ceph(ceph_account: s3_server.Account, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a fresh bucket of the Ceph gateway, which the environment points to."""
    with ceph_account.bucket(tmp_path_factory.mktemp("ceph")) as url:
        yield url


@pytest.fixture(params=[pytest.param("s3", marks=pytest.mark.s3), pytest.param("ceph", marks=pytest.mark.integration)])
def bucket(request: pytest.FixtureRequest) -> str:
    """The URL of a fresh bucket, of each server."""
    url: str = request.getfixturevalue(request.param)
    return url
