"""What a run leaves behind, and what `compare` and `report` make of it."""

import json
from pathlib import Path

import pytest

from student_train import cli
from student_train.config import StudentSpec
from student_train.launch import train
from student_train.run_folder import TrainSummary, read_run
from student_train.worker import run_worker
from teacher_cache.shell.settings import parse, to_dict
from teacher_cache.storage.store import Store
from tests.student_train import runs

EXECUTION = runs.make_execution(checkpoint_steps=3, evaluation_steps=2)


@pytest.fixture(scope="module")
def finished(default_cache, tmp_path_factory) -> dict[str, TrainSummary]:
    """Two runs on the same rows, by output."""
    folder = tmp_path_factory.mktemp("runs")
    found = {}
    for name, layers in (("small", 1), ("large", 3)):
        spec = runs.make_spec(
            default_cache,
            folder / name,
            steps=5,
            held_out_sequences=10,
            student={"num_layers": layers, "dropout": 0.0},
            execution=EXECUTION,
        )
        found[str(folder / name)] = train(spec)
    return found


def test_records_tell_what_the_run_was_and_did(finished, default_cache):
    for output, summary in finished.items():
        run = read_run(Store(output))
        assert run.summary == summary
        assert run.diverged == []
        assert [report.step for report in run.steps] == [1, 2, 3, 4, 5]
        assert [report.step for report in run.held_out] == [2, 4, 5]
        assert all(report.num_sequences == 10 for report in run.held_out)
        last = run.held_out[-1]
        assert summary.held_out == last.losses | {"accuracy": last.accuracy}
        told = run.description
        assert (told.num_steps, told.num_workers, told.device) == (5, 1, "cpu")
        assert told.num_parameters == summary.num_parameters
        (cache,) = told.caches
        assert (cache.fingerprint, cache.num_views, cache.num_sequences) == (default_cache.fingerprint, 2, 50)
        assert cache.num_tokens == sum(len(row.input_ids) for row in default_cache.rows())
        assert cache.num_kept == sum(len(row.kept_positions) for row in default_cache.rows())


def test_an_unfinished_run_has_its_records_up_to_its_checkpoint(default_cache, tmp_path):
    spec = runs.make_spec(default_cache, tmp_path, steps=5, held_out_sequences=10, execution=EXECUTION)

    def kill(_: object) -> None:
        raise runs.KilledError

    with pytest.raises(runs.KilledError):
        run_worker(spec, device=runs.CPU, show=runs.ignore, on_checkpoint=kill)
    run = read_run(Store(str(tmp_path)))
    assert run.summary is None
    assert ([report.step for report in run.steps], [report.step for report in run.held_out]) == ([1, 2, 3], [2])
    train(spec)
    run = read_run(Store(str(tmp_path)))
    assert [report.step for report in run.steps] == [1, 2, 3, 4, 5]
    assert [report.step for report in run.held_out] == [2, 4, 5]


def test_a_run_is_repeated_from_its_description(finished):
    for output in finished:
        spec = read_run(Store(output)).description.spec
        assert spec["output"] == output
        assert spec["held_out_sequences"] == 10
        assert to_dict(parse(StudentSpec, spec)) == spec


def test_compare_tells_the_runs_apart(finished, capsys):
    assert cli.main(["compare", *finished, "--json"]) == 0
    text = capsys.readouterr().out
    found = json.loads(text)
    for output, summary in finished.items():
        assert Path(output).name in text
        assert str(summary.num_parameters) in text
        assert repr(summary.held_out["masked_lm"]) in text
    assert "num_layers" in json.dumps(found)
    assert cli.main(["compare", str(Path(next(iter(finished))).parent)]) == 0
    table = capsys.readouterr().out
    assert "small" in table
    assert "large" in table


def test_report_is_a_page_of_the_runs(finished, tmp_path, capsys):
    page = tmp_path / "report.html"
    assert cli.main(["report", *finished, "--output", str(page)]) == 0
    html = page.read_text()
    assert html.startswith("<!DOCTYPE html>")
    assert all(Path(output).name in html for output in finished)
    assert "diverged" not in capsys.readouterr().err
