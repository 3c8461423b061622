"""Objects under one URL: read, create once, fetch to local disk. Local folders and `s3://` behave the same."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from teacher_cache.errors import StoreError, UserError
from teacher_cache.storage import local_files
from teacher_cache.storage.disk_cache import DiskCache
from teacher_cache.storage.errors import server_status, store_errors
from teacher_cache.storage.local_files import file_sha256
from teacher_cache.storage.retries import patiently
from teacher_cache.storage.urls import normal_url

KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
"""What a key may look like: no empty, hidden or parent parts, so that no key leaves the cache's folder."""
CHUNK_BYTES = 16 * 2**20
"""Of a download: what is fetched again when a connection breaks."""
MAX_PUT_BYTES = 5 * 2**30
"""S3's bound of one PUT. Several stores ignore the condition on an upload in parts, so objects are never larger."""
S3_URLS = ("s3://", "s3a://")

T = TypeVar("T")


class ConditionRefusedError(StoreError):
    """A store knows no put-if-absent."""


class Store:
    """The objects of one cache or one run.

    Errors that may pass, as of a store that is overloaded or restarted, are waited out, see `retries`.

    Raises:
        StoreError: from any method, when the store cannot be reached, is full or refuses the credentials.
    """

    def __init__(self, url: str, *, disk_cache: str | Path | None = None, single_writer: bool = False) -> None:
        """`single_writer` is for stores without put-if-absent, see `probe`: safe only if no one else writes."""
        self.url = normal_url(url)
        self.single_writer = single_writer
        self.refuse_creation = ""
        """With `single_writer`: why nothing may be created any more."""
        self.is_local = "://" not in self.url
        if self.is_local:
            self.root = self.url.rstrip("/")
        else:
            self.fs, self.root = _filesystem(self.url)
        self._copies = DiskCache(disk_cache)
        self.disk_cache = self._copies.folder
        self._verified: dict[str, Path] = {}

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    @cached_property
    def fs(self) -> Any:
        """fsspec's filesystem; a local folder is read without it."""
        return _filesystem(self.url)[0]

    def path(self, key: str) -> str:
        """The object's path on its filesystem."""
        if not KEY.fullmatch(key):
            raise UserError(f"{key!r} is not a name that a cache may use; {self.url} is damaged or not a cache")
        return f"{self.root}/{key}"

    def attempt(self, doing: str, request: Callable[[], T]) -> T:
        """What a request to the filesystem gives, waiting for errors to pass; `doing` names it in messages.

        Raises:
            FileNotFoundError: it asks for an object that is not there.
        """
        with store_errors(self.url):
            return request() if self.is_local else patiently(self.fs, self.url, doing, request)

    def read(self, key: str, *, max_bytes: int) -> bytes:
        """The whole object.

        Raises:
            FileNotFoundError: there is none.
            UserError: it is larger than `max_bytes`.
        """
        data = self._read_range(key, 0, max_bytes + 1)
        if len(data) > max_bytes:
            raise UserError(f"{self.url}/{key} is larger than the {max_bytes:,} bytes allowed here")
        return data

    def _read_range(self, key: str, start: int, stop: int) -> bytes:
        """The bytes of an object from `start` to `stop` or its end."""
        path = self.path(key)

        def request() -> bytes:
            if self.is_local:
                return local_files.read_range(path, start, stop)
            try:
                data: bytes = self.fs.cat_file(path, start=start, end=stop)
            except OSError as error:
                if server_status(error) != 416:
                    raise
                return b""  # S3 refuses ranges that begin at an object's end, and so every range of an empty one
            return data

        return self.attempt(f"reading {key}", request)

    def _holds(self, key: str, data: bytes) -> bool:
        """Whether an object's bytes are `data`."""
        return self._read_range(key, 0, len(data) + 1) == data

    def exists(self, key: str) -> bool:
        path = self.path(key)
        look = os.path.exists if self.is_local else self.fs.exists
        return bool(self.attempt(f"looking for {key}", lambda: look(path)))

    def list(self, prefix: str) -> list[str]:
        """Keys directly below a prefix, sorted. For builders only: readers trust sealed manifests."""
        folder = self.path(prefix)
        look = os.listdir if self.is_local else partial(self.fs.ls, detail=False)
        try:
            paths = self.attempt(f"listing {prefix}", lambda: look(folder))
        except FileNotFoundError:
            return []
        names = (str(path).rstrip("/").rsplit("/", 1)[-1] for path in paths)
        return sorted(f"{prefix}/{name}" for name in names if KEY.fullmatch(name))

    def create(self, key: str, data: bytes) -> bool:
        """Creates an object that does not exist yet; False if another holds other bytes under this key.

        A refused PUT is read back, because a lost acknowledgement makes the retry look like another's success: our
        bytes under the key mean that it is ours.

        With `single_writer` it looks first and then writes without a condition.
        """
        path = self.path(key)
        if self.single_writer:
            if self.refuse_creation:
                raise UserError(self.refuse_creation)
            return self._create_alone(key, data)
        if self.is_local:
            created = self.attempt(f"creating {key}", lambda: local_files.link_once(path, data))
        else:
            created = self.attempt(f"creating {key}", lambda: self._put_if_absent(path, data))
        try:
            return created or self._holds(key, data)
        except FileNotFoundError:
            raise StoreError(f"{self.url}/{key} came and went while it was created; who deletes there?") from None

    def _create_alone(self, key: str, data: bytes) -> bool:
        try:
            return self._holds(key, data)
        except FileNotFoundError:
            self.replace(key, data)
        return self._holds(key, data)

    def _put_if_absent(self, path: str, data: bytes) -> bool:
        """One conditional PUT; False if an object is there, be it of an earlier try."""
        try:
            self._put(path, data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            if server_status(error) == 501:
                raise ConditionRefusedError(f"{self.url}: the store knows no put-if-absent") from None
            if server_status(error) != 412:
                raise
            return False
        return True

    def _put(self, path: str, data: bytes, **options: Any) -> None:
        if self.url.startswith(S3_URLS):
            if len(data) >= MAX_PUT_BYTES:
                raise UserError(
                    f"{self.url}: an object of {len(data):,} bytes is larger than one PUT may be "
                    f"({MAX_PUT_BYTES:,} bytes); make units smaller, by unit_sequences"
                )
            options["chunksize"] = MAX_PUT_BYTES
        self.fs.pipe_file(path, data, **options)

    def replace(self, key: str, data: bytes) -> None:
        """Writes an object whole, whether it exists or not: for what belongs to one writer alone."""
        path = self.path(key)
        write = local_files.replace if self.is_local else self._put
        self.attempt(f"writing {key}", lambda: write(path, data))

    def delete_folder(self, prefix: str) -> None:
        """Deletes all objects below a prefix: for what belongs to one writer alone, never for shards."""
        path = self.path(prefix)
        with contextlib.suppress(FileNotFoundError):
            self.attempt(f"deleting {prefix}", lambda: self.fs.rm(path, recursive=True))

    def fetch(self, key: str, *, digest: str, num_bytes: int, remedy: str | None = None) -> Path:
        """A local file with the object's bytes, checked against `digest` once per process; to be opened at once.

        A local store's own file is checked where it lies; others are downloaded to the disk cache, and a copy there
        that fails its check is downloaded again.

        Raises:
            UserError: the object is missing or its bytes are not those that `digest` names; says what to do, by default
                to verify the cache.
        """
        remedy = remedy or f"run `teacher-cache verify {self.url}`"
        known = self._verified.get(digest)
        if known is not None and (self.is_local or self._copies.touch(known)):
            return known
        try:
            path = self._checked(key, digest) if self.is_local else self._downloaded(key, digest, num_bytes)
        except FileNotFoundError:
            raise UserError(f"{self.url}/{key} is missing; {remedy}") from None
        if path is None:
            raise UserError(f"{self.url}/{key} is damaged: its SHA-256 is not {digest}; {remedy}")
        self._verified[digest] = path
        return path

    def drop_copy(self, digest: str) -> None:
        """Forgets a checked object, and deletes its local copy where the store is not local."""
        path = self._verified.pop(digest, None)
        if path is not None and not self.is_local:
            path.unlink(missing_ok=True)

    def _checked(self, key: str, digest: str) -> Path | None:
        path = Path(self.path(key))
        with store_errors(self.url):
            return path if file_sha256(path) == digest else None

    def _downloaded(self, key: str, digest: str, num_bytes: int) -> Path | None:
        return self._copies.get(digest, num_bytes, lambda: self._chunks(key, num_bytes))

    def _chunks(self, key: str, num_bytes: int) -> Iterator[bytes]:
        """An object's bytes; more than `num_bytes` if it is larger, so that its digest is another."""
        start = 0
        while True:
            stop = start + CHUNK_BYTES if start + CHUNK_BYTES < num_bytes else num_bytes + 1
            chunk = self._read_range(key, start, stop)
            yield chunk
            start += len(chunk)
            if start >= num_bytes or not chunk:
                return


def _filesystem(url: str) -> tuple[Any, str]:
    """fsspec's filesystem, and the URL's path on it."""
    import fsspec  # here, because a local cache is read without it

    with store_errors(url):
        filesystem, root = fsspec.url_to_fs(url, **_options(url))
    if url.startswith(S3_URLS):
        filesystem.retries = 1  # attempts: `retries` waits already
    return filesystem, root.rstrip("/")


def _options(url: str) -> dict[str, Any]:
    """For fsspec: nothing is listed from memory, and no client waits by itself, see `retries`."""
    options: dict[str, Any] = {"use_listings_cache": False}
    if url.startswith(S3_URLS):
        options["config_kwargs"] = {"retries": {"total_max_attempts": 1}}
    return options
