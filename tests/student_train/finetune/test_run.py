"""All models on all tasks: nothing is made twice, nothing is lost."""

import contextlib
import json
import signal
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from student_train.cli import main
from student_train.finetune import pools
from student_train.finetune.plan import Run
from student_train.finetune.records import RunRecord, read_results, write
from student_train.finetune.results import cell
from teacher_cache.storage.store import Store
from tests.student_train.commands import start, wait_until
from tests.student_train.finetune import tiny
from tests.student_train.finetune.made import run_of


def write_config(folder: Path, values: dict[str, Any]) -> str:
    (folder / "finetune.yaml").write_text(yaml.safe_dump(values))
    return str(folder / "finetune.yaml")


def stamps(output: str) -> dict[str, int]:
    """When each run's record was written, in nanoseconds."""
    return {str(path): path.stat().st_mtime_ns for path in Path(output).rglob("runs/*/*/*.json")}


@pytest.fixture
def scores(monkeypatch):
    """Instead of fine-tuning, runs have the score that is put here, by model, learning rate and seed; otherwise 50.
    A score that is an exception is raised."""
    table: dict[tuple[str, float, int], Any] = {}

    def make(config: Any, run: Run, **options: Any) -> RunRecord:
        score = table.get((run.model, run.lr, run.seed), 50.0)
        if isinstance(score, BaseException):
            raise score
        store = Store(config.output)
        record = run_of(run.model, run.task, run.lr, run.seed, score)
        if run.seed == config.seeds[0] and score is not None:
            key = f"runs/{run.model}/{run.task}/{run.lr!r}-{run.seed}/model"
            store.replace(f"{key}/config.json", b"{}")
            record = replace(record, folder=f"{store.url}/{key}")
        write(store, record)
        return record

    monkeypatch.setattr(pools, "make_run", make)
    return table


def test_the_command_fine_tunes_and_tells(tmp_path, capsys):
    """Teacher and student for real: a table for people, all records as JSON."""
    models = {"teacher": tiny.make_model(tmp_path / "t"), "student": tiny.make_model(tmp_path / "s", "distilbert")}
    values = tiny.make_values(tmp_path, models=models, lrs=[1e-3, 3e-3], seeds=[1, 2], epochs=2)
    path = write_config(tmp_path, values)
    assert main(["finetune", path]) == 0
    told = capsys.readouterr()
    assert told.err.splitlines()[0] == "6 runs, 0 of them done before"
    assert len(told.err.splitlines()) == 7
    assert "teacher  animals  lr 0.003  seed 1  accuracy " in told.err
    assert told.err.splitlines()[-1].endswith("(6/6)")
    lines = [line.split() for line in told.out.splitlines()]
    assert lines[0] == [values["output"]]
    assert ["model", "animals", "average"] in lines
    before = stamps(values["output"])
    assert len(before) == 6
    assert main(["finetune", path, "--json"]) == 0
    told = capsys.readouterr()
    assert told.err.splitlines() == ["6 runs, 6 of them done before"]
    result = json.loads(told.out)
    assert result["ok"]
    assert result["errors"] == {}
    results = read_results(Store(values["output"]))
    assert result["results"] == asdict(results)
    assert stamps(values["output"]) == before
    for model in ("teacher", "student"):
        best = cell(results, model, "animals")
        assert len(best.scores) == 2
        (kept,) = [run for run in results.runs if run.model == model and run.folder]
        assert (kept.lr, kept.seed) == (best.lr, 1)
        assert (Path(kept.folder) / "model.safetensors").exists()
    folders = sorted(path.name for path in Path(values["output"]).glob("runs/*/*/*/"))
    assert len(folders) == 2


def test_models_of_rates_that_lost_are_deleted_also_after_a_kill(tmp_path, scores, monkeypatch, capsys):
    values = tiny.make_values(tmp_path, lrs=[1e-5, 2e-5, 3e-5], seeds=[1, 2])
    scores[("teacher", 2e-5, 1)] = 60.0
    deleted: list[str] = []
    delete = Store.delete_folder

    def killed(self: Store, prefix: str) -> None:
        delete(self, prefix)
        deleted.append(prefix)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "delete_folder", killed)
        assert main(["finetune", write_config(tmp_path, values)]) == 130
    assert deleted == ["runs/teacher/animals/1e-05-1"]
    assert "run the same command again" in capsys.readouterr().err
    assert main(["finetune", write_config(tmp_path, values)]) == 0
    runs = read_results(Store(values["output"])).runs
    assert {(run.lr, run.seed): bool(run.folder) for run in runs} == {
        (1e-5, 1): False,
        (2e-5, 1): True,
        (2e-5, 2): False,
        (3e-5, 1): False,
    }
    assert [path.parent.parent.name for path in Path(values["output"]).rglob("config.json")] == ["2e-05-1"]


def test_all_lies_in_a_store(tmp_path, s3):
    """Also the fine-tuned model, which is a model to start from again."""
    values = tiny.make_values(tmp_path, lrs=[1e-3, 2e-3], output=f"{s3}/worth")
    path = write_config(tmp_path, values)
    assert main(["finetune", path]) == 0
    assert main(["finetune", path]) == 0
    (kept,) = [run.folder for run in read_results(Store(values["output"])).runs if run.folder]
    assert kept.startswith(f"{s3}/worth/runs/teacher/animals/")
    again = tiny.make_values(tmp_path, models={"again": kept})
    assert main(["finetune", write_config(tmp_path, again)]) == 0


def test_a_question_without_room_is_told_before_anything_runs(tmp_path, scores, capsys):
    """Also where its task comes last."""
    tasks = {kind: tiny.make_task(tmp_path / kind, kind) for kind in ("single", "question_answering")}
    tasks["question_answering"] |= {"max_length": 14, "stride": 9}
    assert main(["finetune", write_config(tmp_path, tiny.make_values(tmp_path, tasks=tasks))]) == 2
    assert capsys.readouterr().err == (
        "error: task question_answering, model teacher: question 0 is 2 tokens long; with max_length 14 and stride 9 it"
        " may be 1 tokens at most; raise max_length, or lower stride\n"
    )
    assert not list(tmp_path.rglob("runs/*/*/*.json"))


def test_a_gpu_that_is_not_there_is_told_first(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    values = tiny.make_values(tmp_path, execution={"num_workers": 0, "gpus_per_worker": 1})
    assert main(["finetune", write_config(tmp_path, values)]) == 2
    assert "execution.gpus_per_worker is 1, but torch" in capsys.readouterr().err
    assert not Path(values["output"]).exists()


def test_all_models_are_kept_where_wanted(tmp_path, scores):
    values = tiny.make_values(tmp_path, lrs=[1e-5, 2e-5], keep_models=True)
    assert main(["finetune", write_config(tmp_path, values)]) == 0
    assert len(list(Path(values["output"]).rglob("config.json"))) == 2


def test_what_is_interrupted_goes_on_with_what_is_missing(tmp_path, scores, capsys):
    values = tiny.make_values(tmp_path, lrs=[1e-5, 2e-5, 3e-5], seeds=[1, 2])
    path = write_config(tmp_path, values)
    scores[("teacher", 3e-5, 1)] = KeyboardInterrupt()
    assert main(["finetune", path]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted; run the same command again to go on"
    before = stamps(values["output"])
    assert len(before) == 2
    scores[("teacher", 3e-5, 1)] = 10.0
    assert main(["finetune", path]) == 0
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "4 runs, 2 of them done before"
    assert len(told) == 3
    assert len(stamps(values["output"])) == 4


def test_runs_that_fail_or_diverge_do_not_disturb_the_others(tmp_path, scores, capsys):
    models = {name: tiny.make_model(tmp_path / name) for name in ("a", "b")}
    values = tiny.make_values(tmp_path, models=models, lrs=[1e-5, 2e-5], seeds=[1, 2])
    path = write_config(tmp_path, values)
    scores[("a", 1e-5, 1)] = MemoryError("no room\nfor it")
    scores[("b", 1e-5, 1)] = None
    assert main(["finetune", path, "--json"]) == 1
    told = capsys.readouterr()
    result = json.loads(told.out)
    assert (result["ok"], result["errors"]) == (False, {"runs/a/animals/1e-05-1": "MemoryError: no room"})
    assert "a  animals  lr 1e-05  seed 1  failed: MemoryError: no room" in told.err
    assert "b  animals  lr 1e-05  seed 1  diverged after 10 steps" in told.err
    found = {(run["model"], run["lr"], run["seed"]) for run in result["results"]["runs"]}
    assert found == {("a", 2e-5, 1), ("b", 1e-5, 1), ("b", 2e-5, 1), ("b", 2e-5, 2)}
    del scores[("a", 1e-5, 1)]
    assert main(["finetune", path]) == 0
    assert capsys.readouterr().err.splitlines()[0] == "6 runs, 4 of them done before"


def test_models_and_tasks_come_to_an_output_one_after_the_other(tmp_path, scores, capsys):
    values = tiny.make_values(tmp_path)
    assert main(["finetune", write_config(tmp_path, values)]) == 0
    values["models"]["student"] = tiny.make_model(tmp_path / "student", "distilbert")
    values["tasks"]["more"] = tiny.make_task(tmp_path / "more", "tagging")
    assert main(["finetune", write_config(tmp_path, values)]) == 0
    assert capsys.readouterr().err.splitlines()[2] == "4 runs, 1 of them done before"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": {"m": "no/model"}}, "error: model 'm': the config.json of no/model cannot be loaded"),
        ({"tasks": {"t": {"layout": "SST-2", "folder": "no/data"}}}, "error: task t: "),
        ({"epochs": 2}, "holds runs that cannot be compared with these: epochs is 1 there and 2 here"),
    ],
)
def test_bad_input_ends_with_one_message_before_any_run(tmp_path, scores, capsys, change, message):
    values = tiny.make_values(tmp_path)
    assert main(["finetune", write_config(tmp_path, values)]) == 0
    capsys.readouterr()
    scores[("m", 1e-3, 1)] = scores[("teacher", 1e-3, 1)] = AssertionError("it started")
    assert main(["finetune", write_config(tmp_path, values | change)]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told


def test_a_task_may_have_epochs_of_its_own(tmp_path, capsys):
    values = tiny.make_values(tmp_path)
    values["tasks"] = {name: tiny.make_task(tmp_path / name, "single") for name in ("one", "two")}
    values["tasks"]["two"]["epochs"] = 2
    assert main(["finetune", write_config(tmp_path, values), "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)["results"]["runs"]
    assert {run["task"]: run["num_steps"] for run in runs} == {"one": 10, "two": 20}
    values["tasks"]["two"]["epochs"] = 3
    assert main(["finetune", write_config(tmp_path, values)]) == 2
    assert "tasks.two.config.epochs is 2 there and 3 here" in capsys.readouterr().err


def test_a_job_needs_places_that_all_machines_find(tmp_path, capsys):
    values = tiny.make_values(tmp_path, output="here")
    assert main(["submit", "--finetune", write_config(tmp_path, values)]) == 2
    assert "error: output: here is relative to this folder" in capsys.readouterr().err


# On Ray


def workers(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """That are making a run."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "ray::runs/" in " ".join(child.cmdline()):
                found.append(child)
    return found


@pytest.mark.ray
def test_two_workers_of_which_one_is_killed_and_then_all(tmp_path):
    """A run whose worker dies is made again; what a killed command leaves is finished by the next one."""
    execution = {"num_workers": 2, "gpus_per_worker": 0}
    values = tiny.make_values(tmp_path, lrs=[1e-4, 1e-3, 3e-3], seeds=[1, 2, 3], epochs=20, execution=execution)
    path, log = write_config(tmp_path, values), tmp_path / "log"
    process = start("finetune", path, log)
    wait_until(lambda: len(workers(process)) == 2, process, log, timeout_s=180)
    workers(process)[0].kill()
    wait_until(lambda: len(stamps(values["output"])) >= 2, process, log, timeout_s=180)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    for child in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    before = stamps(values["output"])
    assert 2 <= len(before) < 5
    assert "failed: " not in log.read_text()
    process = start("finetune", path, log)
    result = json.loads(process.communicate()[0])
    assert process.returncode == 0, log.read_text()
    assert result["ok"]
    assert len(result["results"]["runs"]) == 5
    assert log.read_text().startswith(f"5 runs, {len(before)} of them done before\n")
