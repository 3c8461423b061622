"""S3 for tests: one of moto's servers in this process, and what tests need around any S3 server."""

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from s3fs import S3FileSystem
from werkzeug.serving import WSGIRequestHandler, make_server

_bucket_numbers = itertools.count()


@dataclass(frozen=True, kw_only=True)
class Account:
    """Where an S3 server listens, and who may write to it."""

    endpoint: str
    key: str
    secret: str

    def use(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        """Makes it what this process and its children find in their environment, and all they find.

        `folder` takes the copies that readers keep, so that no test reads another's.
        """
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        values = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": str(folder / "no-config"),
            "AWS_SHARED_CREDENTIALS_FILE": str(folder / "no-credentials"),
            "AWS_EC2_METADATA_DISABLED": "true",
            "TMPDIR": str(folder),
        }
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("tempfile.tempdir", str(folder))

    @contextmanager
    def bucket(self, folder: Path) -> Iterator[str]:
        """The URL of a new bucket, with this account in the environment."""
        with pytest.MonkeyPatch.context() as monkeypatch:
            self.use(monkeypatch, folder)
            forget_clients()
            name = f"bucket-{next(_bucket_numbers)}"  # no two of one process are alike, whatever the server
            client().create_bucket(Bucket=name)
            yield f"s3://{name}"
        forget_clients()


def forget_clients() -> None:
    """Lets the next filesystem read the environment again."""
    S3FileSystem.clear_instance_cache()
    client.cache_clear()


@cache
def client() -> Any:
    """A boto3 client of the server in the environment; making one takes a second."""
    return boto3.session.Session().client("s3")


def split(url: str) -> dict[str, str]:
    """`s3://bucket/key` as boto3 names it."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return {"Bucket": bucket, "Key": key}


def put(url: str, data: bytes) -> None:
    client().put_object(**split(url), Body=data)


def get(url: str) -> bytes:
    data: bytes = client().get_object(**split(url))["Body"].read()
    return data


def keys(url: str) -> list[str]:
    """Keys of all objects of a bucket, sorted."""
    pages = client().get_paginator("list_objects_v2").paginate(Bucket=split(url)["Bucket"])
    return sorted(entry["Key"] for page in pages for entry in page.get("Contents", []))


@contextmanager
def moto() -> Iterator[Account]:
    """moto's S3 on a free port."""
    app = _OneAtATime(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Silent)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Account(endpoint=f"http://127.0.0.1:{server.server_port}", key="testing", secret="testing")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _OneAtATime:
    """Answers one request after the other: moto looks for a key and then writes it, with no lock between."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self._app = app
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        chunked = environ.pop("HTTP_TRANSFER_ENCODING", "").lower() == "chunked"
        source = environ["wsgi.input"]
        # Outside the lock, so that a slow upload holds up nobody.
        body = source.read() if chunked else source.read(int(environ.get("CONTENT_LENGTH") or 0))
        environ |= {"wsgi.input": BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        with self._lock:
            return list(self._app(environ, start_response))


class _Silent(WSGIRequestHandler):
    def log(self, *arguments: Any) -> None:
        """No line a request."""
