"""Where the payload lies: a folder, or a bucket of an S3 server that is started for it."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from s3fs import S3FileSystem

from tests import ceph, s3


@contextmanager
def bucket(folder: Path) -> Iterator[tuple[str, str]]:
    """The URL of a new bucket, which the environment points to, and what serves it: Ceph's gateway, or else moto."""
    if ceph.missing_programs():
        with s3.moto() as account, account.bucket(folder) as url:
            yield url, "moto, in Python"
        return
    with tempfile.TemporaryDirectory() as daemons, ceph.gateway(Path(daemons)) as gateway:
        with gateway.account.bucket(folder) as url:
            yield url, "Ceph's gateway, store in memory"


def upload(folder: Path, url: str) -> str:
    """Copies a folder below a bucket; the URL of the copy."""
    target = f"{url}/{folder.name}"
    filesystem = S3FileSystem()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        filesystem.put_file(str(path), f"{target}/{path.relative_to(folder)}")
    return target
