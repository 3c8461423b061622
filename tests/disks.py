"""Small disks: real file systems that are soon full."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, *, num_kib: int) -> Iterator[Path]:
    """A file system of its own in `folder`; skips where this user may not mount one."""
    folder.mkdir()
    if os.getuid() or _mount("-t", "tmpfs", "-o", f"size={num_kib}k", "tmpfs", str(folder)):
        pytest.skip("needs root who may mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def grow(folder: Path, *, num_kib: int) -> None:
    assert not _mount("-o", f"remount,size={num_kib}k", str(folder))


def _mount(*arguments: str) -> int:
    return subprocess.run(["mount", *arguments], check=False).returncode
