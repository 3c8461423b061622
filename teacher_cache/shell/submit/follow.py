"""A job's log, copied until the job ends, over connections that may break."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import aiohttp
from ray.exceptions import AuthenticationError

from teacher_cache.errors import UserError
from teacher_cache.shell.submit.server import JobServer

SILENCE_S = 60.0
"""After so long without a word the connection may be dead: it is made anew."""
RETRY_S = 2.0
PATIENCE_S = 600.0
"""How long a server that does not answer is asked again."""
LOST = (OSError, RuntimeError, aiohttp.ClientError, AuthenticationError)
"""What Ray's client raises of a connection or a server that fails; requests' errors are OSErrors."""

Write = Callable[[str], None]


def follow(server: JobServer, job_id: str, write: Write, *, patience_s: float = PATIENCE_S) -> Any:
    """Writes a job's log until the job has ended; Ray's record of it.

    Raises:
        UserError: nobody answers for as long as patience lasts, or the cluster knows the job no more.
    """
    log, lost_since = _Log(server, job_id, write), None
    while True:
        is_whole = log.copy()
        try:
            record = server.record(job_id)
        except LOST as error:
            _check_known(server, job_id, error)
            if lost_since is None:
                write(f"{server.address} does not answer; asking again\n")
                lost_since = time.monotonic()
            if time.monotonic() - lost_since > patience_s:
                raise UserError(
                    f"{server.address} has not answered for {patience_s:.0f} s; job {job_id} may well be at work, and "
                    "the same command follows it again"
                ) from None
        else:
            lost_since = None
            if record.status.is_terminal():
                if not is_whole:
                    log.copy()
                return record
        time.sleep(RETRY_S)


def _check_known(server: JobServer, job_id: str, error: Exception) -> None:
    if "status code 404" in str(error):
        raise UserError(
            f"{server.address} knows no job {job_id} any more: the cluster was started anew; submit again to go on"
        ) from None
    if isinstance(error, AuthenticationError):
        why = str(error).strip().partition("\n")[0]
        raise UserError(f"{server.address} takes the token no more: {why}; was the cluster started anew?") from None


class _Log:
    """A job's log, of which each character is written once, however often it is read."""

    def __init__(self, server: JobServer, job_id: str, write: Write) -> None:
        self._server, self._job_id, self._write = server, job_id, write
        self._num_written = 0

    def copy(self) -> bool:
        """Writes what is new; whether that was all to the log's end, or a connection was lost or silent before."""
        try:
            asyncio.run(self._copy())
        except LOST:
            return False
        return True

    async def _copy(self) -> None:
        num_read, texts = 0, self._server.log(self._job_id)
        while text := await asyncio.wait_for(anext(texts, ""), SILENCE_S):
            num_read += len(text)
            if num_read > self._num_written:
                self._write(text[self._num_written - num_read :])
                self._num_written = num_read
