"""Which students of a sweep go on, and what is left of them."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from student_train.run_folder import HeldOutReport, RunDescription, TrainSummary, write_records
from student_train.sources import describe
from student_train.sweep import records
from student_train.sweep.halving import REDUCTION, RUNGS, Rungs
from student_train.sweep.trials import Trial, trials
from teacher_cache.errors import UserError
from teacher_cache.storage.store import Store
from tests.student_train.report.records import write_run
from tests.student_train.sweep.sweeps import make_config

SCORES = st.lists(st.floats(allow_nan=False), min_size=1, max_size=30)


@given(SCORES, st.sampled_from(RUNGS))
def test_the_best_so_far_always_goes_on(scores, share):
    rungs = Rungs()
    for index, score in enumerate(scores):
        goes_on = rungs.goes_on(str(index), share=share, score=score)
        better = sum(other < score for other in scores[: index + 1])
        assert goes_on == (better < -(-(index + 1) // REDUCTION))
        assert goes_on or better > 0


@given(SCORES)
def test_a_student_is_judged_once_a_rung_and_never_at_its_end(scores):
    rungs = Rungs()
    for index, score in enumerate(scores):
        rungs.goes_on(str(index), share=0.2, score=score)
        assert rungs.goes_on(str(index), share=0.3, score=math.inf)
        assert rungs.goes_on(str(index), share=1.0, score=math.inf)
        assert rungs.goes_on(str(index), share=0.05, score=math.inf)
    assert list(rungs.scores[RUNGS[0]].values()) == scores
    assert not rungs.scores[RUNGS[1]]


# What is left of them


def make_trial(output: Path, **changes: Any) -> Trial:
    (trial,) = trials(make_config(output, {"seed": {"choose": [1]}}, **changes))
    return trial


def report_at(step: int, total: float) -> HeldOutReport:
    losses = {"total": total, "masked_lm": total}
    return HeldOutReport(step=step, seconds=step * 0.5, num_sequences=8, losses=losses, accuracy=0.25)


SUMMARY = TrainSummary(
    output="", model="", fingerprints=[], num_parameters=1, num_steps=12, num_workers=1, losses={},
    held_out={"total": 3.0, "accuracy": 0.5}, sequences_per_s=1.0, seconds=6.0,
)  # fmt: skip


def test_a_student_of_other_caches_is_no_part_of_a_sweep(default_cache, exact_cache, tmp_path):
    trial = make_trial(tmp_path, caches=[default_cache.url])
    write_run(trial.spec.output, cache=describe(default_cache, num_views=1))
    records.check_caches(trial)
    records.check_caches(replace(trial, spec=replace(trial.spec, caches=(str(tmp_path / "gone"),))))
    with pytest.raises(UserError, match="learned from other caches than"):
        records.check_caches(replace(trial, spec=replace(trial.spec, caches=(exact_cache.url,))))


def test_what_became_of_a_student_is_read_from_its_folder(tmp_path):
    trial = make_trial(tmp_path)
    store = Store(trial.spec.output)
    nothing = records.outcome(trial, error="it fell")
    assert (nothing.state, nothing.step, nothing.error) == ("failed", 0, "it fell")
    write_records(store, "held_out.jsonl", [report_at(1, 5.0), report_at(2, 4.0)])
    failed = records.outcome(trial)
    assert (failed.state, failed.step, failed.held_out["total"]) == ("failed", 2, 4.0)
    assert not records.has_ended(trial)
    write_records(store, "stopped.json", [report_at(4, 3.5)])
    stopped = records.outcome(trial)
    assert (stopped.state, stopped.step, stopped.seconds, stopped.error) == ("stopped early", 4, 2.0, None)
    assert records.has_ended(trial)
    write_records(store, "summary.json", [SUMMARY])
    assert (records.outcome(trial).state, records.outcome(trial).step) == ("finished", 12)


def test_rungs_are_rebuilt_from_folders(tmp_path):
    trial = make_trial(tmp_path)
    store = Store(trial.spec.output)
    description = RunDescription(
        spec={}, caches=[], model_type="", num_layers=1, width=1, num_parameters=1, num_steps=12, num_workers=1,
        device="cpu", versions={},
    )  # fmt: skip
    write_records(store, "run.json", [description])
    write_records(store, "held_out.jsonl", [report_at(1, 5.0), report_at(2, 4.0), report_at(3, 3.0)])
    write_records(store, "stopped.json", [report_at(4, 2.0)])
    rungs = records.recorded_rungs([trial], "total")
    assert rungs.scores == {RUNGS[0]: {trial.name: 4.0}, RUNGS[1]: {trial.name: 2.0}}


def test_the_best_come_first(tmp_path):
    trial = make_trial(tmp_path)
    write_records(Store(trial.spec.output), "summary.json", [SUMMARY])
    done = records.outcome(trial)
    others = [
        replace(done, name="nan", held_out={"total": math.nan, "accuracy": 0.9}),
        replace(done, name="good", held_out={"total": 1.0, "accuracy": 0.4}),
        replace(done, name="unknown", held_out={}),
        replace(done, name="failed", state="failed", held_out={"total": 0.1, "accuracy": 1.0}),
    ]
    by_total = [outcome.name for outcome in records.ranked([*others, done], "total")]
    assert by_total == ["good", done.name, "nan", "unknown", "failed"]
    by_accuracy = [outcome.name for outcome in records.ranked([*others, done], "accuracy")]
    assert by_accuracy == ["nan", done.name, "good", "unknown", "failed"]


def test_students_are_compared_by_what_means_the_same_for_all(tmp_path):
    assert records.criterion(trials(make_config())) == "total"
    assert records.criterion(trials(make_config("sweep", {"loss.temperature": {"choose": [1, 2]}}))) == "accuracy"
    for rows in ({"caches": {"choose": [["a"], ["b"]]}}, {"held_out_sequences": {"choose": [8, 9]}}):
        assert records.criterion(trials(make_config("sweep", rows))) == "nothing"
    done = records.outcome(make_trial(tmp_path))
    others = [
        replace(done, name=name, held_out={"total": total, "accuracy": total})
        for name, total in (("b", 1.0), ("a", 2.0))
    ]
    assert [outcome.name for outcome in records.ranked(others, "nothing")] == ["a", "b"]
    assert "sweep, not ranked, as other rows" in records.table(
        {"output": "sweep", "compared_by": "nothing", "trials": []}
    )
