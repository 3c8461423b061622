"""Retention, its spread and averages: arithmetic on made-up results."""

from dataclasses import replace
from typing import Any

import pytest

from student_train.finetune.records import Teaching
from student_train.finetune.results import average
from student_train.worth.quality import notes_of, scores_of, taught_tasks
from tests.student_train.worth.records import write_results


def results_of(tmp_path, **scores: dict[str, Any]):
    return write_results(tmp_path, {name.replace("_", " "): by_task for name, by_task in scores.items()})


def test_retention_is_of_medians_and_its_spread_over_all_pairs_of_seeds(tmp_path):
    results = results_of(tmp_path, teacher={"A": (80, 100, 90)}, student={"A": (63, 72, 81)})
    score = scores_of(results, "student")["A"]
    assert (score.median, score.least, score.most, score.num_seeds) == (72, 63, 81, 3)
    assert score.retention == pytest.approx(80)
    assert score.retention_least == pytest.approx(63)
    assert score.retention_most == pytest.approx(100 * 81 / 80)


def test_a_reference_beside_itself_shows_the_luck_of_its_seeds(tmp_path):
    score = scores_of(results_of(tmp_path, teacher={"A": (80, 100, 90)}), "teacher")["A"]
    assert score.retention == 100
    assert (score.retention_least, score.retention_most) == (pytest.approx(80), pytest.approx(125))


@pytest.mark.parametrize("reference", [(0, 0, 0), (-5, -3, 4), (-1, 0, 0)])
def test_a_reference_at_or_below_zero_gives_no_ratio(tmp_path, reference):
    results = results_of(tmp_path, teacher={"A": reference}, student={"A": (10, 20, 30)})
    score = scores_of(results, "student")["A"]
    assert (score.retention, score.retention_least, score.retention_most) == (None, None, None)
    assert notes_of(results) == ["A: the reference's score is not above 0, so there is no retention"]


def test_one_bad_seed_of_the_reference_leaves_a_ratio_of_medians_without_a_spread(tmp_path):
    score = scores_of(results_of(tmp_path, teacher={"A": (-1, 50, 60)}, student={"A": (25, 25, 25)}), "student")["A"]
    assert score.retention == pytest.approx(50)
    assert (score.retention_least, score.retention_most) == (None, None)


def test_a_student_below_zero_keeps_less_than_nothing(tmp_path):
    score = scores_of(results_of(tmp_path, teacher={"A": (50, 50, 50)}, student={"A": (-5, -5, -5)}), "student")["A"]
    assert score.retention == pytest.approx(-10)


def test_a_task_that_is_missing_for_a_model_is_told_and_not_averaged(tmp_path):
    results = results_of(
        tmp_path,
        teacher={"A": (80, 80, 80), "B": (60, 60, 60)},
        whole={"A": (76, 76, 76), "B": (30, 30, 30)},
        part={"A": (40, 40, 40)},
    )
    whole, part = average(results, "whole"), average(results, "part")
    assert whole
    assert (whole.score, whole.retention) == (53, pytest.approx(100 * 53 / 70))
    assert part
    assert (part.tasks, part.score, part.retention) == (["A"], 40, pytest.approx(50))
    assert notes_of(results) == ["part has no score on B: its average is over the others"]


def test_what_the_reference_lacks_no_average_counts(tmp_path):
    results = results_of(
        tmp_path,
        teacher={"A": (80, 80, 80), "B": (None, None, None)},
        student={"A": (40, 40, 40), "B": (99, 99, 99)},
    )
    found = average(results, "student")
    assert found
    assert found.retention == pytest.approx(50)
    assert scores_of(results, "student")["B"].retention is None
    assert notes_of(results) == ["teacher has no score on B: no average counts these"]


def test_what_is_not_finished_is_told(tmp_path):
    results = results_of(tmp_path, teacher={"A": (80, 80, 80)}, student={"A": (70, 71, 72)})
    assert scores_of(results, "student")["A"].is_finished
    runs = [run for run in results.runs if (run.model, run.seed) != ("student", 3)]
    found = replace(results, runs=runs)
    assert not scores_of(found, "student")["A"].is_finished
    assert "student has runs yet to be made on A (1): its scores may still change" in notes_of(found)
    found = replace(results, lrs=[*results.lrs, 1e-4])
    assert [scores_of(found, name)["A"].is_finished for name in ("teacher", "student")] == [False, False]


def test_whose_word_a_model_had_is_told(tmp_path):
    results = results_of(
        tmp_path, teacher={"A": (80, 80, 80), "B": (80, 80, 80)}, student={"A": (7,) * 3, "B": (7,) * 3}
    )
    teaching = Teaching(fingerprint="a" * 64, temperature=2.0, soft_weight=0.5)
    is_taught = [(run.model, run.task) == ("student", "B") for run in results.runs]
    runs = [
        replace(run, taught=teaching if there else None) for run, there in zip(results.runs, is_taught, strict=True)
    ]
    found = replace(results, runs=runs)
    assert [taught_tasks(found, name) for name in ("teacher", "student")] == [[], ["B"]]
    assert notes_of(found) == ["student learned B from a fine-tuned teacher's cache, too"]


def test_seeds_that_diverged_are_told(tmp_path):
    results = results_of(tmp_path, teacher={"A": (80, 80, 80)}, student={"A": (70, None, 72)})
    score = scores_of(results, "student")["A"]
    assert (score.num_seeds, score.median) == (2, 71)
    assert notes_of(results) == ["student has fewer than 3 seeds on A (2)"]
