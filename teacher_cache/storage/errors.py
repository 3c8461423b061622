"""What stores throw: what may pass when tried again, what is an answer, and the rest as one message."""

import contextlib
import errno
from collections.abc import Iterator
from typing import Any

from teacher_cache.errors import StoreError, UserError
from teacher_cache.storage.urls import redacted

FULL_CODES = ("QuotaExceeded", "XMinioStorageFull", "InsufficientStorage")
"""What stores call a full store, Ceph first."""
TRANSIENT_STATUSES = (429, 500, 502, 503, 504, 509)
TRANSIENT_CODES = ("ConditionalRequestConflict", "OperationAborted", "RequestTimeout", "SlowDown")
"""Of answers that have other statuses: conflicts of writers at one moment, and an upload that stood still."""
TRANSIENT_ERRORS = {
    "HTTPClientError",  # botocore's, also for connections refused or reset
    "ResponseStreamingError",
    "IncompleteReadError",
    "ResponseParserError",  # some answers to too many requests are no XML
    "ClientPayloadError",  # aiohttp's
    "ClientConnectionError",
    "ConnectionError",  # Python's, and requests'
    "TimeoutError",
}
"""Names, because clients share no base class and none of them is imported for its errors."""
MAX_SAID = 200
"""Characters of a client's own words that a message repeats."""


def server_code(error: BaseException) -> str | None:
    """The S3 error code that s3fs translated to this error; None where it is no server's answer."""
    code: str | None = _response(error).get("Error", {}).get("Code")
    return code


def server_status(error: BaseException) -> int | None:
    """The HTTP status that this error comes from; None where no server answered."""
    status: int | None = _response(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status


def is_transient(error: BaseException) -> bool:
    """Whether the same request may well succeed later."""
    if server_status(error) is not None:
        return server_status(error) in TRANSIENT_STATUSES or server_code(error) in TRANSIENT_CODES
    return not _names(error).isdisjoint(TRANSIENT_ERRORS)


def brief(error: BaseException) -> str:
    """A client's own words on one line, without secrets."""
    if server_status(error) is not None and error.__cause__:
        error = error.__cause__  # s3fs's translation lacks the code, and Ceph's answers have nothing else
    said = " ".join(str(error).split()) or type(error).__name__
    return redacted(said)[:MAX_SAID]


@contextlib.contextmanager
def store_errors(url: str) -> Iterator[None]:
    """Turns what stores throw for a user's mistake into one message; missing objects pass through.

    Raises:
        StoreError: in the place of what the store threw.
    """
    try:
        yield
    except UserError:
        raise
    except (FileNotFoundError, FileExistsError) as error:
        if server_code(error) == "NoSuchBucket" or "bucket does not exist" in str(error).lower():
            message = "the bucket does not exist; create it, or correct the URL"
            raise StoreError(f"{redacted(url)}: {message}") from None
        raise
    except Exception as error:
        message_or_none = _message(error)
        if message_or_none is None:
            raise
        raise StoreError(f"{redacted(url)}: {message_or_none}") from None


def _message(error: Exception) -> str | None:
    """What to tell the user; None for what is not a store's error."""
    if server_code(error) in FULL_CODES or _errno(error) in (errno.ENOSPC, errno.EDQUOT):
        said = server_code(error) or getattr(error, "strerror", "")
        return f"it is full ({said}); free space or raise the quota, then run the command again: it goes on from here"
    if isinstance(error, PermissionError) and server_status(error) is None and error.strerror:
        return f"access denied ({error.strerror}); check who may write there"
    if isinstance(error, PermissionError):
        return f"access denied ({brief(error)}); check the credentials and the bucket's policy"
    if server_status(error) is not None:
        return f"the store refuses ({brief(error)})"
    return _local_message(error) or _connection_message(error)


def _local_message(error: Exception) -> str | None:
    if isinstance(error, NotADirectoryError | IsADirectoryError):
        return f"it names a file where a folder is needed, or the other way round ({error})"
    if _errno(error) == errno.EROFS:
        return "nothing can be written there (it is read-only)"
    if _errno(error) in (errno.EIO, errno.ESTALE):
        return f"its file system fails ({error}); check the disk or the mount"
    return None


def _connection_message(error: Exception) -> str | None:
    if _names(error) & {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"}:
        return "no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role"
    if is_transient(error):
        return f"the store cannot be reached ({brief(error)}); check AWS_ENDPOINT_URL and the network"
    if isinstance(error, ImportError) or (isinstance(error, ValueError) and "rotocol" in str(error)):
        return f"{brief(error)}; install the fsspec package of this protocol, or correct the URL"
    return None


def _response(error: BaseException) -> dict[str, Any]:
    """The server's answer as botocore parsed it; empty where there is none."""
    for source in (error.__cause__, error):
        response = getattr(source, "response", None)
        if isinstance(response, dict):
            return response
    return {}


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _errno(error: BaseException) -> int | None:
    """A local file system's error number: s3fs gives some to answers of servers."""
    return error.errno if isinstance(error, OSError) and not _response(error) else None
