"""Local copies of a store's objects, under their digests, shared by all processes of a user and bounded in size.

A copy has its final name only when it is whole. One lock for each of 256 folders makes the processes that want an
object at once download it once; another one lets a single process at a time make room. The copies used longest ago
go first, and none that was used within `IN_USE_S`: so a path stays good for the time between being given and being
opened, and an open file outlives its name anyway. The bound may be passed by what is used in that time.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from teacher_cache.errors import UserError
from teacher_cache.storage.local_files import file_sha256

SIZE_VARIABLE = "TEACHER_CACHE_DISK_BYTES"
"""Names the bound in the environment; without it, half of what would be free with no copies there."""
IN_USE_S = 120.0
ABANDONED_S = 86_400.0
"""Age of an unfinished download whose process is taken for dead."""
COPY = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class _File:
    path: Path
    num_bytes: int
    used: float
    """Seconds since the epoch, of the last use."""


class DiskCache:
    """The copies in one folder; without one, in a folder of this user's own below the one for temporary files."""

    def __init__(self, folder: str | Path | None = None) -> None:
        self._is_default = folder is None
        self.folder = Path(folder) if folder else default_folder()

    def get(self, digest: str, num_bytes: int, download: Callable[[], Iterator[bytes]]) -> Path | None:
        """A file with the bytes that `digest` names; None if a download gives other bytes, which are not kept.

        Raises:
            UserError: the disk is full, or the folder is not this user's own.
        """
        self._prepare()
        with disk_errors(self.folder):
            folder = self.folder / digest[:2]
            folder.mkdir(exist_ok=True)
            with _locked(folder / ".lock"):
                path = folder / digest
                return path if _is_intact(path, digest, num_bytes) else self._fill(path, num_bytes, download)

    def touch(self, path: Path) -> bool:
        """Notes a use of a copy; False if it is no more there."""
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def _fill(self, path: Path, num_bytes: int, download: Callable[[], Iterator[bytes]]) -> Path | None:
        path.unlink(missing_ok=True)
        with _locked(self.folder / ".lock"):
            self._make_room(num_bytes)
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        try:
            if _write(partial, download()) != path.name:
                return None
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        return path

    def _make_room(self, num_bytes: int) -> None:
        """Deletes abandoned downloads, then as few copies as bring the others and `num_bytes` below the bound."""
        now = time.time()
        for partial in self.folder.glob("??/*.partial"):
            if (there := _look(partial)) and there.used < now - ABANDONED_S:
                partial.unlink(missing_ok=True)
        copies = sorted(self._copies(), key=lambda copy: copy.used)
        excess = sum(copy.num_bytes for copy in copies) + num_bytes - self._max_bytes
        for copy in copies:
            there = _look(copy.path)  # as it is now: others use copies without a lock
            if excess <= 0 or (there and there.used > now - IN_USE_S):
                break
            copy.path.unlink(missing_ok=True)
            excess -= copy.num_bytes

    def _copies(self) -> Iterator[_File]:
        for path in self.folder.glob("??/*"):
            if COPY.fullmatch(path.name) and (there := _look(path)):
                yield there

    @cached_property
    def _max_bytes(self) -> int:
        text = os.environ.get(SIZE_VARIABLE)
        if text is None:
            return (shutil.disk_usage(self.folder).free + sum(copy.num_bytes for copy in self._copies())) // 2
        if not text.isdecimal():
            raise UserError(f"{SIZE_VARIABLE} is {text!r}; give a number of bytes, for example 50000000000")
        return int(text)

    def _prepare(self) -> None:
        with disk_errors(self.folder):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._is_default:
                _refuse_strangers(self.folder)


def default_folder() -> Path:
    return Path(tempfile.gettempdir()) / f"teacher-cache-{os.getuid()}"


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turns a full or unwritable disk into one message."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = f"is full ({error.strerror}); free space there, set {SIZE_VARIABLE} lower"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            reason = f"cannot be written ({error.strerror}); correct its permissions"
        else:
            raise
        raise UserError(f"the folder of local copies {folder} {reason}, or set TMPDIR to another disk") from None


def _refuse_strangers(folder: Path) -> None:
    """Refuses a folder in which somebody else could change a file after its check."""
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise UserError(
            f"{folder}, the folder of local copies, is not a folder that this user alone may write; "
            f"delete it or run `chmod 700 {folder}`, or set TMPDIR to another place"
        )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock of this machine's processes and threads; it ends with its holder, however that ends."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_intact(path: Path, digest: str, num_bytes: int) -> bool:
    try:
        os.utime(path)  # before it is read through, so that it is not deleted meanwhile
        return path.stat().st_size == num_bytes and file_sha256(path) == digest
    except FileNotFoundError:
        return False


def _look(path: Path) -> _File | None:
    """What is known of a file; None if it is gone."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return _File(path, status.st_size, status.st_mtime)


def _write(path: Path, chunks: Iterator[bytes]) -> str:
    """Writes a file; its SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for chunk in chunks:
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()
