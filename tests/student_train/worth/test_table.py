"""A worth for people: a terminal, Markdown."""

from dataclasses import asdict, replace

import pytest

from student_train.finetune.records import read_results, write
from student_train.worth.records import CacheCost, Cost, ModelWorth, Worth
from student_train.worth.table import headlines, markdown, render, tables
from student_train.worth.worth import make_worth
from teacher_cache.storage.store import Store
from tests.student_train.finetune.made import task_of
from tests.student_train.worth.records import SCORES, speeds, write_results

COST = Cost(
    training_s=7260.0,
    num_workers=4,
    device="NVIDIA H200",
    num_steps=3000,
    num_tokens=1_500_000_000,
    caches=[CacheCost(url="cache", teacher="teacher", num_views=3, num_bytes=400_000_000_000, teacher_s=128_000.0)],
)


@pytest.fixture
def worth(tmp_path) -> Worth:
    return make_worth(str(tmp_path), write_results(tmp_path), speeds())


def cells(worth: Worth, title: str, model: str) -> list[str]:
    table = next(table for table in tables(worth) if table.title.startswith(title))
    return next(row for row in table.rows if row[0] == model)[1:]


def with_model(worth: Worth, place: int, **changes) -> Worth:
    models: list[ModelWorth] = list(worth.models)
    models[place] = replace(models[place], **changes)
    return replace(worth, models=models)


def test_scores_and_retention_stand_beside_each_other(worth):
    assert cells(worth, "Scores", "teacher") == [
        "57.0 (56.0 to 58.0)",
        "93.0 (92.0 to 94.0)",
        "89.0 (88.0 to 90.0)",
        "69.0 (68.0 to 70.0)",
        "77.0",
    ]
    assert cells(worth, "Retention", "six layers")[0] == f"{5100 / 57:.1f} ({5000 / 58:.1f} to {5200 / 56:.1f})"
    assert cells(worth, "Retention", "six layers")[-1] == f"{100 * 72.25 / 77:.1f}"
    assert [row[0] for row in tables(worth)[1].rows] == ["six layers", "three layers"]


def test_each_student_has_a_sentence(worth, tmp_path):
    sentence = "six layers keeps 93.8 % of teacher's average score with 39 % fewer parameters"
    assert headlines(worth)[0] == f"{sentence}, 2.00 times as fast on CPU (1 × 128 tokens)"
    assert sentence in render(asdict(worth))
    assert sentence in markdown(worth)
    negative = write_results(tmp_path / "negative", {"three layers": {"A": (-1, -1, -1)}, "teacher": {"A": (5, 5, 5)}})
    assert headlines(make_worth("", negative, None)) == ["teacher has no average score to hold against three layers's"]


def test_a_sentence_says_over_how_many_tasks_and_whether_it_may_change(tmp_path):
    scores = SCORES | {"six layers": {"SST-2": (91, 91, 92)}, "three layers": {"SST-2": (86, 87, 88)}}
    results = write_results(tmp_path, scores)
    six, three = headlines(make_worth(str(tmp_path), results, None))
    assert six.startswith("six layers keeps 97.8 % of teacher's average score (1 of 4 tasks) with")
    runs = [run for run in results.runs if (run.model, run.seed) != ("three layers", 3)]
    _, three = headlines(make_worth(str(tmp_path), replace(results, runs=runs), None))
    assert three.startswith("three layers so far keeps 93.0 % of")


def test_sizes_are_told_beside_the_reference(worth):
    assert cells(worth, "Size", "six layers") == ["6 × 768", "66,362,880", "60.6%", "265.5 MB"]


def test_each_device_and_dtype_has_its_speeds(worth):
    assert cells(worth, "Speed on AMD EPYC, 2 threads, float32", "teacher") == ["80", "1.00", "12.5", "1.00"]
    assert cells(worth, "Speed on AMD EPYC", "three layers")[:2] == ["20", "4.00 (3.98 to 4.02)"]
    assert cells(worth, "Speed on NVIDIA H200, bfloat16", "six layers") == ["25", "2.00 (1.98 to 2.02)"]
    assert "Load of the machine before: 0.02 a core." in render(asdict(worth))


def test_a_loaded_machine_is_told(tmp_path):
    text = render(asdict(make_worth(str(tmp_path), write_results(tmp_path), speeds(load_per_core=0.9))))
    assert "Load of the machine before: 0.90 a core; other work ran beside, and nothing here is promised." in text
    assert "times as fast" not in text


def test_costs_are_told_as_far_as_they_are_known(worth):
    found = with_model(worth, 1, cost=COST)
    assert cells(found, "What it took", "six layers") == [
        "2 h 1 min",
        "4 × NVIDIA H200",
        "3,000",
        "1,500,000,000",
        "400 GB",
        "1 d 11 h",
    ]
    assert cells(found, "What it took", "three layers") == ["unknown", "-", "-", "-", "-", "-"]
    unknown = replace(COST, caches=[*COST.caches, replace(COST.caches[0], teacher_s=None)])
    assert cells(with_model(worth, 1, cost=unknown), "What it took", "six layers")[-2:] == ["800 GB", "unknown"]


def test_an_average_over_fewer_tasks_says_so(tmp_path):
    scores = SCORES | {"six layers": {"SST-2": (91, 91, 92)}}
    worth = make_worth(str(tmp_path), write_results(tmp_path, scores), None)
    assert cells(worth, "Scores", "six layers") == ["-", "91.0 (91.0 to 92.0)", "-", "-", "91.0 (1 of 4 tasks)"]
    assert cells(worth, "Retention", "six layers")[-1] == f"{9100 / 93:.1f} (1 of 4 tasks)"
    text = render(asdict(worth))
    assert "note: six layers has no score on CoLA, STS-B, RTE: its average is over the others" in text
    assert "Speed" not in text


def test_a_task_that_does_not_count_is_told_and_not_averaged(tmp_path):
    write_results(tmp_path)
    store = Store(str(tmp_path))
    write(store, task_of("RTE", config={"averaged": False}))
    worth = make_worth(str(tmp_path), read_results(store), None)
    assert cells(worth, "Scores", "six layers")[-2:] == ["60.0 (59.0 to 62.0)", f"{(51 + 91 + 87) / 3:.1f}"]
    assert cells(worth, "Retention", "six layers")[-1] == f"{100 * (51 + 91 + 87) / (57 + 93 + 89):.1f}"
    assert "RTE (not averaged), accuracy" in tables(worth)[0].header
    assert "RTE (not averaged)" in tables(worth)[1].header
    assert "of 3 tasks" not in render(asdict(worth))


def test_a_worth_of_the_reference_alone_has_its_scores_and_size(tmp_path):
    worth = make_worth(str(tmp_path), write_results(tmp_path, {"teacher": SCORES["teacher"]}), None)
    assert [table.title for table in tables(worth)] == ["Scores, per cent", "Size"]
    assert render(asdict(worth)).startswith("no student beside teacher, on 4 tasks\n")


def test_markdown_has_the_same_cells_in_pipes(worth):
    text = markdown(worth)
    assert "| model | CoLA, matthews correlation | SST-2, accuracy | STS-B, pearson | RTE, accuracy | average |" in text
    for table in tables(worth):
        for row in table.rows:
            assert f"| {' | '.join(row)} |" in text
    assert len({line.count("|") for line in text.split("\n\n")[1].splitlines()}) == 1


def test_names_are_no_markup(tmp_path):
    hostile = "a|b <img src=x>\nc"
    worth = make_worth(str(tmp_path), write_results(tmp_path, SCORES | {hostile: SCORES["six layers"]}), None)
    assert "| a\\|b &lt;img src=x&gt; c |" in markdown(worth)
