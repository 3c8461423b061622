"""What stores throw for a user's mistake, as one message."""

import contextlib
import errno
from collections.abc import Iterator
from typing import Any

from teacher_cache.errors import UserError


@contextlib.contextmanager
def store_errors(url: str) -> Iterator[None]:
    """Turns what object stores throw for a user's mistake into one message; missing objects pass through."""
    try:
        yield
    except (FileNotFoundError, FileExistsError) as error:
        if _server_code(error) == "NoSuchBucket" or "bucket does not exist" in str(error).lower():
            raise UserError(f"{url}: the bucket does not exist; create it, or correct the URL") from None
        raise
    except PermissionError as error:
        if "://" not in url:
            raise UserError(f"{url}: access denied ({error.strerror}); check who may write there") from None
        said = error.__cause__ or error  # Ceph's answers have a code and no message
        raise UserError(f"{url}: access denied ({said}); check the credentials and the bucket's policy") from None
    except Exception as error:
        message = _connection_message(error)
        if message is None:
            raise
        raise UserError(f"{url}: {message}") from None


def _server_code(error: BaseException) -> str | None:
    """The S3 error code that s3fs translated to this error."""
    code: str | None = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")
    return code


def _connection_message(error: Any) -> str | None:
    name = type(error).__name__
    if name in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
        return "no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role"
    if name in (
        "EndpointConnectionError",
        "ConnectTimeoutError",
        "ReadTimeoutError",
        "ConnectionClosedError",
    ):
        return f"the store cannot be reached ({error}); check AWS_ENDPOINT_URL and the network"
    if isinstance(error, ImportError) or (isinstance(error, ValueError) and "rotocol" in str(error)):
        return f"{error}; install the fsspec package of this protocol, or correct the URL"
    if isinstance(error, NotADirectoryError | IsADirectoryError):
        return f"it names a file where a folder is needed, or the other way round ({error})"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return f"nothing can be written there ({error.strerror})"
    return None
