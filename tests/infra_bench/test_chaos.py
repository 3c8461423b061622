"""The kill test's checks see what they are there to see; and a short run of it."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from infra.bench import chaos
from infra.bench.chaos_checks import Ledger, all_rows, num_committed, num_duplicates, num_mismatches
from teacher_cache import open_cache
from teacher_cache.format.cache import Cache
from teacher_cache.format.manifest import add_generation
from teacher_cache.shell.settings import to_dict
from tests.caches import build_cache, make_spec

NUM_UNITS = 5


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return build_cache(tmp_path / "cache")


@pytest.mark.parametrize("pattern", ["spec.json", "codebook.safetensors", "commits/00000/*", "manifests/*"])
def test_a_ledger_sees_what_is_changed_and_what_is_gone(cache: Cache, pattern: str) -> None:
    folder = Path(cache.url)
    ledger = Ledger(folder)
    assert ledger.changed() == ledger.changed() == []
    path = sorted(folder.glob(pattern))[0]
    before = path.read_bytes()
    path.write_bytes(before + b" ")
    assert ledger.changed() == [str(path.relative_to(folder))]
    path.unlink()
    assert ledger.changed() == [str(path.relative_to(folder))]
    path.write_bytes(before)
    assert ledger.changed() == []


def test_a_ledger_lets_objects_come(cache: Cache) -> None:
    folder = Path(cache.url)
    commit = folder / "commits/00000/000000003.json"
    before = commit.read_bytes()
    commit.unlink()
    ledger = Ledger(folder)
    assert ledger.changed() == []
    commit.write_bytes(before)
    assert ledger.changed() == []
    assert num_committed(folder, 1) == NUM_UNITS


def test_units_that_are_not_listed_as_committed_are_counted(cache: Cache) -> None:
    assert num_duplicates(cache, NUM_UNITS) == 0
    assert num_duplicates(cache, NUM_UNITS - 1) == 1, "one unit too many is listed"
    sealed = cache.manifest(0)
    add_generation(cache.store, sealed, {2: replace(sealed.shards[2], num_kept=1)})
    assert num_duplicates(open_cache(cache.url), NUM_UNITS) == 1


def test_one_value_makes_a_row_another(cache: Cache) -> None:
    rows = all_rows(cache)
    assert num_mismatches(rows, all_rows(open_cache(cache.url))) == 0
    assert num_mismatches(rows[:-1], rows) == num_mismatches(rows, rows[:-1]) == 1
    row = rows[3]
    for other in (
        replace(row, document_id=row.document_id + 1),
        replace(row, topk_logits=np.nextafter(row.topk_logits, np.float32(99))),
        replace(row, hidden={-1: np.nextafter(row.hidden[-1], np.float32(99))}),
        replace(row, hidden={}),
    ):
        assert num_mismatches([*rows[:3], other, *rows[4:]], rows) == 1


def test_what_must_be_zero_decides() -> None:
    good = chaos.Counts(sealed=1)
    assert good.ok
    for name in ("duplicates", "mismatches", "recomputed", "changed", "unverified", "stuck", "unprovoked"):
        wrong: dict[str, Any] = {name: 1}
        assert not replace(good, **wrong).ok
    assert not chaos.Counts().ok, "nothing was tried"


def test_counts_are_told_by_name() -> None:
    counts = chaos.Counts(kills=Counter(driver=2, actor=3), ends=Counter({"gcs killed, status 1": 4}))
    told = json.loads(chaos.render(counts, as_json=True))
    assert (told["kills"], told["ends"], told["stuck"]) == ({"driver": 2, "actor": 3}, {"gcs killed, status 1": 4}, 0)
    lines = chaos.render(counts, as_json=False)
    assert "5: actor 3, driver 2" in lines
    assert "  4 x gcs killed, status 1\nNOT ok" in lines


def test_a_killed_build_leaves_no_process_and_goes_on(tmp_path: Path) -> None:
    spec = make_spec(tmp_path / "cache")
    configuration = tmp_path / "cache.json"
    configuration.write_text(json.dumps(to_dict(spec)))
    killed = chaos.start_build(configuration)
    driver = psutil.Process(killed._driver.pid)
    assert killed.kill("driver", 60, chaos.random.Random(0))
    killed.close()
    assert not driver.is_running()
    assert killed.summary() is None
    assert not killed._folder.exists()
    build = chaos.start_build(configuration)
    try:
        assert build.wait(120)
        summary = build.summary()
    finally:
        build.close()
    assert summary is not None
    assert summary["num_units_built"] == NUM_UNITS


@pytest.mark.ray
def test_builds_come_to_the_same_end_through_kills(capsys: pytest.CaptureFixture[str]) -> None:
    assert chaos.main(["--quick", "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert sum(counts["kills"].values()) >= 2
    assert counts["sealed"] >= 1
