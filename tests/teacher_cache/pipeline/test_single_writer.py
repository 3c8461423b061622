"""Builders on a store that cannot say who was first."""

import time
from pathlib import Path

import pytest

from teacher_cache import UserError, build, open_cache
from teacher_cache.format import documents
from teacher_cache.pipeline import single_writer
from teacher_cache.pipeline.single_writer import CLAIM_KEY, STALE_S, writable
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


def test_a_builder_that_died_is_waited_for_and_then_followed(tmp_path: Path) -> None:
    claim(tmp_path, age_s=STALE_S - 10)
    message = r"\(elsewhere, process 1, last heard of (29\d|300) s ago\)"
    with pytest.raises(UserError, match=message), writable(str(tmp_path)):
        pass
    claim(tmp_path, age_s=STALE_S + 10)
    with writable(str(tmp_path)):
        pass


def test_of_two_claims_at_one_moment_the_last_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single_writer.time, "sleep", lambda _: claim(tmp_path, age_s=0))
    with pytest.raises(UserError, match=r"another builder claimed this cache at the same moment"):
        with writable(str(tmp_path)):
            pass
    assert Path(tmp_path, CLAIM_KEY).exists(), "the other's"


def test_a_builder_says_again_and_again_that_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single_writer, "BEAT_S", 0.01)
    with writable(str(tmp_path)):
        claim(tmp_path, age_s=STALE_S - 1)
        deadline = time.monotonic() + 10
        while b"elsewhere" in Path(tmp_path, CLAIM_KEY).read_bytes():
            assert time.monotonic() < deadline
            time.sleep(0.01)
