"""Builders on a store that cannot say who was first."""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from teacher_cache import UserError, build, open_cache
from teacher_cache.format import documents
from teacher_cache.pipeline import single_writer
from teacher_cache.pipeline.single_writer import CLAIM_KEY, STALE_S, writable
from teacher_cache.storage import probe
from teacher_cache.storage.store import Store
from teacher_cache.verify import verify
from tests.caches import make_spec


@pytest.fixture(autouse=True)
def weak_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """What such a store looks like to the probe is the probe's own test."""
    monkeypatch.setattr(single_writer, "probe", lambda _: False)
    monkeypatch.setattr(single_writer, "SETTLE_S", 0.0)


def claim(folder: Path, *, age_s: float) -> None:
    told = {"owner": "another", "host": "elsewhere", "process": 1, "time": int(time.time() - age_s)}
    Store(str(folder)).replace(CLAIM_KEY, documents.dump(told))


def test_the_cache_is_the_one_that_a_strong_store_gets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weak, strong = make_spec(tmp_path / "weak", views=2), make_spec(tmp_path / "strong", views=2)
    assert build(weak, progress=False).num_units_built == 10
    monkeypatch.setattr(single_writer, "probe", lambda _: True)
    build(strong, progress=False)
    for view in (0, 1):
        assert open_cache(weak.cache).manifest(view).shards[:] == open_cache(strong.cache).manifest(view).shards[:]
    assert verify(open_cache(weak.cache)).ok
    assert not Path(weak.cache, CLAIM_KEY).exists()
    assert not list(Path(weak.cache).glob("attempts/*/*.json"))


def test_a_file_system_without_hard_links_can_be_built_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(single_writer, "probe", probe.probe)
    spec = make_spec(tmp_path / "cache", views=2)
    assert build(spec, progress=False).num_units_built == 10
    assert verify(open_cache(spec.cache)).ok


def test_the_user_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with writable(str(tmp_path)) as store:
        assert store.single_writer
    assert f"{tmp_path}: this store does not refuse to create what exists" in capsys.readouterr().err


def test_a_second_builder_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    message = r"another builder is at work \(.*, process \d+, last heard of \d s ago\)"
    with writable(str(tmp_path)), pytest.raises(UserError, match=message), writable(str(tmp_path)):
        pass
    with writable(str(tmp_path)):
        pass


def test_a_builder_that_died_is_waited_for_and_then_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single_writer, "BEAT_S", 0.01)
    claim(tmp_path, age_s=STALE_S - 10)
    message = r"\(elsewhere, process 1, last heard of (29\d|300) s ago\)"
    with pytest.raises(UserError, match=message), writable(str(tmp_path)):
        pass
    for age_s in (STALE_S + 10, -3600):
        claim(tmp_path, age_s=age_s)
        with writable(str(tmp_path)):
            pass


@pytest.mark.parametrize("age_s", [STALE_S + 10, -3600])
def test_a_builder_that_lives_by_another_clock_is_not_taken_for_dead(
    age_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single_writer.time, "sleep", lambda _: claim(tmp_path, age_s=age_s - 30))
    claim(tmp_path, age_s=age_s)
    with pytest.raises(UserError, match=r"another builder is at work \(elsewhere"), writable(str(tmp_path)):
        pass


def test_of_two_claims_at_one_moment_the_last_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single_writer.time, "sleep", lambda _: claim(tmp_path, age_s=0))
    with pytest.raises(UserError, match=r"another builder claimed this cache at the same moment"):
        with writable(str(tmp_path)):
            pass
    assert Path(tmp_path, CLAIM_KEY).exists(), "the other's"


def test_a_builder_says_again_and_again_that_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single_writer, "BEAT_S", 0.01)
    with writable(str(tmp_path)) as store:
        first = Path(tmp_path, CLAIM_KEY).stat().st_mtime_ns
        wait_until(lambda: Path(tmp_path, CLAIM_KEY).stat().st_mtime_ns > first)
        assert store.create("a", b"1")


def test_a_builder_that_was_taken_for_dead_creates_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single_writer, "BEAT_S", 0.01)
    with writable(str(tmp_path)) as store:
        claim(tmp_path, age_s=0)
        wait_until(lambda: store.refuse_creation)
        with pytest.raises(UserError, match="another builder took this one for dead"):
            store.create("a", b"1")
    assert Path(tmp_path, CLAIM_KEY).exists(), "the other's"


def test_an_interrupt_at_once_leaves_no_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(single_writer.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt), writable(str(tmp_path)):
        pass
    assert not Path(tmp_path, CLAIM_KEY).exists()


def wait_until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
