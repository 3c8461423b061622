"""Which students a sweep has, and what is refused."""

import json
import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from student_train.cli import main
from student_train.sweep import records
from student_train.sweep.config import SweepConfig
from student_train.sweep.trials import describe, distinct_points, short_keys, trials
from teacher_cache.errors import UserError
from teacher_cache.shell import settings
from teacher_cache.storage.store import Store
from tests.student_train.sweep.sweeps import CHOSEN, DRAWN, make_config, make_values

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
    sweep: dict[str, Any] = {"seed": draw(st.integers(0, 2**53 - 1))}
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
        (
            {"space": {"held_out_sequences": {"choose": [9, 8]}}, "scheduler": "asha"},
            "the students differ in caches or held_out_sequences",
        ),
        ({"space": {"seed": {"choose": [2**53]}}}, "a value cannot be written as JSON"),
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


def test_asha_refuses_students_that_are_evaluated_at_their_end_only(default_cache, tmp_path, capsys):
    values = make_values(tmp_path / "sweep", {"seed": {"choose": [1, 2]}}, caches=[default_cache.url])
    values |= {"scheduler": "asha"}
    values["student"] |= {"epochs": 1, "steps": None, "held_out_sequences": 8}
    values["student"]["execution"] |= {"evaluation_steps": 500}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(values))
    assert main(["sweep", str(tmp_path / "sweep.yaml")]) == 2
    message = capsys.readouterr().err
    assert re.search(
        r"error: trial 000-seed=1: execution.evaluation_steps is 500, of \d+ steps, but scheduler", message
    )
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
