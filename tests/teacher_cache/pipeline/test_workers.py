"""Two calls of one worker at a time: what goes on side by side, and what does not."""

import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from teacher_cache import units
from teacher_cache.format import attempts, manifest, shard
from teacher_cache.pipeline.executors import CALLS_PER_ACTOR
from teacher_cache.pipeline.workers import UnitWorker
from teacher_cache.storage.store import Store
from tests.caches import build_cache

VIEW = 1
"""Not built yet."""
UNIT_SEQUENCES = 8
PATIENCE_S = 60.0


@pytest.fixture
def cache(tmp_path: Path) -> str:
    return build_cache(tmp_path / "cache").url


def ask(cache: str, *asked: int) -> list[dict[str, Any]]:
    """Receipts of units that are given to one worker together."""
    worker = UnitWorker(url=cache, single_writer=False, batch_tokens=100, num_threads=1, on_gpu=False, run="run")
    with ThreadPoolExecutor(CALLS_PER_ACTOR) as pool:
        return list(pool.map(worker, [{"view": VIEW, "unit": unit, "repair": False} for unit in asked]))


def during(monkeypatch: pytest.MonkeyPatch, home: Any, name: str, work: Callable[[int, int], None]) -> None:
    """Calls `work` with the number of earlier calls and the unit, before each call of a function of a unit."""
    real, calls = getattr(home, name), itertools.count()

    def called(*arguments: Any, **named: Any) -> Any:
        rows = next(argument for argument in arguments if isinstance(argument, list))
        first = rows[0][0] if home is units else rows[0]
        work(next(calls), first.sequence_id // UNIT_SEQUENCES)
        return real(*arguments, **named)

    monkeypatch.setattr(home, name, called)


def test_a_unit_is_encoded_while_the_teacher_is_asked_about_the_next(
    cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2, timeout=PATIENCE_S)
    during(monkeypatch, shard, "encode_unit", lambda call, _: call == 0 and both.wait())
    during(monkeypatch, units, "ask_unit", lambda call, _: call == 1 and both.wait())
    assert [receipt["error"] for receipt in ask(cache, 0, 1)] == ["", ""]
    assert manifest.committed_units(Store(cache), VIEW) == {0, 1}


def test_a_unit_that_may_have_ended_a_process_has_the_next_one_to_itself(
    cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts.begin(Store(cache), view=VIEW, unit=0, run="dead")
    spans: list[tuple[float, float, int]] = []

    def work(_: int, unit: int) -> None:
        start = time.monotonic()
        time.sleep(0.1)
        spans.append((start, time.monotonic(), unit))

    during(monkeypatch, units, "ask_unit", work)
    during(monkeypatch, shard, "encode_unit", work)
    assert all(receipt["is_new"] for receipt in ask(cache, 1, 0, 2, 3, 4))
    begins, ends, _ = zip(*(span for span in spans if span[2] == 0), strict=True)
    others = [span for span in spans if span[2] != 0]
    assert len(begins) == 2
    assert len(others) == 8
    assert not [span for span in others if span[0] < max(ends) and span[1] > min(begins)]
