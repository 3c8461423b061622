"""`student-train compare`: one table, differences, what is not comparable, and one message for a mistake."""

import json
import math
from dataclasses import replace

from student_train.cli import main
from student_train.report.find import short_names
from tests.student_train.report import records
from tests.student_train.report.records import write_run


def compared(capsys, *arguments):
    assert main(["compare", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def compared_json(capsys, *places):
    return json.loads(compared(capsys, *places, "--json"))


def refused(capsys, *arguments):
    """The one message on standard error."""
    assert main(["compare", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def names(result):
    return [run["name"] for run in result["runs"]]


def test_a_row_tells_what_a_run_is_and_how_it_went(tmp_path, capsys):
    write_run(tmp_path / "six", num_steps=100, step_s=4.0)
    (run,) = compared_json(capsys, tmp_path / "six")["runs"]
    report = records.step_report(100, 100, step_s=4.0)
    look = records.held_out_report(report)
    assert (run["name"], run["url"]) == ("six", str(tmp_path / "six"))
    assert (run["num_layers"], run["width"], run["num_parameters"]) == (6, 768, 66_985_530)
    assert run["caches"] == [records.CACHE.fingerprint]
    assert (run["num_steps_done"], run["num_steps"], run["finished"]) == (100, 100, True)
    assert run["held_out"] == look.losses | {"accuracy": look.accuracy}
    assert run["losses"] == report.losses
    assert (run["tokens_per_s"], run["seconds"]) == (256_000, 400)


def test_the_table_is_aligned_and_says_a_dash_where_nothing_is(tmp_path, capsys):
    write_run(tmp_path / "a", held_out_every=None)
    write_run(tmp_path / "longer", num_steps_done=0)
    lines = compared(capsys, tmp_path).splitlines()[:3]
    assert lines[0].split()[:4] == ["run", "layers", "×", "width"]
    first, second = (line.split() for line in lines[1:])
    assert first[:9] == ["a", "6", "×", "768", "66,985,530", "100/100", "-", "-", "-"]
    assert first[9:13] == ["341,333", "5", "min", "0"]
    assert first[-2:] == ["3f9c2b7e51d8", "finished"]
    assert second[5:9] == ["0/100", "-", "-", "-"]
    assert second[-6:-2] == ["-", "-", "-", "-"]
    assert lines[1].index("6 × 768") == lines[2].index("6 × 768")


def test_differences_are_dotted_keys_with_a_column_a_run(tmp_path, capsys):
    write_run(tmp_path / "a", floor=1.0)
    write_run(tmp_path / "b", floor=2.0, optimizer={"lr": 0.002}, steps=100)
    result = compared_json(capsys, tmp_path)
    assert result["differences"] == {"optimizer.lr": [0.0005, 0.002], "steps": [None, 100]}
    lines = [line.split() for line in compared(capsys, tmp_path).splitlines()]
    assert ["differs", "in", "a", "b"] in lines
    assert ["optimizer.lr", "0.0005", "0.002"] in lines
    assert ["steps", "-", "100"] in lines


def test_one_run_differs_in_nothing(tmp_path, capsys):
    write_run(tmp_path)
    assert "differs in" not in compared(capsys, tmp_path)


def test_the_best_is_first_where_all_have_a_held_out_loss(tmp_path, capsys):
    for name, floor in (("a", 3.0), ("b", 1.0), ("c", 2.0)):
        write_run(tmp_path / name, floor=floor)
    assert names(compared_json(capsys, tmp_path)) == ["b", "c", "a"]
    write_run(tmp_path / "d", floor=0.5, held_out_every=None)
    assert names(compared_json(capsys, tmp_path)) == ["a", "b", "c", "d"]
    assert names(compared_json(capsys, tmp_path / "c", tmp_path / "d", tmp_path / "a")) == ["c", "d", "a"]


def test_other_rows_set_aside_are_warned_of_and_not_ranked(tmp_path, capsys):
    write_run(tmp_path / "a", floor=3.0)
    write_run(tmp_path / "b", floor=1.0, cache=replace(records.CACHE, fingerprint="e" * 64))
    result = compared_json(capsys, tmp_path)
    assert names(result) == ["a", "b"]
    (warning,) = result["warnings"]
    assert warning.startswith("the runs set aside different rows (other caches or held_out_sequences)")
    assert compared(capsys, tmp_path).splitlines()[-1] == f"warning: {warning}"


def test_other_numbers_of_rows_set_aside_are_warned_of(tmp_path, capsys):
    write_run(tmp_path / "a", more_spec={"held_out_sequences": 512})
    write_run(tmp_path / "b", more_spec={"held_out_sequences": 1024})
    assert len(compared_json(capsys, tmp_path)["warnings"]) == 1


def test_rows_that_only_one_run_set_aside_need_no_warning(tmp_path, capsys):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", held_out_every=None, cache=replace(records.CACHE, fingerprint="e" * 64))
    assert compared_json(capsys, tmp_path)["warnings"] == []


def test_losses_weighed_differently_are_warned_of_and_not_ranked(tmp_path, capsys):
    write_run(tmp_path / "a", floor=3.0)
    write_run(tmp_path / "b", floor=1.0, loss={"weights": {"cosine": 0}})
    result = compared_json(capsys, tmp_path)
    assert names(result) == ["a", "b"]
    (warning,) = result["warnings"]
    assert warning.startswith("the runs differ in loss.weights.cosine: their total and soft-label losses are not")


def test_losses_that_are_not_finite_are_valid_json_and_come_last(tmp_path, capsys):
    write_run(tmp_path / "a", num_steps=100, losses={100: math.nan})
    write_run(tmp_path / "b", num_steps=100)
    result = compared_json(capsys, tmp_path)
    assert names(result) == ["b", "a"]
    assert (result["runs"][1]["losses"]["total"], result["runs"][1]["held_out"]["total"]) == (None, None)
    assert result["runs"][1]["state"] == "finished, diverged: a loss of step 100 is not finite"


def test_folders_of_runs_and_runs_may_be_mixed_and_each_counts_once(tmp_path, capsys):
    for name in ("runs/a", "runs/b", "c"):
        write_run(tmp_path / name, held_out_every=None)
    (tmp_path / "runs/other").mkdir()
    (tmp_path / "runs/file").write_text("no run")
    write_run(tmp_path / "runs/.hidden")
    places = (tmp_path / "runs", tmp_path / "c", tmp_path / "runs/a")
    assert names(compared_json(capsys, *places)) == ["a", "b", "c"]


def test_runs_on_an_object_store(s3, capsys):
    write_run(f"{s3}/students/a")
    write_run(f"{s3}/students/b")
    assert sorted(names(compared_json(capsys, f"{s3}/students"))) == ["a", "b"]
    assert names(compared_json(capsys, f"{s3}/students/a")) == ["a"]
    assert "holds no run of `student-train run`" in refused(capsys, f"{s3}/nothing")


def test_names_tell_runs_apart_with_as_little_as_needed():
    assert short_names(["/x/a", "/x/b"]) == ["a", "b"]
    assert short_names(["/x/t2/six", "s3://y/t4/six"]) == ["t2/six", "t4/six"]
    assert short_names(["/x/a"]) == ["a"]


def test_what_holds_no_run(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for place in (tmp_path, tmp_path / "missing", tmp_path / "file"):
        message = refused(capsys, place)
        assert f"{place} holds no run of `student-train run`: there is no run.json, nor in any folder" in message
        assert "give a run's output" in message


def test_a_damaged_record_is_named(tmp_path, capsys):
    write_run(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    assert f"{tmp_path}/metrics.jsonl is damaged or of another version" in refused(capsys, tmp_path)
