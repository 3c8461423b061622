"""A cluster's job server: Ray's own client, and one message for each thing that may be wrong with it."""

import contextlib
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from teacher_cache.errors import UserError
from teacher_cache.shell.submit.job import STOP_WAIT_S, Job, attempt_of

MIN_RAY_VERSION = "2.60"
POLL_S = 0.5


class JobServer:
    """Jobs of one cluster. Records of jobs are Ray's own `JobDetails`.

    Raises:
        UserError: nobody answers at the address, the token is refused, or the cluster's Ray is too old.
    """

    def __init__(self, address: str | None) -> None:
        if address and "://" not in address:
            raise UserError(f"the job server's address {address} has no scheme; write http://{address} or https://…")
        # Before Ray is imported: where Ray finds a token, requests carry it.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        if address:
            os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray heeds the environment before an argument
        from ray.job_submission import JobSubmissionClient

        _quiet_ray()
        named = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
        self.address = named or "this machine"
        with self._explained():
            self._client = JobSubmissionClient()
            # Ray itself asks for no more than its oldest job server.
            self._client._check_connection_and_version(MIN_RAY_VERSION, f"Jobs need {MIN_RAY_VERSION} or newer.")

    def newest(self, name: str) -> Any:
        """The record of a job's last attempt; None: there was none."""
        with self._explained():
            jobs = self._client.list_jobs()
        ids = ((job.submission_id or "", job) for job in jobs)
        attempts = {attempt_of(job_id): job for job_id, job in ids if re.fullmatch(rf"{name}-\d+", job_id)}
        return attempts[max(attempts)] if attempts else None

    def submit(self, job: Job, job_id: str) -> None:
        """Starts an attempt, unless somebody else has just done so."""
        with self._explained():
            try:
                self._client.submit_job(entrypoint=job.entrypoint, submission_id=job_id, runtime_env=job.runtime_env)
            except RuntimeError as error:
                if "already exists" not in str(error):
                    raise

    def stop(self, job_id: str) -> Any:
        """Stops a job and waits for its end; its record."""
        limit = time.monotonic() + 2 * STOP_WAIT_S
        with self._explained():
            self._client.stop_job(job_id)
            while not (record := self._client.get_job_info(job_id)).status.is_terminal():
                if time.monotonic() > limit:
                    raise UserError(f"job {job_id} was told to stop, and has not in {2 * STOP_WAIT_S} s")
                time.sleep(POLL_S)
        return record

    def record(self, job_id: str) -> Any:
        """The record of a job; what goes wrong is raised as it is."""
        return self._client.get_job_info(job_id)

    def log(self, job_id: str) -> AsyncIterator[str]:
        """A job's log, from its beginning and until the job ends; what goes wrong is raised as it is."""
        return self._client.tail_job_logs(job_id)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        from ray.exceptions import AuthenticationError, RayError

        try:
            yield
        except UserError:
            raise
        except AuthenticationError as error:
            raise UserError(
                f"the job server at {self.address} refuses this user ({error.message.splitlines()[0]}); put the "
                "cluster's token into RAY_AUTH_TOKEN, or its file's path into RAY_AUTH_TOKEN_PATH"
            ) from None
        except ConnectionError:
            raise UserError(
                f"no Ray job server answers at {self.address}; name one with --address http://HEAD:8265, `address` in "
                "the cluster's file, or RAY_API_SERVER_ADDRESS"
            ) from None
        except (OSError, RuntimeError, ValueError, RayError) as error:  # requests' own errors are OSErrors
            lines = str(error).strip().splitlines()
            reason = lines[-1 if "Traceback" in str(error) else 0]  # a server sends its own
            raise UserError(f"the job server at {self.address} does not do as it should: {reason}") from None


def _quiet_ray() -> None:
    """Ray's client tells what it packs and uploads, and that it found no token even where none is needed."""
    for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)
