"""What the figures of a worth show."""

import pytest

from student_train.worth.figures import figures
from student_train.worth.worth import make_worth
from tests.student_train.worth.records import SCORES, speeds, write_results


def test_retention_by_task_has_a_point_and_a_span_for_each_student(tmp_path):
    by_task, *_ = figures(make_worth(str(tmp_path), write_results(tmp_path), None))
    assert by_task.x_names == ("CoLA", "SST-2", "STS-B", "RTE")
    assert [series.name for series in by_task.series] == ["six layers", "three layers"]
    assert by_task.series[0].ys[0] == pytest.approx(51 / 57)
    assert by_task.series[0].y_spans[0] == (pytest.approx(50 / 58), pytest.approx(52 / 56))
    assert [round(x) for x in by_task.series[0].xs] == [0, 1, 2, 3]
    assert by_task.series[0].xs[0] < by_task.series[1].xs[0], "side by side"


def test_average_retention_stands_against_what_it_costs(tmp_path):
    _, size, latency = figures(make_worth(str(tmp_path), write_results(tmp_path), speeds()))
    assert [series.xs[0] for series in size.series] == [109_482_240, 66_362_880, 45_099_264]
    assert [series.ys[0] for series in size.series][:2] == [1, pytest.approx(72.25 / 77)]
    assert [series.xs[0] for series in latency.series] == [80, 40, 20]
    assert latency.x_label == "ms on CPU, 1 × 128 tokens"


def test_an_average_over_fewer_tasks_is_hollow(tmp_path):
    scores = SCORES | {"six layers": {"SST-2": (91, 91, 92)}}
    _, size = figures(make_worth(str(tmp_path), write_results(tmp_path, scores), None))
    assert [series.is_sound for series in size.series] == [True, False, True]
    scores = SCORES | {"teacher": {name: values for name, values in SCORES["teacher"].items() if name != "RTE"}}
    lacking = write_results(
        tmp_path / "lacking", {name: scores[name] for name in ("six layers", "teacher")}, reference="teacher"
    )
    assert [series.is_sound for series in figures(make_worth("", lacking, None))[1].series] == [False, False]


def test_what_would_be_empty_is_left_out(tmp_path):
    assert figures(make_worth(str(tmp_path / "alone"), write_results(tmp_path, {"t": {"A": (1, 1, 1)}}), None)) == []
    negative = write_results(tmp_path / "negative", {"t": {"A": (-1, -1, -1)}, "s": {"A": (5, 5, 5)}})
    assert figures(make_worth(str(tmp_path), negative, speeds(["t", "s"]))) == []
