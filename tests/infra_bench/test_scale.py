"""The benchmark of many units, at few."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from infra.bench import scale, scale_steps
from infra.bench.scale import Figure
from infra.bench.scale_steps import Taken, made_shard
from teacher_cache.format import manifest
from teacher_cache.storage.store import Store

NUM_UNITS = 9
"""Enough for a global batch in mid-epoch."""


def figure(step: str, num_units: int, seconds: float, added_mb: float = 1.0) -> Figure:
    taken = Taken(seconds=seconds, cpu_s=seconds, start_mb=50.0, peak_mb=50.0 + added_mb)
    return Figure(step=step, num_units=num_units, taken=taken)


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> list[Figure]:
    folder = tmp_path_factory.mktemp("scale")
    return list(scale.measure(NUM_UNITS, folder, with_seal=True))


def test_every_step_is_measured_in_a_process_of_its_own(figures: list[Figure]) -> None:
    assert [figure.step for figure in figures] == list(scale.STEPS)
    for found in figures:
        assert found.taken.seconds > 0
        assert 10 < found.taken.start_mb <= found.taken.peak_mb < 1000


def test_what_is_sealed_is_what_was_committed(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    scale_steps.make_half(tmp_path, NUM_UNITS)
    assert manifest.committed_units(store, 0) == {0, 2, 4, 6, 8}
    scale_steps.make_rest(tmp_path, NUM_UNITS)
    scale_steps.seal(tmp_path, NUM_UNITS)
    assert list(manifest.read(store, 0).shards) == [made_shard(unit) for unit in range(NUM_UNITS)]


def test_memory_that_a_step_takes_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = scale_steps.memory_mb("VmHWM")
    monkeypatch.setitem(scale_steps.STEPS, "hungry", lambda folder, num_units: len(b"x" * num_units))
    taken = scale_steps.take("hungry", tmp_path, int(before + 200) * 2**20)
    assert taken.peak_mb - before > 150


def test_a_step_that_fails_ends_the_benchmark(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(scale.subprocess.CalledProcessError):
        scale.in_process("open_sealed", tmp_path, NUM_UNITS)
    assert "is no teacher cache" in capfd.readouterr().err


def test_growth_is_told_from_size_to_size() -> None:
    rows = [figure("open", 10, 1.0, 2.0), figure("open", 100, 9.0, 3.0), figure("open", 1000, 99.0, 33.0)]
    assert scale.ratios(rows) == {
        "open: CPU time, 100 against 10 units": 9.0,
        "open: memory, 100 against 10 units": 1.5,
        "open: CPU time, 1,000 against 100 units": 11.0,
        "open: memory, 1,000 against 100 units": 11.0,
    }
    assert set(scale.ratios([figure("plan", 10, 1e-4, 0.1), figure("plan", 100, 1e-3, 0.9)]).values()) == {1.0}
    assert "| 1.00 s, 52 MB (50) | 9.00 s, 53 MB (50) | 99.00 s, 83 MB (50) | 9.0, 1.5; 11.0, 11.0 |" in scale.render(
        rows, (10, 100, 1000)
    )


def test_a_sealing_that_would_take_too_long_is_left_out_and_said_so() -> None:
    rows = [figure("seal", 10, 2.0), figure("seal", 100, 21.0)]
    assert scale._seal_seconds([], 10) == 0
    assert scale._seal_seconds(rows, 1000) == pytest.approx(210)
    told = scale.render(rows, (10, 100, 1000))
    assert "left out" in told
    assert "Sealing 1,000 units was left out: it would take about 210 s." in told
    assert "left out:" not in scale.render(rows, (10, 100))


def test_json_names_the_bench_and_holds_every_figure(figures: list[Figure]) -> None:
    found = json.loads(json.dumps(scale.result(figures)))
    assert found.keys() == {"name", "ratios", "figures", "machine", "versions"}
    assert found["figures"][0] == {"step": "plan", "num_units": NUM_UNITS, **asdict(figures[0].taken)}
