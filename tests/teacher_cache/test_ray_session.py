"""What is told of a Ray that cannot be had."""

import pytest
import ray

from teacher_cache.errors import UserError
from teacher_cache.shell.ray_session import ray_session


def test_a_local_ray_that_does_not_start_in_time_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(**_: object) -> None:
        raise Exception("The current node timed out during startup. This could happen because …")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", slow)  # a machine that is busy enough would disturb all other tests
    with (
        pytest.raises(UserError, match="a local Ray did not start within 30 s"),
        ray_session(address=None, num_cpus=1, log_to_driver=False),
    ):
        pass


def test_a_job_servers_address_is_no_cluster(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://localhost:8265")
    with (
        pytest.raises(UserError, match=r"http://localhost:8265 is a job server's address.*unset RAY_ADDRESS"),
        ray_session(address=None, num_cpus=1, log_to_driver=False),
    ):
        pass
