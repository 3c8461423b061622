"""`student-train report`: what the page says, that nothing a user wrote is markup, and that it stays small."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from student_train.cli import main
from student_train.report.compare import read_students
from student_train.report.page import render
from student_train.report.students import MAX_POINTS, Point, Student
from student_train.run_folder import CacheDescription, RunDescription
from student_train.worth.records import read_worth
from tests.student_train.report import records
from tests.student_train.report.records import write_run
from tests.student_train.worth.records import write_made_up_worth

FIDELITY: dict[str, Any] = {
    "cache": records.CACHE.url,
    "fingerprint": records.CACHE.fingerprint,
    "soft_labels": "replay",
    "num_positions": 16_384,
    "num_sequences": 512,
    "temperatures": [
        {
            "temperature": 1.0,
            "kl": 0.000123,
            "calibration_error_exact": 0.0101,
            "calibration_error_rebuilt": 0.0102,
            "gradients": [{"student": "early", "num_positions": 16_384, "error": 0.013, "angle_degrees": 0.74}],
        },
        {
            "temperature": 2.0,
            "kl": 0.000045,
            "calibration_error_exact": 0.02,
            "calibration_error_rebuilt": 0.02,
            "gradients": [],
        },
    ],
    "cosines": [{"layer": -1, "masked": 0.9935, "unmasked": None, "kept": 0.9934}],
    "bytes_per_kept_position": {"hidden": 68.0, "soft_labels": 30.0, "inputs": 35.0, "overhead": 2.0, "total": 135.0},
    "notes": ["the cache holds fewer <positions>"],
}


class Document(HTMLParser):
    """A page's tags, ids, references and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name in ("href", "src", "xlink:href"):
                self.references.append(value or "")
            self.references += [f"#{found}" for found in re.findall(r"url\(#([^)]*)\)", value or "")]

    def handle_data(self, data: str) -> None:
        self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)


def page_of(*places: Path, **options: Any) -> Document:
    return Document(render(read_students([str(place) for place in places]), **options))


def report(tmp_path: Path, *arguments: str) -> int:
    return main(["report", str(tmp_path / "runs"), "--output", str(tmp_path / "report.html"), *arguments])


def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, *arguments: str) -> str:
    """The one message on standard error."""
    assert report(tmp_path, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def fidelity_file(tmp_path: Path, **changes: Any) -> str:
    path = tmp_path / "fidelity.json"
    path.write_text(json.dumps(FIDELITY | changes))
    return str(path)


def test_the_command_writes_a_page_and_says_what_it_wrote(tmp_path, capsys):
    records.write_four(tmp_path / "runs")
    assert report(tmp_path, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    path = tmp_path / "report.html"
    assert result == {"report": str(path), "num_bytes": path.stat().st_size, "num_runs": 4, "warnings": []}
    assert path.read_text().startswith("<!DOCTYPE html>")


def test_the_page_tells_of_all_students(tmp_path):
    names = records.write_four(tmp_path)
    document = page_of(tmp_path)
    for name in names:
        assert document.words.count(name) >= 3, "in the table, the legend and the settings"
    text = document.text
    assert "4 students of bert-base-uncased" in text
    assert "2 finished, 1 unfinished, 1 diverged" in text
    assert "unfinished, diverged: the training loss rose again, from" in text
    assert "optimizer.lr 0.0005 0.0002 0.0005 0.002" in text
    assert "3 × 1024 72,050,944 1,399/3,000" in text
    assert document.tags.count("figure") == 8


def test_the_page_says_what_a_cache_holds_and_costs(tmp_path):
    write_run(tmp_path)
    text = page_of(tmp_path).text
    assert "3 views of 1,204,321 sequences with 308,306,176 tokens; at 71,834,411 positions" in text
    assert "token ids and soft labels 4.813 GB 50% 15.61 67.0" in text
    assert "hidden states 4.887 GB 50% 15.85 68.0" in text
    assert "together 9.7 GB 100% 31.46 135.0" in text


def test_fidelity_is_shown_where_it_is_given(tmp_path, capsys):
    write_run(tmp_path / "runs")
    assert report(tmp_path, "--fidelity", fidelity_file(tmp_path)) == 0
    text = Document((tmp_path / "report.html").read_text()).text
    assert "1 0.000123 0.0102 0.0101 early 16,384 1.30% 0.74°" in text
    assert "2 4.5e-05 0.02 0.02 - - - -" in text
    assert "-1 0.993500 - 0.993400" in text
    assert "soft labels 30.0" in text
    assert "the cache holds fewer <positions>" in text
    assert "Not measured here" not in text


def test_without_fidelity_the_page_says_how_to_get_it(tmp_path):
    write_run(tmp_path)
    assert f"teacher-cache fidelity {records.CACHE.url} --json > fidelity.json" in page_of(tmp_path).text


def test_what_students_are_worth_is_shown_where_it_is_given(tmp_path, capsys):
    write_run(tmp_path / "runs")
    worth = write_made_up_worth(tmp_path / "tasks")
    assert report(tmp_path, "--worth", worth) == 0
    document = Document((tmp_path / "report.html").read_text())
    assert "six layers, three layers beside teacher, on 4 tasks, from" in document.text
    assert "six layers 6 × 768 66,362,880 60.6% 265.5 MB" in document.text
    assert document.tags.count("figure") == 11
    assert "worth" not in page_of(tmp_path / "runs").ids
    capsys.readouterr()
    assert f"{tmp_path} holds no worth.json; give what `student-train worth` wrote" in refused(
        capsys, tmp_path, "--worth", str(tmp_path)
    )


def test_names_in_a_worth_are_no_markup(tmp_path):
    write_run(tmp_path / "runs")
    hostile = "<script>$\\frac{a$ & _"
    scores = {"_teacher": {"<b>": (1, 1, 1)}, hostile: {"<b>": (1, 2, 3)}}
    worth = read_worth(write_made_up_worth(tmp_path / "tasks", scores))
    document = page_of(tmp_path / "runs", worth=worth)
    assert not {"script", "b"} & set(document.tags)
    assert document.text.count(hostile) >= 3


def test_what_users_wrote_is_no_markup(tmp_path):
    hostile = "<script>alert(1)<"
    cache = CacheDescription(**(vars(records.CACHE) | {"url": "s3://<b>&amp;", "teacher": "<i>teacher</i>"}))
    write_run(tmp_path / hostile, cache=cache, more_spec={"<u>key</u>": "<u>value</u>"})
    write_run(tmp_path / "$\\frac{a$ & 'b' \"id=\"", cache=cache)
    document = page_of(tmp_path)
    assert not {"script", "b", "i", "u"} & set(document.tags)
    for text in (hostile, "$\\frac{a$ & 'b' \"id=\"", "<i>teacher</i>", "s3://<b>&amp;", "<u>key</u>", "<u>value</u>"):
        assert text in document.text


def test_ids_are_unique_and_nothing_outside_is_referred_to(tmp_path):
    records.write_four(tmp_path)
    document = page_of(tmp_path)
    assert len(set(document.ids)) == len(document.ids)
    assert {reference for reference in document.references if reference[0] == "#"} <= {f"#{id}" for id in document.ids}
    assert {reference for reference in document.references if reference[0] != "#"} == {"data:,"}


def test_each_student_has_a_colour_of_its_own_in_every_figure(tmp_path):
    records.write_four(tmp_path)
    page = render(read_students([str(tmp_path)]))
    for key in ("training-loss", "held-out-loss-time", "held-out-accuracy-steps"):
        for place in range(4):
            assert re.search(rf'<g id="{key}-series-{place}">\s*<path [^>]*stroke: var\(--series-{place}\)', page)
    assert not re.search(r"stroke: #0[0-2]", page), "no stand-in is left"


def test_nothing_held_out_is_said(tmp_path):
    write_run(tmp_path / "a", held_out_every=None)
    write_run(tmp_path / "b", num_steps_done=0)
    document = page_of(tmp_path)
    assert "Nothing was held out by a, b: no held-out figure shows these." in document.text
    assert document.tags.count("figure") == 1


def test_a_run_before_its_first_step_has_a_page(tmp_path):
    write_run(tmp_path, num_steps_done=0)
    document = page_of(tmp_path)
    assert "0/100 - - - -" in document.text
    assert "No step was done yet." in document.text
    assert "figure" not in document.tags


def test_losses_that_are_not_finite_leave_a_gap(tmp_path):
    write_run(tmp_path, num_steps=100, losses=dict.fromkeys(range(40, 101), math.nan))
    document = page_of(tmp_path)
    assert "a loss of step 40 is not finite" in document.text
    assert document.tags.count("figure") == 8


def long_student(place: int) -> Student:
    """As of a run of 100,000 steps."""
    description = RunDescription(
        spec={"optimizer": {"lr": place}},
        caches=[records.CACHE],
        model_type="distilbert",
        num_layers=6,
        width=768,
        num_parameters=10_000_000 + place,
        num_steps=100_000,
        num_workers=8,
        device="cpu",
        versions={},
    )
    looks = [records.held_out_report(records.step_report(200 * look, 100_000)) for look in range(1, MAX_POINTS + 1)]
    return Student(
        name=f"student-{place:02}",
        url=f"/runs/{place}",
        description=description,
        num_steps_done=100_000,
        losses=looks[-1].losses,
        tokens_per_s=1e5 + place,
        seconds=3e5,
        held_out=tuple(looks),
        curve=tuple(Point(step=look.step, loss=look.losses["total"]) for look in looks),
        finished=True,
        trouble="",
    )


def test_twenty_long_runs_stay_small():
    assert len(render([long_student(place) for place in range(20)])) < 3_000_000


def test_a_page_is_the_same_each_time(tmp_path):
    write_run(tmp_path)
    students = read_students([str(tmp_path)])
    assert render(students) == render(students)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.pdf", "is no name of a web page; end it with .html"),
        ("no/a.html", "is in a folder that does not exist; make"),
        ("folder.html", "cannot be written: Is a directory"),
    ],
)
def test_an_output_that_cannot_be_written(name, message, tmp_path, capsys):
    write_run(tmp_path / "runs")
    (tmp_path / "folder.html").mkdir()
    assert f"--output {tmp_path}/{name} {message}" in refused(capsys, tmp_path, "--output", f"{tmp_path}/{name}")


def test_fidelities_that_are_refused(tmp_path, capsys):
    write_run(tmp_path / "runs")
    other = fidelity_file(tmp_path, fingerprint="e" * 64)
    message = refused(capsys, tmp_path, "--fidelity", other)
    assert "--fidelity is of cache eeeeeeeeeeee, but the runs learned from 3f9c2b7e51d8;" in message
    message = refused(capsys, tmp_path, "--fidelity", fidelity_file(tmp_path, cosines=3))
    assert "fidelity.json is no result of `teacher-cache fidelity CACHE --json`: cosines: Input should be" in message
    assert f"--fidelity {tmp_path}/no.json cannot be read: No such file" in refused(
        capsys, tmp_path, "--fidelity", f"{tmp_path}/no.json"
    )
    assert not (tmp_path / "report.html").exists()
