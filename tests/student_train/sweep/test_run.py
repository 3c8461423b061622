"""Sweeps on Ray Tune: nothing is lost when they are ended."""

import contextlib
import functools
import json
import os
import signal
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from ray.exceptions import RayTaskError
from ray.train._internal.storage import StorageContext
from ray.tune.error import TuneError
from ray.tune.experiment import Trial as TuneTrial
from safetensors.torch import load_file

from student_train.cli import main
from student_train.config import ExecutionConfig
from student_train.launch import train
from student_train.sweep import run
from student_train.sweep.config import SweepConfig
from student_train.sweep.trials import trials
from teacher_cache.shell import settings
from tests.student_train.commands import newest_step, start, wait_until
from tests.student_train.sweep.sweeps import make_values


def write_config(folder: Path, values: dict[str, Any]) -> str:
    (folder / "sweep.yaml").write_text(yaml.safe_dump(values))
    return str(folder / "sweep.yaml")


def result_of(capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], list[str]]:
    """All of standard output as JSON; standard error's lines."""
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err.splitlines()


def stamps(output: Path) -> dict[str, int]:
    """When each of a run's files was last written, in nanoseconds."""
    return {str(path): path.stat().st_mtime_ns for path in output.rglob("*")}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_eight_students_of_which_one_fails(default_cache, tmp_path, capsys):
    """One with a learning rate that no student survives; the others are not disturbed, then or by another attempt."""
    rates = [1e-5, 1e-4, 1e-3, 2e-3, 3e-3, 4e-3, 5e-3, 1e30]
    space = {"optimizer.lr": {"choose": rates}}
    path = write_config(tmp_path, make_values(tmp_path / "sweep", space, caches=[default_cache.url], steps=4))
    assert main(["sweep", path, "--json"]) == 1
    result, lines = result_of(capsys)
    assert Counter(trial["state"] for trial in result["trials"]) == {"finished": 7, "failed": 1}
    totals = [trial["held_out"]["total"] for trial in result["trials"][:7]]
    assert totals == sorted(totals)
    assert result["trials"][0]["name"] != "000-lr=1e-5"
    assert (result["trials"][7]["name"], result["ok"]) == ("007-lr=1e30", False)
    assert "is not finite" in result["trials"][7]["error"]
    assert lines[0] == "8 students, 0 of them done before"
    assert len(lines) == 9
    assert all(any(line.startswith(trial["name"]) for line in lines) for trial in result["trials"])
    finished = [Path(trial["output"]) for trial in result["trials"][:7]]
    before = [stamps(output) for output in finished]
    assert main(["sweep", path, "--json"]) == 1
    again, lines = result_of(capsys)
    assert again == result
    assert lines[0] == "8 students, 7 of them done before"
    assert len(lines) == 2
    assert [stamps(output) for output in finished] == before


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_successive_halving_stops_students_for_good(default_cache, tmp_path, capsys):
    """One after the other, the best first: each of the others is stopped at the first rung."""
    space = {"optimizer.lr": {"choose": [3e-3, 1e-6, 2e-6]}}
    values = make_values(tmp_path / "sweep", space, caches=[default_cache.url])
    path = write_config(tmp_path, values | {"scheduler": "asha", "max_concurrent": 1})
    assert main(["sweep", path, "--json"]) == 0
    result, _ = result_of(capsys)
    found = {trial["name"]: (trial["state"], trial["step"]) for trial in result["trials"]}
    assert found == {
        "000-lr=3e-3": ("finished", 12),
        "001-lr=1e-6": ("stopped early", 2),
        "002-lr=2e-6": ("stopped early", 2),
    }
    assert result["trials"][0]["name"] == "000-lr=3e-3"
    assert not (tmp_path / "sweep" / "001-lr=1e-6" / "summary.json").exists()
    before = stamps(tmp_path / "sweep")
    assert main(["sweep", path, "--json"]) == 0
    assert result_of(capsys)[0] == result
    assert stamps(tmp_path / "sweep") == before


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_a_student_whose_process_dies_is_started_again(default_cache, tmp_path, monkeypatch, capsys):
    """Two die at their first checkpoint; one of them does so again each time."""

    def dying(values: dict[str, Any]) -> None:
        from student_train.sweep import run

        died = Path(values["trial"]["spec"]["output"]).with_suffix(".died")

        def die(report: Any) -> None:
            if values["trial"]["spec"]["seed"] == 2 or not died.exists():
                died.touch()
                os._exit(1)

        run_worker: Any = run.run_worker
        run.run_worker = lambda spec, **options: run_worker(spec, **options | {"on_checkpoint": die})  # type: ignore
        run._train_one(values)

    monkeypatch.setattr(run, "_train_one", dying)
    execution = {"gpus_per_worker": 0, "checkpoint_steps": 1, "max_failures": 1}
    space = {"seed": {"choose": [1, 2]}}
    values = make_values(tmp_path / "sweep", space, caches=[default_cache.url], execution=execution, steps=4)
    assert main(["sweep", write_config(tmp_path, values), "--json"]) == 1
    finished, failed = result_of(capsys)[0]["trials"]
    assert (finished["name"], finished["state"]) == ("000-seed=1", "finished")
    assert (failed["name"], failed["state"]) == ("001-seed=2", "failed")
    assert failed["error"].startswith("ActorDiedError: The actor died unexpectedly")


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_why_a_student_failed_is_read_where_tune_noted_it(tmp_path):
    storage = StorageContext(storage_path=str(tmp_path), experiment_dir_name="sweep", trial_dir_name="trial")
    trial = TuneTrial("student", stub=True, storage=storage)
    trial.init_local_path()
    trial.handle_error(TuneError("Failure\nno machine has room"))
    assert run.reason(trial) == "no machine has room"
    trial.handle_error(RayTaskError("train", "Traceback", MemoryError()))
    assert run.reason(trial) == "MemoryError"
    trial.handle_error(RayTaskError("train", "Traceback", RuntimeError("CUDA out of memory\nmore")))
    assert run.reason(trial) == "RuntimeError: CUDA out of memory"


def has_reached(finished: Path, other: Path, step: int) -> bool:
    return (finished / "summary.json").exists() and newest_step(other) >= step


def interrupt(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    assert process.wait() == -signal.SIGKILL


def kill_with_its_ray(process: subprocess.Popen[bytes]) -> None:
    family = psutil.Process(process.pid).children(recursive=True)
    kill(process)
    for child in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


@pytest.mark.ray
def test_a_sweep_that_is_ended_goes_on(default_cache, tmp_path):
    """Ctrl-C, then SIGKILL of the driver alone, then of it and its Ray, each in mid-sweep."""
    space = {"steps": {"choose": [3, 120, 121]}}
    path = write_config(tmp_path, make_values(tmp_path / "sweep", space, caches=[default_cache.url]))
    short, middle, long = (tmp_path / "sweep" / f"{index:03}-steps={n}" for index, n in enumerate((3, 120, 121)))
    log = tmp_path / "log"
    finished: dict[str, int] = {}
    for end in (interrupt, kill, kill_with_its_ray):
        process = start("sweep", path, log)
        goal = newest_step(middle) + 4
        wait_until(functools.partial(has_reached, short, middle, goal), process, log)
        end(process)
        said = log.read_text().splitlines()
        assert "Traceback" not in log.read_text()
        assert (said[-1] == "interrupted; run the same command again to go on") == (end is interrupt)
        assert not (middle / "summary.json").exists(), "it was ended too late"
        finished = finished or stamps(short)
    process = start("sweep", path, log)
    result = json.loads(process.communicate()[0])
    assert process.returncode == 0
    assert {trial["state"] for trial in result["trials"]} == {"finished"}
    assert log.read_text().startswith("3 students, 1 of them done before\n")
    assert stamps(short) == finished
    config = settings.load(SweepConfig, path)
    for trial, output in zip(trials(config)[1:], (middle, long), strict=True):
        steps = [json.loads(line)["step"] for line in (output / "metrics.jsonl").read_text().splitlines()]
        assert steps == list(range(1, trial.spec.steps + 1))
    in_process = ExecutionConfig(num_workers=0, gpus_per_worker=0)
    whole = train(replace(trials(config)[1].spec, output=str(tmp_path / "whole"), execution=in_process))
    expected = load_file(Path(whole.model) / "model.safetensors")
    found = load_file(middle / "model" / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
