"""A run's records, however many, become a few points and a word on how the run went."""

import math

import pytest

from student_train.report.students import MAX_POINTS, curve, student_of, thin, trouble
from student_train.run_folder import StepReport, read_run
from teacher_cache.storage.store import Store
from tests.student_train.report import records


def steps_with(totals: list[float]) -> list[StepReport]:
    return [records.step_report(step, len(totals), total=total) for step, total in enumerate(totals, start=1)]


@pytest.mark.parametrize("num_steps", [1, 499, 500, 501, 1000, 100_003])
def test_a_curve_has_few_points_and_ends_at_the_last_step(num_steps):
    points = curve(steps_with([1.0] * num_steps))
    assert min(num_steps, MAX_POINTS / 2) <= len(points) <= MAX_POINTS
    assert points[-1].step == num_steps
    assert all(point.loss == 1.0 for point in points)


def test_a_point_is_the_mean_of_its_steps():
    points = curve(steps_with([float(step % 2) for step in range(2 * MAX_POINTS)]))
    assert [point.loss for point in points] == [0.5] * MAX_POINTS


def test_a_point_of_a_loss_that_is_not_finite_is_not_finite():
    totals = [1.0] * 2 * MAX_POINTS
    totals[4] = math.nan
    assert [place for place, point in enumerate(curve(steps_with(totals))) if math.isnan(point.loss)] == [2]


def test_reports_are_thinned_with_the_newest_among_them():
    reports = [records.held_out_report(step) for step in steps_with([1.0] * 1203)]
    kept = thin(reports)
    assert len(kept) <= MAX_POINTS
    assert kept[-1] == reports[-1]
    assert [report.step for report in kept] == sorted(report.step for report in kept)
    assert thin([]) == []


@pytest.mark.parametrize(
    ("totals", "said"),
    [
        ([], ""),
        ([5.0, 9.0], ""),
        ([9.0 - step / 100 for step in range(400)], ""),
        ([9.0] * 50 + [5.0] * 100 + [5.5] * 50, ""),
        ([5.0, math.inf, 5.0], "a loss of step 2 is not finite"),
        ([9.0] * 50 + [5.0] * 100 + [7.0] * 50, "the training loss rose again, from 5 to 7"),
    ],
)
def test_what_counts_as_diverged(totals, said):
    assert trouble(steps_with(totals), []) == said


def test_a_run_before_its_first_step(tmp_path):
    records.write_run(tmp_path, num_steps_done=0)
    student = student_of(read_run(Store(str(tmp_path))), "new")
    assert (student.num_steps_done, student.losses, student.tokens_per_s, student.seconds) == (0, {}, None, 0)
    assert (student.curve, student.newest, student.state) == ((), None, "unfinished")


def test_speed_is_the_median_of_the_steps(tmp_path):
    records.write_run(tmp_path, num_steps=5, step_s=2.0)
    student = student_of(read_run(Store(str(tmp_path))), "a")
    assert student.tokens_per_s == records.TOKENS_PER_STEP / 2
    assert student.seconds == 10
    assert student.state == "finished"
