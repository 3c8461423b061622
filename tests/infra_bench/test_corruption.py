"""Damaged caches: what the benchmark of damages finds, and that it would find a fault."""

import os
from pathlib import Path

import pytest

from infra.bench import corruption
from infra.bench.corruption import Damage, Outcome, judge
from infra.bench.damaged_reading import Kind
from infra.bench.sandbox import Died, in_sandbox
from teacher_cache.errors import UserError


def test_no_damage_is_silent_or_a_crash_and_every_message_names_file_and_remedy() -> None:
    faults = []

    def found(damage: Damage, outcome: Outcome) -> None:
        seen.add(damage.kind.name)
        if outcome.name in corruption.FAULTS:
            faults.append((str(damage), outcome.name, outcome.said))

    seen: set[str] = set()
    corruption.run(500, seed=1, found=found)
    assert faults == []
    assert len(seen) == 25


def damage(folder: Path, read: object, *, bit: int | None = 0, is_checked: bool = True) -> Damage:
    """To the middle byte of a file `key` of three."""
    (folder / "key").write_bytes(b"abc")
    kind = Kind(name="kind", folder=folder, keys=["key"], read=read, is_checked=is_checked)  # type: ignore[arg-type]
    return Damage(kind=kind, key="key", place=1, bit=bit)


@pytest.mark.parametrize(
    ("message", "name"),
    [
        ("key is damaged; run `teacher-cache verify url`", "refused"),
        ("key is damaged", "vague"),
        ("something is damaged; run `teacher-cache verify url`", "vague"),
    ],
)
def test_a_message_must_name_file_and_remedy(tmp_path: Path, message: str, name: str) -> None:
    def read(key: str) -> None:
        raise UserError(message)

    assert judge(damage(tmp_path, read), b"abc").name == name


def test_other_data_are_silent_where_digests_are_checked(tmp_path: Path) -> None:
    def read(key: str) -> bytes:
        return (tmp_path / key).read_bytes()

    assert judge(damage(tmp_path, read), b"abc").name == "silent"
    assert judge(damage(tmp_path, read, is_checked=False), b"abc").name == "read"
    assert judge(damage(tmp_path, lambda key: b"abc"), b"abc").name == "harmless"
    assert judge(damage(tmp_path, lambda key: int(key)), b"abc").name == "crash"


@pytest.mark.parametrize(("bit", "expected"), [(0, b"acc"), (7, b"a\xe2c"), (None, b"a")])
def test_a_damage_changes_one_bit_or_cuts_and_is_mended(tmp_path: Path, bit: int | None, expected: bytes) -> None:
    found = []
    judge(damage(tmp_path, lambda key: found.append((tmp_path / key).read_bytes()), bit=bit), None)
    assert found == [expected]
    assert (tmp_path / "key").read_bytes() == b"abc"


def test_a_process_that_dies_is_told_of_and_another_goes_on() -> None:
    def work(item: int) -> int:
        if item == 1:
            os._exit(3)
        return 10 * item

    first, second, third = in_sandbox([0, 1, 2], work)
    assert (first, third) == (0, 20)
    assert isinstance(second, Died)


def test_a_process_that_takes_too_much_memory_fails() -> None:
    def work(item: int) -> str:
        try:
            return f"{len(bytes(item))} bytes"
        except MemoryError:
            return "too much"

    assert list(in_sandbox([1000, 2**28], work, max_bytes=2**26)) == ["1000 bytes", "too much"]
