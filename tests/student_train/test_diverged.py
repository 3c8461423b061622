"""A run that diverges leaves what it takes to tell which sequences did it."""

import json
import math
from pathlib import Path

import pytest
import torch

from student_train import cli
from student_train.config import StudentSpec
from student_train.diverged import examine
from student_train.launch import train
from student_train.report.students import student_of
from student_train.run_folder import read_run
from student_train.student import build_student
from teacher_cache.errors import UserError
from teacher_cache.format.cache import Cache
from teacher_cache.shell.settings import parse, to_dict
from teacher_cache.storage.store import Store
from tests.student_train import runs

LATE = 18
"""A position that only the longer sequences have."""


@pytest.fixture(scope="module")
def poisoned(default_cache, tmp_path_factory) -> Path:
    """A student whose embedding of one position is no number. (A token's would be all logits', by the tied decoder.)"""
    folder = tmp_path_factory.mktemp("poisoned")
    student = build_student(default_cache.teacher.folder, runs.make_spec(default_cache).student)
    with torch.no_grad():
        student.base_model.embeddings.position_embeddings.weight[LATE] = math.nan
    student.save_pretrained(folder)
    return folder


def poisoned_spec(cache: Cache, output: Path, poisoned: Path) -> StudentSpec:
    student = {"dropout": 0.0, "initial_weights": str(poisoned)}
    return runs.make_spec(cache, output, steps=3, batch_sequences=40, student=student)


@pytest.fixture(scope="module")
def diverged(default_cache, poisoned, tmp_path_factory) -> Path:
    """The output of a run that diverged at its first step."""
    output = tmp_path_factory.mktemp("diverged")
    with pytest.raises(UserError, match=r"the gradient of step 1 is not finite .*`student-train debug-batch`"):
        train(poisoned_spec(default_cache, output, poisoned))
    return output


def test_the_batch_is_saved_as_it_was(diverged, default_cache):
    (saved,) = read_run(Store(str(diverged))).diverged
    assert (saved.step, saved.view, len(saved.sequences)) == (1, 0, 40)
    assert {source for source, _ in saved.sequences} == {0}


def test_the_sequences_that_did_it_come_first(diverged, default_cache):
    (saved,) = read_run(Store(str(diverged))).diverged
    rows = list(default_cache.rows(0))
    long = {i for _, i in saved.sequences if len(rows[i].input_ids) > LATE}
    assert 0 < len(long) < 40, "the fixture does not tell them apart"
    found = examine(str(diverged))
    assert (found["step"], found["num_sequences"], found["num_not_finite"]) == (1, 40, len(long))
    assert found["parameters_not_finite"] == ["student.distilbert.embeddings.position_embeddings.weight"]
    first = [row["sequence_id"] for row in found["worst"]][: len(long)]
    assert set(first) <= long
    assert len(first) == min(len(long), 10)
    assert all(math.isnan(row["losses"]["total"]) for row in found["worst"][: len(first)])


def test_a_person_is_told(diverged, default_cache, capsys):
    assert cli.main(["debug-batch", str(diverged)]) == 0
    told = capsys.readouterr().out
    found = examine(str(diverged))
    assert f"step 1: {found['num_not_finite']} of 40 sequences lack a finite gradient" in told
    assert "position_embeddings.weight" in told
    assert f"sequence {found['worst'][0]['sequence_id']} of {default_cache.url}" in told
    assert found["worst"][0]["text"] in told
    assert cli.main(["debug-batch", str(diverged), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_sequences"] == 40


def test_reports_call_it_diverged(diverged, capsys):
    student = student_of(read_run(Store(str(diverged))), "a")
    assert student.state == "unfinished, diverged: the gradient of step 1 is not finite"
    assert cli.main(["compare", str(diverged)]) == 0
    assert "diverged" in capsys.readouterr().out


def test_too_large_a_learning_rate_is_seen_too(default_cache, tmp_path):
    spec = runs.make_spec(default_cache, tmp_path, steps=8, dtype="bfloat16", optimizer={"lr": 1e30})
    with pytest.raises(UserError, match=r"the gradient of step \d is not finite"):
        train(spec)
    found = examine(str(tmp_path))
    assert found["step"] > 1
    assert [report.step for report in read_run(Store(str(tmp_path))).steps] == list(range(1, found["step"]))
    assert found["num_not_finite"] > 0


def test_the_next_attempt_forgets_it(default_cache, poisoned, tmp_path):
    """Before its first checkpoint, a run may be tried again with another configuration."""
    with pytest.raises(UserError, match="is not finite"):
        train(poisoned_spec(default_cache, tmp_path, poisoned))
    train(runs.make_spec(default_cache, tmp_path, steps=1))
    assert read_run(Store(str(tmp_path))).diverged == []
    with pytest.raises(UserError, match="has not diverged: there is no diverged/"):
        examine(str(tmp_path))


def test_where_no_run_is_there_is_nothing_to_examine(tmp_path, capsys):
    assert cli.main(["debug-batch", str(tmp_path)]) != 0
    assert "holds no run of `student-train run`" in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_each_worker_saves_its_part(default_cache, poisoned, tmp_path):
    spec = poisoned_spec(default_cache, tmp_path, poisoned)
    values = to_dict(spec) | {"execution": runs.make_execution(num_workers=2)}
    with pytest.raises(UserError, match="the gradient of step 1 is not finite"):
        train(parse(StudentSpec, values))
    parts = read_run(Store(str(tmp_path))).diverged
    assert len(parts) == 2
    ids = [i for part in parts for _, i in part.sequences]
    assert len(ids) == len(set(ids)) == 40
    assert examine(str(tmp_path))["num_sequences"] == 40
