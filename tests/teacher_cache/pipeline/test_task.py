"""Caches of tasks: built, looked at, checked and refused."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from student_train import StudentSpec, train
from teacher_cache import UserError, build, open_cache
from teacher_cache.cli import main
from teacher_cache.config import ExecutionConfig
from teacher_cache.fidelity.compare import compare
from teacher_cache.format.cache import Cache
from teacher_cache.inspect import render_rows, show
from teacher_cache.pipeline import extend, repair
from teacher_cache.pretrained import AUTO_CLASSES
from teacher_cache.shell.settings import to_dict
from teacher_cache.task_teacher import TaskTeacher
from teacher_cache.tasks.record import Task
from teacher_cache.tasks.task import features
from teacher_cache.verify import verify
from tests import task_caches
from tests.teacher_cache.builds import shard_digests

IGNORED = -100


@pytest.fixture(scope="module", params=task_caches.KINDS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, Cache]:
    folder = tmp_path_factory.mktemp(request.param)
    task = task_caches.make_task(folder / "files", request.param)
    return task, task_caches.build_cache(folder / "cache", task)


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return task_caches.make_task(tmp_path / "files", "pair")


@contextmanager
def counted_calls(*, stop_at: int = 0) -> Iterator[list[int]]:
    """Lists the sequences of each call of the teacher; one call may be interrupted instead."""
    calls: list[int] = []
    real = TaskTeacher.answers

    def answers(self: TaskTeacher, input_ids: torch.Tensor, *arguments: Any) -> torch.Tensor:
        calls.append(len(input_ids))
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        return real(self, input_ids, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskTeacher, "answers", answers)
        yield calls


def said_anew(cache: Cache, task: Task, feature: dict[str, Any]) -> np.ndarray:
    """[C] or [S, C] what the teacher says of a feature alone, loaded as transformers does it."""
    model = AUTO_CLASSES[task.kind].from_pretrained(cache.teacher.folder).eval()
    inputs = {name: torch.tensor([feature[name]]) for name in ("input_ids", "attention_mask", "token_type_ids")}
    with torch.inference_mode():
        said = model(**inputs)
    if task.kind == "question_answering":
        return torch.stack([said.start_logits[0], said.end_logits[0]], dim=-1).numpy()
    return said.logits[0].numpy()


def test_it_holds_what_the_teacher_says_anew_of_each_feature(built):
    from transformers import AutoTokenizer

    task, cache = built
    made = features(task, "train", AutoTokenizer.from_pretrained(cache.teacher.folder))
    rows = list(cache.rows())
    assert len(rows) == len(made) >= task_caches.NUM_TRAIN
    for row, feature in zip(rows, made, strict=True):
        assert row.input_ids.tolist() == feature["input_ids"]
        assert row.document_id == feature["example"]
        kept = {"tagging": np.flatnonzero(np.array(feature.get("labels")) != IGNORED)}.get(task.kind, np.array([0]))
        if task.kind == "question_answering":
            kept = np.arange(len(row.input_ids))
        assert row.kept_positions.tolist() == kept.tolist()
        assert (row.rates == 1).all()
        expected = said_anew(cache, task, feature)
        expected = expected[kept] if expected.ndim == 2 else expected[None]
        np.testing.assert_allclose(row.topk_logits, expected, rtol=0, atol=1e-5)
        assert (row.topk_ids == np.arange(task.num_outputs)).all()
        labels = np.atleast_1d(feature.get("labels", []))
        labels = labels if task.kind in ("classification", "tagging") else labels[:0]
        assert row.label_ids.tolist() == labels[labels != IGNORED].tolist()


def test_verify_finds_it_whole_and_true(built):
    _, cache = built
    found = verify(cache, ask_teacher=True)
    assert found.ok, found.problems
    assert found.teacher
    assert found.teacher["logit"] < 1e-5


def test_show_tells_labels_and_answers(built):
    task, cache = built
    (row,) = show(cache, view=0, start=1, stop=2)
    assert len(row["labels"]) == {"tagging": row["kept"], "question_answering": 2}.get(task.kind, 1)
    for label in row["labels"]:
        names = {"regression": ["value"], "question_answering": ["start", "end"]}.get(task.kind, task.labels)
        assert set(label["teacher"]) <= set(names)
        assert label.get("true", task.labels[:1]) in (*task.labels, ())
        assert f"  at {label['position']}: " in render_rows([row])


def test_it_has_one_view_and_no_rows_to_measure(built):
    _, cache = built
    with pytest.raises(UserError, match="is a cache of a task, which has one view"):
        extend(cache.url, views=2, execution=ExecutionConfig(num_workers=0))
    with pytest.raises(UserError, match="keeps all that its teacher answers, exactly"):
        compare(cache, progress=False)
    with pytest.raises(UserError, match="is a cache of a task: students learn from it by `student-train finetune`"):
        train(StudentSpec(caches=[cache.url], output=f"{cache.url}-student"))


def test_a_build_that_was_killed_asks_only_about_what_is_missing(task, tmp_path):
    spec = task_caches.make_spec(tmp_path / "cache", task)
    with counted_calls(stop_at=2) as before, pytest.raises(KeyboardInterrupt):
        build(spec, progress=False)
    with counted_calls() as after:
        summary = build(spec, progress=False)
    assert (len(before), sorted([before[0], *after])) == (2, [4, 8, 8])  # builds begin at a unit of their own
    assert (summary.num_units_built, summary.num_sequences, summary.num_kept) == (2, 20, 20)
    with counted_calls() as again:
        assert build(spec, progress=False).num_units_built == 0
    assert again == []
    whole = task_caches.build_cache(tmp_path / "whole", task, teacher=Path(spec.teacher.model))
    assert shard_digests(whole.url) == shard_digests(spec.cache)


def test_a_damaged_unit_is_asked_about_again(task, tmp_path):
    cache = task_caches.build_cache(tmp_path / "cache", task)
    before = shard_digests(cache.url)
    damaged = next((tmp_path / "cache").glob("shards/00000/*1-*.labels.parquet"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert verify(cache).bad_units == [(0, 1)]
    assert repair(cache.url, execution=ExecutionConfig(num_workers=0, cpus_per_worker=1), progress=False).ok
    assert shard_digests(cache.url) == before


def test_other_examples_are_another_cache(task, tmp_path):
    spec = task_caches.make_spec(tmp_path / "cache", task)
    build(spec, progress=False)
    Path(str(task.config.train)).write_text(Path(str(task.config.train)).read_text().replace("animal", "thing", 1))
    with pytest.raises(UserError, match=r"was built from another spec:\n  corpus\.sha256: "):
        build(spec, progress=False)


def test_a_move_of_the_files_is_the_same_cache(task, tmp_path):
    teacher = task_caches.save_teacher(tmp_path / "teacher", task)
    moved = task_caches.make_task(tmp_path / "moved", "pair")
    first, second = (
        task_caches.build_cache(tmp_path / name, of, teacher=teacher)
        for name, of in {"first": task, "second": moved}.items()
    )
    assert first.fingerprint == second.fingerprint
    assert first.notes["corpus"] == [task.config.train]


def test_a_separator_in_the_text_is_refused(tmp_path):
    task = task_caches.make_task(tmp_path / "files", "pair")
    lines = [json.dumps({"one": "we [SEP] saw", "two": "cat", "label": label}) for label in task.labels]
    Path(str(task.config.train)).write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"example 0 of the task holds \[SEP\] as text"):
        build(task_caches.make_spec(tmp_path / "cache", task), progress=False)


def test_too_many_tokens_for_the_teacher_are_refused(task, tmp_path):
    teacher = task_caches.save_teacher(tmp_path / "teacher", task, max_position_embeddings=16)
    with pytest.raises(
        UserError, match=r"task\.max_length is 32, the teacher has 16 positions; lower it to at most 16"
    ):
        build(task_caches.make_spec(tmp_path / "cache", task, teacher=teacher), progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"views": 3}, "views: unknown key; valid keys here: cache, task, teacher, unit_sequences, execution"),
        ({"masking": {"rate": 0.2}}, "masking: unknown key"),
        ({"corpus": {"paths": ["a.txt"]}}, "corpus: unknown key"),
        ({"task": {"layout": "GLUE"}}, "task.layout: "),
    ],
)
def test_what_makes_no_sense_for_a_task_is_refused(change, message, tmp_path, capsys):
    values = {"cache": "c", "task": {"layout": "SST-2", "folder": "f"}, "teacher": {"model": "m"}} | change
    (tmp_path / "cache.yaml").write_text(yaml.safe_dump(values))
    assert main(["build", str(tmp_path / "cache.yaml")]) == 2
    assert message in capsys.readouterr().err


def test_the_command_builds_it_and_plans_it_not(task, tmp_path, capsys):
    spec = task_caches.make_spec(tmp_path / "cache", task)
    (tmp_path / "cache.yaml").write_text(yaml.safe_dump(to_dict(spec)))
    assert main(["build", str(tmp_path / "cache.yaml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_kept"] == task_caches.NUM_TRAIN
    assert main(["info", spec.cache]) == 0
    assert "1 files: " in capsys.readouterr().out
    assert main(["plan", str(tmp_path / "cache.yaml")]) == 2
    assert "plan knows caches of a corpus alone" in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_the_cache_built_on_ray_is_the_one_built_in_process(task, tmp_path):
    here = task_caches.make_spec(tmp_path / "here", task)
    on_ray = task_caches.make_spec(
        tmp_path / "ray",
        task,
        teacher=Path(here.teacher.model),
        execution={"num_workers": 2, "gpus_per_worker": 0, "cpus_per_worker": 1},
    )
    for spec in (here, on_ray):
        build(spec, progress=False)
    assert shard_digests(on_ray.cache) == shard_digests(here.cache)
    assert open_cache(on_ray.cache).fingerprint == open_cache(here.cache).fingerprint
