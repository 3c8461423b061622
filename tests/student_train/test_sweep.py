"""Sweeps: which students they have, which go on, and that nothing is lost when they are ended."""

import contextlib
import functools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from student_train.cli import main
from student_train.config import ExecutionConfig
from student_train.launch import train
from student_train.run_folder import HeldOutReport, RunDescription, TrainSummary, write_records
from student_train.sweep import records, run
from student_train.sweep.config import SweepConfig
from student_train.sweep.halving import REDUCTION, RUNGS, Rungs
from student_train.sweep.trials import Trial, describe, distinct_points, short_keys, trials
from teacher_cache.errors import UserError
from teacher_cache.shell import settings
from teacher_cache.storage.store import Store

CHOSEN: dict[str, Any] = {"student.num_layers": {"choose": [1, 2]}}
DRAWN: dict[str, Any] = {"optimizer.lr": {"log_uniform": [1e-4, 1e-3]}}


def make_values(output: Path | str = "sweep", space: dict[str, Any] | None = None, **student: Any) -> dict[str, Any]:
    """A sweep's plain values; keywords replace sections of its students."""
    base = {
        "caches": ["cache"],
        "student": {"dropout": 0.0},
        "batch_sequences": 8,
        "held_out_sequences": 8,
        "steps": 12,
        "execution": {"gpus_per_worker": 0, "checkpoint_steps": 1, "evaluation_steps": 1, "max_failures": 0},
    }
    return {"student": base | student, "output": str(output), "space": CHOSEN | DRAWN if space is None else space}


def make_config(*args: Any, sweep: dict[str, Any] | None = None, **student: Any) -> SweepConfig:
    return settings.parse(SweepConfig, make_values(*args, **student) | (sweep or {}))


# Which students


CHOICES = {
    "student.num_layers": st.integers(1, 12),
    "optimizer.lr": st.floats(1e-6, 1.0),
    "optimizer.betas": st.tuples(st.floats(0, 0.9), st.floats(0, 0.99)),
    "loss.temperature": st.integers(1, 8),
    "seed": st.integers(0, 99),
    "dtype": st.sampled_from(["float32", "bfloat16"]),
}


@st.composite
def configs(draw: st.DrawFn) -> SweepConfig:
    keys = draw(st.lists(st.sampled_from(sorted(CHOICES)), min_size=1, max_size=4, unique=True))
    space: dict[str, Any] = {key: {"choose": draw(st.lists(CHOICES[key], min_size=1, max_size=3))} for key in keys}
    sweep: dict[str, Any] = {"seed": draw(st.integers(0, 2**63 - 1))}
    if draw(st.booleans()):
        low = draw(st.floats(1e-6, 0.5))
        kind = draw(st.sampled_from(["uniform", "log_uniform"]))
        space["optimizer.eps"] = {kind: [low, low * draw(st.floats(1.1, 100))]}
        sweep["num_samples"] = draw(st.integers(1, 4))
    return make_config("sweep", space, sweep=sweep)


@given(configs())
def test_names_are_distinct_and_fit_a_folder(config):
    names = [trial.name for trial in trials(config)]
    assert len(set(names)) == len(names)
    assert names == sorted(names)
    assert all(len(name) < 200 and not set(name) & set("/\\ :,[]()'\"") for name in names)
    assert [Path(trial.spec.output).name for trial in trials(config)] == names


@given(configs())
def test_the_same_configuration_gives_the_same_students(config):
    again = settings.parse(SweepConfig, settings.to_dict(config))
    assert trials(again) == trials(config)


@given(configs())
def test_no_two_students_are_the_same(config):
    found = trials(config)
    assert len({repr(replace(trial.spec, output="run")) for trial in found}) == len(found)


@given(configs())
def test_every_grid_point_is_there_with_every_draw(config):
    chosen = {key: dimension.choose for key, dimension in config.space.items() if dimension.choose}
    drawn = [key for key, dimension in config.space.items() if dimension.bounds]
    points = distinct_points(config)
    num_draws = len({tuple(point[key] for key in drawn) for point in points})
    assert num_draws <= config.num_samples
    found = Counter(json.dumps([point[key] for key in chosen]) for point in points)
    assert set(found.values()) == {num_draws}
    assert len(found) == math.prod(len({json.dumps(value) for value in values}) for values in chosen.values())


@given(configs())
def test_draws_lie_between_their_bounds(config):
    for key, dimension in config.space.items():
        for point in distinct_points(config) if dimension.bounds else ():
            assert dimension.bounds[0] <= point[key] <= dimension.bounds[1]


@given(configs(), st.integers(1, 3))
def test_more_draws_keep_those_that_were(config, more):
    if any(dimension.bounds for dimension in config.space.values()):
        wider = replace(config, num_samples=config.num_samples + more)
        assert all(point in distinct_points(wider) for point in distinct_points(config))


def test_draws_are_the_same_on_every_machine():
    config = make_config("/sweep", sweep={"num_samples": 2})
    assert [trial.name for trial in trials(config)] == [
        "000-num_layers=1-lr=1.48e-4",
        "001-num_layers=1-lr=1.01e-4",
        "002-num_layers=2-lr=1.48e-4",
        "003-num_layers=2-lr=1.01e-4",
    ]


def test_a_student_is_the_base_with_its_point():
    first, _ = trials(make_config("/sweep", CHOSEN))
    assert first.spec.student.num_layers == 1
    assert first.spec.student.dropout == 0
    assert first.spec.output == "/sweep/000-num_layers=1"


@pytest.mark.parametrize(
    ("point", "name"),
    [
        ({"optimizer.lr": 0.00031}, "lr=3.1e-4"),
        ({"optimizer.lr": 0.1, "seed": 3}, "lr=0.1-seed=3"),
        ({"student.teacher_layers": [0, 3]}, "teacher_layers=0_3"),
        ({"student.initial_weights": "s3://bucket/a b"}, "initial_weights=s3_bucket_a_b"),
        ({"student.num_layers": None}, "num_layers=None"),
        ({"loss.soft_labels": "replay", "loss.weights.soft_labels": 5.0}, "loss.soft_labels=replay-loss.weights."),
    ],
)
def test_names_say_what_is_different(point, name):
    assert describe(point, short_keys(list(point))).startswith(name)


def test_nested_keys_are_dotted_ones():
    nested = make_config("sweep", {"optimizer": {"lr": {"choose": [1e-3]}}, "student": CHOSEN})
    assert list(nested.space) == ["optimizer.lr", "student.student.num_layers"]


# What is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"space": {}}, r"space: .*at least 1 item"),
        ({"space": {"optimizer.lr": {"choose": []}}}, r"space\.optimizer\.lr\.choose: "),
        ({"space": {"optimizer.lr": {}}}, "give one of choose, uniform and log_uniform"),
        ({"space": {"optimizer.lr": {"choose": [1], "uniform": [1, 2]}}}, "give one of choose, uniform and"),
        ({"space": {"optimizer.lr": {"uniform": [2, 1]}}}, "first bound must be below the second"),
        ({"space": {"optimizer.lr": {"log_uniform": [0, 1]}}}, "log_uniform needs bounds above 0"),
        ({"space": {"optimizer.lr": {"chose": [1]}}}, "unknown key; valid keys here: choose, uniform, log_uniform"),
        ({"space": CHOSEN, "num_samples": 2}, "num_samples is 2, but nothing in space is drawn"),
        ({"space": {"output": {"choose": ["a", "b"]}}}, "output is its folder below `output`"),
        ({"scheduler": "median"}, "scheduler: "),
        ({"space": {"optimizer.lrr": {"choose": [1]}}}, r"trial 000-lrr=1 is refused:\s+optimizer\.lrr: unknown key"),
        ({"space": {"optimizer.lr": {"choose": [1, -1]}}}, r"trial 001-lr=-1 is refused:\s+optimizer\.lr: .*greater"),
        ({"space": {"execution.num_workers": {"choose": [2]}}}, "trial 000-num_workers=2: execution.num_workers is 2"),
        (
            {"space": {"held_out_sequences": {"choose": [9, 0]}}, "scheduler": "asha"},
            "trial 001-held_out_sequences=0: held_out_sequences is 0, but scheduler: asha",
        ),
        ({"space": {"steps": {"choose": [1]}}, "scheduler": "asha"}, "trial 000-steps=1: execution.evaluation_steps"),
    ],
)
def test_what_is_wrong_is_refused_with_trial_and_key(change, message):
    with pytest.raises(UserError, match=message):
        trials(settings.parse(SweepConfig, make_values() | change))


def test_a_student_that_does_not_fit_the_cache_is_named_before_any_starts(default_cache, tmp_path, capsys):
    values = make_values(tmp_path / "sweep", {"student.num_layers": {"choose": [1, 9]}}, caches=[default_cache.url])
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(values))
    assert main(["sweep", str(tmp_path / "sweep.yaml")]) == 2
    assert "error: trial 001-num_layers=9: student.num_layers is 9, the teacher has 4" in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


def test_another_sweep_in_the_output_is_refused(tmp_path):
    config = make_config(tmp_path / "sweep")
    store = Store(config.output)
    assert records.read_sweep(store, config) is None
    record = records.begin_sweep(store, config, {"000": 2})
    elsewhere = settings.to_dict(config) | {"max_concurrent": 2}
    elsewhere["student"] |= {"caches": ["moved"], "execution": {"cpus_per_worker": 2}}
    assert records.read_sweep(store, settings.parse(SweepConfig, elsewhere)) == record
    with pytest.raises(UserError, match="holds another sweep, with other values of seed; choose another `output`"):
        records.read_sweep(store, replace(config, seed=1))
    reordered = make_config(tmp_path / "sweep", DRAWN | CHOSEN)
    with pytest.raises(UserError, match="other values of space"):
        records.begin_sweep(store, reordered, {})


# Who goes on


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


def test_students_with_different_losses_are_compared_by_accuracy():
    assert records.criterion(trials(make_config())) == "total"
    assert records.criterion(trials(make_config("sweep", {"loss.temperature": {"choose": [1, 2]}}))) == "accuracy"


# On Ray Tune


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


def start(path: str, log: Path) -> subprocess.Popen[bytes]:
    """The command as a process of its own, with a local Ray of its own."""
    with log.open("wb") as stderr:
        return subprocess.Popen(
            [sys.executable, "-m", "student_train.cli", "sweep", path, "--json"],
            cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=stderr,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip


def wait_until(reached: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while not reached():
        assert process.poll() is None, f"the sweep ended: {log.read_text()}"
        assert time.monotonic() < deadline, f"the sweep does not get on: {log.read_text()}"
        time.sleep(0.05)


def newest_step(run: Path) -> int:
    """Of the run's checkpoints; 0 for none."""
    return max((int(path.parent.name[5:]) for path in run.glob("checkpoints/*/state.json")), default=0)


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
    space = {"steps": {"choose": [3, 40, 41]}}
    path = write_config(tmp_path, make_values(tmp_path / "sweep", space, caches=[default_cache.url]))
    short, middle, long = (tmp_path / "sweep" / f"{index:03}-steps={n}" for index, n in enumerate((3, 40, 41)))
    log = tmp_path / "log"
    finished: dict[str, int] = {}
    for end in (interrupt, kill, kill_with_its_ray):
        process = start(path, log)
        goal = newest_step(middle) + 4
        wait_until(functools.partial(has_reached, short, middle, goal), process, log)
        end(process)
        said = log.read_text().splitlines()
        assert "Traceback" not in log.read_text()
        assert (said[-1] == "interrupted; run the same command again to go on") == (end is interrupt)
        assert not (middle / "summary.json").exists(), "it was ended too late"
        finished = finished or stamps(short)
    process = start(path, log)
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
