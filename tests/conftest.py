"""Fixtures for all tests: quiet, local and repeatable."""

import os
from collections.abc import Iterator
from pathlib import Path

# Before Ray or a store's client is imported.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "15")
os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

torch.set_num_threads(1)  # tiny models: more threads only wait for each other

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_teacher() -> Path:
    """A real small teacher kept beside the project."""
    folder = SHARED / "teacher"
    if not folder.is_dir():
        pytest.skip("needs the real teacher that is kept beside the project, not in it")
    return folder


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A real local Ray with 4 logical CPUs, started once."""
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, object_store_memory=150 * 2**20, log_to_driver=False)
    yield
    ray.shutdown()
