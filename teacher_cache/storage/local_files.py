"""Files in local folders: put in place whole and at once, and on the disk before anybody is told so."""

import contextlib
import errno
import hashlib
import os
import re
import uuid
from pathlib import Path

TEMPORARY_KEY = re.compile(r"(.*/)?\.[0-9a-f]{32}\.tmp(\.link)?")
"""Of files half written."""


def read_range(path: str, start: int, stop: int) -> bytes:
    """The bytes of a file from `start` to `stop` or its end."""
    with open(path, "rb") as file:
        end = min(stop, os.fstat(file.fileno()).st_size)  # Python takes the memory before it reads
        file.seek(start)
        return file.read(max(0, end - start))


def link_once(path: str, data: bytes) -> bool:
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


def replace(path: str, data: bytes) -> None:
    """Puts a whole file in place of whatever is there."""
    temporary = _write_temporary(path, data)
    try:
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise
    _sync_folder(path)


def has_links(folder: str) -> bool:
    """Whether `link_once` works in a folder: some network and USB file systems have no hard links."""
    temporary = _write_temporary(f"{folder}/probe", b"")
    linked = f"{temporary}.link"
    try:
        os.link(temporary, linked)
        os.unlink(linked)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE):
            raise
        return False
    finally:
        os.unlink(temporary)
    return True


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_temporary(path: str, data: bytes) -> str:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{os.path.dirname(path)}/.{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:  # a full disk above all, which this file would keep full
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    return temporary


def _sync_folder(path: str) -> None:
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
