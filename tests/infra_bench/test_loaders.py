"""The benchmark of loaders: all contenders hand over what the cache holds, and a loader that did not would be seen."""

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from infra.bench import loaders
from infra.bench.loading import checks, payload
from infra.bench.loading.checks import MismatchError, check, check_places
from infra.bench.loading.contender import LAYER, Reading, arrays_of, in_batches, row_of
from infra.bench.loading.payload import Size
from infra.bench.loading.plan import Entry, Setting, entries
from infra.bench.loading.report import Findings, render, result
from infra.bench.loading.runs import Run
from student_train.batch import decode_hidden
from teacher_cache.format.cache import open_cache

SIZE = Size(num_sequences=256, sequence_length=64, hidden_size=64, vocab_size=200)
SETTING = Setting(storage="disk", is_shuffled=True, num_ranks=2)
RUN = Run(rows_per_s=100, steady_rows_per_s=200, undecoded_rows_per_s=300, first_batch_s=0.5, peak_bytes=2**20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With both caches."""
    folder = tmp_path_factory.mktemp("payload")
    payload.make_caches(folder, SIZE)
    return folder


def places(folder: Path, entry: Entry, copies: Path, *, is_shuffled: bool, num_ranks: int = 1) -> list[int]:
    """Of the rows that all ranks hand over, after a comparison."""
    found = []
    for rank in range(num_ranks):
        reading = Reading(
            source=str(folder / entry.folder), copies=copies, is_shuffled=is_shuffled, rank=rank, num_ranks=num_ranks
        )
        entry.contender.prepare(reading)
        epochs, coders = entry.contender.open_epochs(reading)
        batches = (decode_hidden(batch, coders, LAYER) for batch in epochs(0))
        found += check(batches, str(folder / "float16"), entry.tolerance)
    return found


@pytest.mark.parametrize("is_shuffled", [False, True])
@pytest.mark.parametrize("place", [0, 1])
def test_ours_hands_over_each_row_once(folder: Path, tmp_path: Path, place: int, is_shuffled: bool) -> None:
    entry = entries(())[0][place]
    found = places(folder, entry, tmp_path, is_shuffled=is_shuffled, num_ranks=2)
    check_places(found, SIZE.num_sequences)
    assert (found == sorted(found)) == (not is_shuffled)


@pytest.mark.parametrize("module", ["mosaic", "lit"])
@pytest.mark.parametrize("is_shuffled", [False, True])
def test_peers_hand_over_each_row_once(folder: Path, tmp_path: Path, module: str, is_shuffled: bool) -> None:
    found_peers, missing = entries((module,))
    if missing:
        pytest.skip(missing[0])
    entry = found_peers[-1]
    payload.write_peer(entry.contender, module, folder)
    found = places(folder, entry, tmp_path, is_shuffled=is_shuffled)
    check_places(found, SIZE.num_sequences)
    assert (found == sorted(found)) == (not is_shuffled)


def test_a_row_survives_how_peers_store_it(folder: Path) -> None:
    rows = list(open_cache(str(folder / "float16")).rows(stop=3))
    stored = [row_of(arrays_of(row)) for row in rows]
    assert check(in_batches(stored), str(folder / "float16"), 1e-6) == [0, 1, 2]
    assert [row.document_id for row in stored] == [row.document_id for row in rows]


@pytest.mark.parametrize("name", ["label_ids", "rates", "topk_ids", "topk_logits", "hidden"])
def test_a_wrong_value_is_seen(folder: Path, name: str) -> None:
    row = next(open_cache(str(folder / "float16")).rows(start=1))
    value: Any = {LAYER: -row.hidden[LAYER]} if name == "hidden" else getattr(row, name) + 1
    with pytest.raises(MismatchError, match="row 1 "):
        check(in_batches([replace(row, **{name: value})]), str(folder / "float16"), 0.05)


@pytest.mark.parametrize(("found", "message"), [([0, 1], "1 rows never came"), ([0, 1, 2, 2], "1 came twice")])
def test_a_row_that_is_missing_or_comes_twice_is_seen(found: list[int], message: str) -> None:
    with pytest.raises(checks.MismatchError, match=message):
        check_places(found, 3)


def test_ratios_are_ours_to_the_best_peers() -> None:
    found, _ = entries(())
    slow, fast = (Entry(name=name, module=name, folder=name) for name in ("mosaic", "lit"))
    findings = Findings(server="none", bytes_per_row={entry.name: 1.0 for entry in (*found, slow, fast)})
    for entry, factor in ((found[0], 6), (slow, 1), (fast, 2)):
        findings.runs[entry.name, SETTING] = [replace(RUN, rows_per_s=factor * n) for n in (10, 1, 2)]
    findings.failures[found[1].name, SETTING] = "a trace\nits error"
    told = result(findings, [*found, slow, fast], [SETTING], "loaders")
    assert told["ratios"]["disk, shuffled, 2 workers: rows/s, teacher-cache / best peer"] == 3
    assert not any("float16" in label for label in told["ratios"])
    assert "| teacher-cache, float16 | failed: its error |" in render(findings, [*found, slow, fast], [SETTING], [])


def test_what_is_not_installed_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("infra.bench.loading.lit"), "PACKAGE", "no-such-package")
    found, said = entries(("lit",))
    assert all(entry.is_ours for entry in found)
    (line,) = said
    assert line.startswith("LitData is left out: it is not installed (pip install litdata ")


@pytest.mark.slow
def test_a_quick_run_prints_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    loaders.main(["--quick", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told.keys() == {"name", "ratios", "figures", "machine", "versions"}
    assert told["figures"]["failures"] == {}
    assert told["figures"]["medians"].keys() == {"disk, in order, 1 worker", "S3, shuffled, 2 workers"}
