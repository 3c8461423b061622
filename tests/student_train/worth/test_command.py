"""`student-train worth`: what it writes, prints and refuses."""

import json
from pathlib import Path
from typing import Any

import pytest

from student_train.cli import main
from student_train.worth.records import WORTH_KEY, read_worth
from student_train.worth.table import markdown
from teacher_cache.errors import UserError
from teacher_cache.format import documents
from tests import families
from tests.student_train.worth.records import SCORES, write_results


def worth(*arguments: Any) -> int:
    return main(["worth", *map(str, arguments)])


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert worth(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_it_writes_records_tables_and_figures(tmp_path, capsys):
    write_results(tmp_path / "tasks")
    assert worth(tmp_path / "tasks", "--no-speed", "--json") == 0
    folder = tmp_path / "tasks" / "worth"
    figures = {f"worth-{name}.{form}" for name in ("retention", "parameters") for form in ("svg", "png")}
    assert {path.name for path in folder.iterdir()} == {"worth.json", "worth.md", *figures}
    printed, found = json.loads(capsys.readouterr().out), read_worth(str(folder))
    assert printed["models"][1]["average"]["retention"] == found.models[1].average.retention
    assert found.reference == printed["models"][0]["name"] == "teacher"
    assert (folder / "worth.md").read_text() == markdown(found)
    assert (folder / "worth-retention.png").read_bytes()[:4] == b"\x89PNG"


def test_no_figure_of_an_earlier_table_stays(tmp_path):
    write_results(tmp_path / "tasks")
    folder = tmp_path / "tasks" / "worth"
    folder.mkdir()
    (folder / "worth-latency.png").write_bytes(b"old")
    assert worth(tmp_path / "tasks", "--no-speed") == 0
    assert not (folder / "worth-latency.png").exists()
    assert (folder / "worth-retention.png").exists()


def test_it_prints_tables_and_writes_where_it_is_told(tmp_path, capsys):
    write_results(tmp_path / "tasks")
    assert worth(tmp_path / "tasks", "--no-speed", "--output", tmp_path / "elsewhere") == 0
    assert "Retention, per cent of teacher\n" in capsys.readouterr().out
    assert (tmp_path / "elsewhere" / "worth.md").is_file()
    assert not (tmp_path / "tasks" / "worth").exists()


def test_the_reference_comes_first_wherever_it_stands(tmp_path):
    write_results(tmp_path, dict(reversed(SCORES.items())), reference="teacher")
    assert worth(tmp_path, "--no-speed") == 0
    assert read_worth(str(tmp_path / "worth")).models[0].name == "teacher"


def test_speeds_are_of_the_models_that_were_fine_tuned(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("student_train.worth.speed.MAX_ROUNDS", 5)
    layers = {"large": 4, "small": 1}
    paths = {name: str(families.save_pretrained(tmp_path / name, num_hidden_layers=n)) for name, n in layers.items()}
    write_results(tmp_path / "tasks", {name: {"A": (50, 50, 50)} for name in paths}, paths=paths)
    assert worth(tmp_path / "tasks", "--threads", "1") == 0
    assert "Speed on " in capsys.readouterr().out
    speeds = read_worth(str(tmp_path / "tasks" / "worth")).speeds
    assert speeds
    found = speeds.of_models["small"]
    assert [(speed.device, speed.batch_sequences, speed.sequence_length) for speed in found][:2] == [
        ("cpu", 1, 64),
        ("cpu", 32, 64),
    ]
    assert (tmp_path / "tasks" / "worth" / "worth-latency.svg").is_file()


def test_what_is_refused(tmp_path, capsys):
    assert "holds nothing of `student-train finetune`" in refused(capsys, tmp_path / "nothing", "--no-speed")
    write_results(tmp_path / "gone")
    message = refused(capsys, tmp_path / "gone")
    assert "the speed of model 'teacher' cannot be measured: the config.json of teacher cannot be loaded" in message
    write_results(tmp_path / "bad", {"teacher": {"A": (None, None, None)}, "student": {"A": (1, 2, 3)}})
    assert "no task has a score of the reference 'teacher'" in refused(capsys, tmp_path / "bad", "--no-speed")


@pytest.mark.parametrize("number", ["0", "-1", "two"])
def test_threads_are_a_positive_number(tmp_path, capsys, number):
    with pytest.raises(SystemExit, match="2"):
        worth(tmp_path, f"--threads={number}")
    assert f"argument --threads: invalid positive_number value: '{number}'" in capsys.readouterr().err


def test_a_worth_that_is_missing_damaged_or_of_another_version(tmp_path):
    write_results(tmp_path)
    assert worth(tmp_path, "--no-speed") == 0
    path = Path(tmp_path, "worth", WORTH_KEY)
    whole = documents.parse(path.read_bytes(), name="worth")
    with pytest.raises(UserError, match=r"holds no worth\.json; give what `student-train worth` wrote"):
        read_worth(str(tmp_path))
    path.write_bytes(path.read_bytes().replace(b"six layers", b"six lairs_"))
    with pytest.raises(UserError, match="is damaged: its content does not match"):
        read_worth(str(path.parent))
    path.write_bytes(documents.dump(whole | {"models": "none"}))
    with pytest.raises(UserError, match="is of another version: models: Input should be a valid list; run"):
        read_worth(str(path.parent))
