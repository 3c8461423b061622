"""Local copies: whole, bounded, and nobody else's."""

import errno
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from teacher_cache.errors import UserError
from teacher_cache.format import documents
from teacher_cache.storage.disk_cache import ABANDONED_S, IN_USE_S, SIZE_VARIABLE, DiskCache, default_folder

SIZE = 1000
CONTENTS = [bytes([65 + number]) * SIZE for number in range(6)]
DIGESTS = [documents.sha256(content) for content in CONTENTS]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "copies"


@pytest.fixture
def default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default folder, which is not there yet."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return default_folder()


def never() -> Iterator[bytes]:
    raise AssertionError("downloaded again")


def get(folder: Path, number: int) -> Path:
    """A copy that is downloaded if it is not there, by a process that knows nothing of others."""
    path = DiskCache(folder).get(DIGESTS[number], SIZE, lambda: iter([CONTENTS[number]]))
    assert path is not None
    return path


def age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]


def test_a_copy_is_downloaded_once(folder: Path) -> None:
    path = get(folder, 0)
    assert path.read_bytes() == CONTENTS[0]
    assert DiskCache(folder).get(DIGESTS[0], SIZE, never) == path


@pytest.mark.parametrize("damage", [b"", b"B" * SIZE, b"A" * (SIZE + 1)])
def test_a_damaged_copy_is_downloaded_again(folder: Path, damage: bytes) -> None:
    get(folder, 0).write_bytes(damage)
    assert get(folder, 0).read_bytes() == CONTENTS[0]


@pytest.mark.parametrize("wrong", [b"", b"B" * SIZE, b"A" * (SIZE - 1)])
def test_other_bytes_than_the_digest_names_are_not_kept(folder: Path, wrong: bytes) -> None:
    assert DiskCache(folder).get(DIGESTS[0], SIZE, lambda: iter([wrong])) is None
    assert files(folder) == []


def test_a_broken_download_leaves_nothing(folder: Path) -> None:
    def breaking() -> Iterator[bytes]:
        yield CONTENTS[0][:500]
        raise ConnectionError

    with pytest.raises(ConnectionError):
        DiskCache(folder).get(DIGESTS[0], SIZE, breaking)
    assert files(folder) == []


def test_the_copies_used_longest_ago_make_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SIZE_VARIABLE, str(3 * SIZE))
    paths = [get(folder, number) for number in range(3)]
    for number, path in enumerate(paths):
        age(path, 3600 - number)
    assert get(folder, 0) == paths[0], "so it is used last"
    get(folder, 3)
    assert [path.exists() for path in paths] == [True, False, True]
    get(folder, 4)
    assert [path.exists() for path in paths] == [True, False, False]


def test_a_copy_in_use_stays_although_the_bound_is_passed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SIZE_VARIABLE, "0")
    paths = [get(folder, number) for number in range(2)]
    assert all(path.exists() for path in paths)
    age(paths[0], IN_USE_S + 1)
    with paths[0].open("rb") as file:
        get(folder, 2)
        assert not paths[0].exists()
        assert file.read() == CONTENTS[0], "an open file outlives its name"


def test_touching_a_copy_tells_whether_it_is_there(folder: Path) -> None:
    path = get(folder, 0)
    age(path, 3600)
    assert DiskCache(folder).touch(path)
    assert time.time() - path.stat().st_mtime < 60
    path.unlink()
    assert not DiskCache(folder).touch(path)


def test_a_dead_process_s_download_is_deleted_after_a_day(folder: Path) -> None:
    parent = get(folder, 0).parent
    dead, alive = parent / f"{DIGESTS[0]}.dead.partial", parent / f"{DIGESTS[0]}.alive.partial"
    for path, seconds in ((dead, ABANDONED_S + 60), (alive, ABANDONED_S - 60)):
        path.touch()
        age(path, seconds)
    get(folder, 1)
    assert (dead.exists(), alive.exists()) == (False, True)


def test_files_that_are_no_copies_are_never_deleted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SIZE_VARIABLE, "0")
    other = folder / "teacher-0123" / "model.safetensors"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"x" * SIZE)
    age(other, 3600)
    get(folder, 0)
    assert other.exists()


@pytest.mark.parametrize("value", ["", "10 GB", "-1", "1.5"])
def test_a_bound_that_is_no_number_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(SIZE_VARIABLE, value)
    with pytest.raises(UserError, match=f"TEACHER_CACHE_DISK_BYTES is '{value}'; give a number of bytes"):
        get(folder, 0)


def fetch_slowly(folder: Path, log: Path) -> None:
    def download() -> Iterator[bytes]:
        with log.open("a") as file:
            file.write("downloaded\n")
        time.sleep(0.3)
        yield CONTENTS[0]

    path = DiskCache(folder).get(DIGESTS[0], SIZE, download)
    assert path is not None
    assert path.read_bytes() == CONTENTS[0]


def test_processes_that_want_an_object_at_once_download_it_once(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=fetch_slowly, args=(folder, log)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    assert log.read_text() == "downloaded\n"


def test_a_process_killed_in_a_download_leaves_no_copy_and_no_lock(folder: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from teacher_cache.storage.disk_cache import DiskCache
def download():
    yield b"A" * 500
    os.kill(os.getpid(), signal.SIGKILL)
DiskCache({str(folder)!r}).get({DIGESTS[0]!r}, {SIZE}, download)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    assert [path.suffix for path in files(folder)] == [".partial"]
    assert get(folder, 0).read_bytes() == CONTENTS[0]


def test_a_full_disk_is_one_clear_message(folder: Path) -> None:
    def download() -> Iterator[bytes]:
        yield CONTENTS[0][:500]
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match=rf"{folder} is full .*free space there.*{SIZE_VARIABLE}.*TMPDIR"):
        DiskCache(folder).get(DIGESTS[0], SIZE, download)
    assert files(folder) == []


def test_the_default_folder_is_made_for_its_user_alone(default: Path) -> None:
    assert DiskCache().get(DIGESTS[0], SIZE, lambda: iter([CONTENTS[0]])) == default / DIGESTS[0][:2] / DIGESTS[0]
    assert default.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("plant", ["writable", "link", "stranger"])
def test_a_default_folder_that_another_could_change_is_refused(default: Path, plant: str) -> None:
    if plant == "stranger":
        if os.getuid():
            pytest.skip("only root gives folders away")
        default.mkdir(mode=0o700)
        os.chown(default, 65534, 65534)
    elif plant == "writable":
        default.mkdir()
        default.chmod(0o770)
    else:
        (default.parent / "elsewhere").mkdir(mode=0o700)
        default.symlink_to(default.parent / "elsewhere")
    with pytest.raises(UserError, match=rf"{default}, .* is not a folder that this user alone may write.*TMPDIR"):
        DiskCache().get(DIGESTS[0], SIZE, lambda: iter([CONTENTS[0]]))
