"""Marks of attempts: counted by unit, void once their run is ended."""

from pathlib import Path

from teacher_cache.format import attempts
from teacher_cache.storage.store import Store

VIEW = 3


def begin(store: Store, unit: int, run: str) -> str:
    return attempts.begin(store, view=VIEW, unit=unit, run=run)


def test_marks_of_an_ended_run_do_not_count_even_when_they_come_later(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    other = begin(store, 5, "other")
    begin(store, 5, "ours")
    attempts.end(store, VIEW, "ours")
    begin(store, 5, "ours")
    begin(store, 6, "ours")
    assert attempts.marks(store, VIEW) == {5: [other]}


def test_a_units_marks_are_withdrawn_and_no_others(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    failed, kept = begin(store, 5, "run"), begin(store, 6, "run")
    begin(store, 5, "other")
    attempts.fail(store, failed, "no room")
    assert attempts.cause(store, failed) == "no room"
    attempts.withdraw(store, VIEW, 5)
    assert attempts.marks(store, VIEW) == {6: [kept]}
    assert attempts.cause(store, kept) is None


def test_marks_of_one_run_are_told_from_others(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    begin(store, 5, "other")
    ours = begin(store, 5, "ours")
    assert attempts.marks(store, VIEW, run="ours") == {5: [ours]}
