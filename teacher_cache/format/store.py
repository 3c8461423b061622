"""Objects under one URL: read, create once, fetch to local disk. Local folders and `s3://` behave the same."""

import contextlib
import errno
import hashlib
import os
import re
import tempfile
import uuid
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from teacher_cache.errors import UserError
from teacher_cache.format.store_errors import store_errors

KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
"""What a key may look like: no empty, hidden or parent parts, so that no key leaves the cache's folder."""
CHUNK_BYTES = 8 * 2**20


class Store:
    """The objects of one cache or one run.

    Raises:
        UserError: from any method, when the store cannot be reached or refuses the credentials.
    """

    def __init__(self, url: str, *, disk_cache: str | Path | None = None) -> None:
        self.url = normal_url(url)
        with store_errors(self.url):
            self.fs, root = fsspec.url_to_fs(self.url, use_listings_cache=False)
        self.root = root.rstrip("/")
        self.is_local = isinstance(self.fs, LocalFileSystem)
        self.disk_cache = Path(disk_cache) if disk_cache else default_disk_cache()
        self._verified: dict[str, Path] = {}

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def path(self, key: str) -> str:
        """The object's path on its filesystem."""
        if not KEY.fullmatch(key):
            raise UserError(f"{key!r} is not a name that a cache may use; {self.url} is damaged or not a cache")
        return f"{self.root}/{key}"

    def read(self, key: str, *, max_bytes: int) -> bytes:
        """The whole object.

        Raises:
            FileNotFoundError: there is none.
            UserError: it is larger than `max_bytes`.
        """
        data = self._read_start(key, max_bytes + 1)
        if len(data) > max_bytes:
            raise UserError(f"{self.url}/{key} is larger than the {max_bytes:,} bytes allowed here")
        return data

    def _read_start(self, key: str, num_bytes: int) -> bytes:
        """At most `num_bytes` from the start of an object."""
        path = self.path(key)
        with store_errors(self.url):
            if self.is_local:
                num_bytes = min(num_bytes, os.stat(path).st_size)  # Python takes the memory before it reads
            try:
                data: bytes = self.fs.cat_file(path, start=0, end=num_bytes)
            except OSError as error:
                if error.errno != errno.EINVAL or self.fs.size(path) != 0:
                    raise
                return b""  # S3 refuses every range of an empty object
        return data

    def _holds(self, key: str, data: bytes) -> bool:
        """Whether an object's bytes are `data`."""
        return self._read_start(key, len(data) + 1) == data

    def exists(self, key: str) -> bool:
        with store_errors(self.url):
            return bool(self.fs.exists(self.path(key)))

    def list(self, prefix: str) -> list[str]:
        """Keys directly below a prefix, sorted. For builders only: readers trust sealed manifests."""
        folder = self.path(prefix)
        with store_errors(self.url):
            if not self.fs.exists(folder):
                return []
            paths = self.fs.ls(folder, detail=False)
        names = (str(path).rstrip("/").rsplit("/", 1)[-1] for path in paths)
        return sorted(f"{prefix}/{name}" for name in names if KEY.fullmatch(name))

    def create(self, key: str, data: bytes) -> bool:
        """Creates an object that does not exist yet; False if another holds other bytes under this key.

        A refused or failed PUT is read back, because a lost acknowledgement makes a client's own retry look
        like another's success: our bytes under the key mean that it is ours.
        """
        path = self.path(key)
        if self.is_local:
            with store_errors(self.url):
                return _link_once(path, data) or self._holds(key, data)
        try:
            with store_errors(self.url):
                self.fs.pipe_file(path, data, mode="create")
        except OSError:
            try:
                return self._holds(key, data)
            except FileNotFoundError:
                pass
            raise
        return True

    def replace(self, key: str, data: bytes) -> None:
        """Writes an object whole, whether it exists or not: for what belongs to one writer alone."""
        path = self.path(key)
        with store_errors(self.url):
            if not self.is_local:
                self.fs.pipe_file(path, data)
                return
            temporary = _write_temporary(path, data)
            os.replace(temporary, path)
            _sync_folder(path)

    def delete_folder(self, prefix: str) -> None:
        """Deletes all objects below a prefix: for what belongs to one writer alone, never for shards."""
        with store_errors(self.url), contextlib.suppress(FileNotFoundError):
            self.fs.rm(self.path(prefix), recursive=True)

    def fetch(self, key: str, *, digest: str, num_bytes: int) -> Path:
        """A local file with the object's bytes, checked against `digest` once per process.

        A local store's own file is checked where it lies; others are downloaded to the disk cache under the
        digest's name, and a copy there that fails its check is downloaded again.

        Raises:
            UserError: the object is missing or its bytes are not those that `digest` names.
        """
        if digest in self._verified:
            return self._verified[digest]
        try:
            path = Path(self.path(key)) if self.is_local else self._download(key, digest, num_bytes)
            intact = file_sha256(path) == digest
        except FileNotFoundError:
            raise UserError(f"{self.url}/{key} is missing; run `teacher-cache verify {self.url}`") from None
        if not intact:
            if not self.is_local:
                path.unlink(missing_ok=True)
            raise UserError(
                f"{self.url}/{key} is damaged: its SHA-256 is not {digest}; run `teacher-cache verify {self.url}`"
            )
        self._verified[digest] = path
        return path

    def drop_copy(self, digest: str) -> None:
        """Forgets a checked object, and deletes its local copy where the store is not local."""
        path = self._verified.pop(digest, None)
        if path is not None and not self.is_local:
            path.unlink(missing_ok=True)

    def _download(self, key: str, digest: str, num_bytes: int) -> Path:
        path = self.disk_cache / digest[:2] / digest
        if path.exists() and path.stat().st_size == num_bytes and file_sha256(path) == digest:
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{digest}.{uuid.uuid4().hex}.partial")
        try:
            with (
                store_errors(self.url),
                self.fs.open(self.path(key), "rb") as source,
                partial.open("wb") as sink,
            ):
                copied = 0
                while chunk := source.read(CHUNK_BYTES):
                    copied += len(chunk)
                    if copied > num_bytes:
                        break  # the digest check that follows refuses it
                    sink.write(chunk)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        return path


def normal_url(url: str) -> str:
    """Local paths become absolute (workers run elsewhere), URLs lose a trailing slash."""
    if "://" in url and not url.startswith("file://"):
        return url.rstrip("/")
    return os.path.abspath(os.path.expanduser(url.removeprefix("file://")))


def default_disk_cache() -> Path:
    return Path(tempfile.gettempdir()) / f"teacher-cache-{os.getuid()}"


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _link_once(path: str, data: bytes) -> bool:
    """Puts a whole file in place unless one is there: os.link refuses where a rename would overwrite."""
    temporary = _write_temporary(path, data)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        os.unlink(temporary)
    _sync_folder(path)
    return True


def _write_temporary(path: str, data: bytes) -> str:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{os.path.dirname(path)}/.{uuid.uuid4().hex}.tmp"
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return temporary


def _sync_folder(path: str) -> None:
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
