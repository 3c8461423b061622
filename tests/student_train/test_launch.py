"""Whole runs: in this process, and by Ray Train."""

import json
import math
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboardX.proto.event_pb2 import Event
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

from student_train import launch
from student_train.config import StudentSpec
from student_train.launch import train
from student_train.run_folder import TrainSummary
from student_train.worker import run_worker
from teacher_cache.errors import UserError
from teacher_cache.format.cache import Cache
from teacher_cache.shell.settings import parse
from tests import caches, families
from tests.caches import copy_without
from tests.student_train import runs


def read_metrics(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def read_student(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def finished(default_cache, tmp_path_factory) -> tuple[StudentSpec, TrainSummary, Path]:
    """A finished run of seven steps."""
    output = tmp_path_factory.mktemp("finished")
    spec = runs.make_spec(default_cache, output, steps=7, execution=runs.make_execution(checkpoint_steps=3))
    return spec, train(spec), output


def test_summary_tells_what_was_learned(finished, default_cache):
    _, summary, output = finished
    assert summary.fingerprints == [default_cache.fingerprint]
    assert (summary.output, summary.model) == (str(output), str(output / "model"))
    assert (summary.num_steps, summary.num_workers) == (7, 1)
    assert summary.num_parameters == sum(tensor.numel() for tensor in read_student(output).values())
    assert all(math.isfinite(value) for value in summary.losses.values())
    assert summary.sequences_per_s > 0


def test_logs_hold_every_step(finished):
    _, summary, output = finished
    rows = read_metrics(output)
    assert [row["step"] for row in rows] == list(range(1, 8))
    assert [row["num_sequences"] for row in rows] == [16, 16, 16, 2, 16, 16, 16]
    assert rows[-1]["losses"] == summary.losses
    assert read_scalars(output / "tensorboard", "loss/total") == pytest.approx(
        {row["step"]: row["losses"]["total"] for row in rows}, rel=1e-6
    )


def read_scalars(folder: Path, tag: str) -> dict[int, float]:
    """A scalar by step, from TensorBoard's record files: length, its checksum, the event, its checksum."""
    values: dict[int, float] = {}
    for path in sorted(folder.glob("events.*")):
        data, place = path.read_bytes(), 0
        while place < len(data):
            length = int.from_bytes(data[place : place + 8], "little")
            event = Event.FromString(data[place + 12 : place + 12 + length])
            for item in event.summary.value:
                if item.tag == tag:
                    values[event.step] = item.simple_value
            place += length + 16
    return values


def test_model_card_names_source_recipe_and_figures(finished, default_cache):
    _, summary, output = finished
    card = (output / "model" / "README.md").read_text()
    assert f"`{default_cache.fingerprint}`" in card
    assert all(f"view {view} `{default_cache.manifest(view).sha256}`" in card for view in (0, 1))
    assert "| loss.temperature | 2.0 |" in card
    assert "| optimizer.lr | 0.0005 |" in card
    assert "| sequences a step | 16 |" in card
    assert f"Last step: 7 of 7; soft_labels {summary.losses['soft_labels']:.4f}" in card
    assert card.startswith("---\n")
    assert "pipeline_tag: fill-mask" in card


def test_a_finished_run_does_nothing_again_and_says_so(finished):
    spec, summary, output = finished
    card, rows, student = (output / "model" / "README.md").read_text(), read_metrics(output), read_student(output)
    again = train(spec)
    assert again.losses == summary.losses
    assert again.sequences_per_s == 0
    assert (again.num_steps, again.seconds) == (summary.num_steps, summary.seconds)
    assert read_metrics(output) == rows
    assert (output / "model" / "README.md").read_text() == card
    assert all(torch.equal(student[name], tensor) for name, tensor in read_student(output).items())


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_the_finished_student_fills_masks(family, tmp_path):
    teacher = families.save_pretrained(tmp_path / "teacher", family)
    cache = caches.build_cache(tmp_path / "cache", teacher=teacher)
    summary = train(runs.make_spec(cache, tmp_path / "run", epochs=1))
    model, report = AutoModelForMaskedLM.from_pretrained(summary.model, output_loading_info=True)
    assert model.config.model_type == {"bert": "distilbert"}.get(family, family)
    assert model.config.num_hidden_layers == 2
    assert not any(report.values())
    tokenizer = AutoTokenizer.from_pretrained(summary.model)
    fill = pipeline("fill-mask", model=summary.model)
    answers = fill(f"the old man {tokenizer.mask_token} the river", top_k=3)
    assert len(answers) == 3
    assert all(answer["token_str"] in tokenizer.get_vocab() for answer in answers)


def test_a_killed_run_goes_on_with_its_logs(default_cache, tmp_path, finished):
    execution = runs.make_execution(checkpoint_steps=3)
    spec = runs.make_spec(default_cache, tmp_path, steps=7, execution=execution)

    def kill(report: Any) -> None:
        if report.step == 6:
            raise runs.KilledError

    with pytest.raises(runs.KilledError):
        run_worker(spec, device=runs.CPU, show=print, on_checkpoint=kill)
    assert not (tmp_path / "model").exists()
    train(spec)
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(1, 8))
    whole = read_student(finished[2])
    assert all(torch.equal(whole[name], tensor) for name, tensor in read_student(tmp_path).items())


def test_an_unsealed_cache_is_refused(default_cache, tmp_path):
    cache = copy_without(default_cache, tmp_path / "cache", "manifests/*")
    with pytest.raises(UserError, match="view 0 is not sealed; finish it with `teacher-cache build`"):
        train(runs.make_spec(cache, tmp_path / "run"))


def test_an_address_without_a_cache_is_refused(tmp_path):
    values = {"caches": [str(tmp_path / "nowhere")], "output": str(tmp_path / "run")}
    with pytest.raises(UserError, match=r"nowhere"):
        train(parse(StudentSpec, values | {"execution": runs.make_execution()}))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({}, "stores no last hidden states, which loss.soft_labels: replay and loss.weights.cosine need"),
        ({"loss": {"soft_labels": "bucket"}}, "stores no last hidden states"),
        (
            {"loss": runs.BUCKET_ONLY | {"temperature": 4}},
            r"a temperature that the cache stores \(1, 2\), not 4; use one of these, or soft_labels: replay",
        ),
        ({"loss": runs.BUCKET_ONLY, "student": {"initial_weights": "/no/where"}}, "/no/where is no folder"),
        ({"loss": runs.BUCKET_ONLY, "student": {"num_layers": 9}}, "num_layers is 9, the teacher has 4"),
    ],
)
def test_what_does_not_fit_the_cache_is_refused(labels_only_cache, tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        train(runs.make_spec(labels_only_cache, tmp_path / "run", **overrides))
    assert not (tmp_path / "run").exists()


def test_caches_of_different_teachers_are_refused(default_cache, tmp_path):
    teacher = families.save_pretrained(tmp_path / "teacher", seed=1)
    other = caches.build_cache(tmp_path / "other", teacher=teacher, keep={"unmasked": 0.3})
    with pytest.raises(UserError, match="are of different teachers or tokenizers: one run needs one"):
        train(runs.make_spec([default_cache, other], tmp_path / "run"))


def test_another_run_in_the_output_is_refused(finished, default_cache):
    with pytest.raises(UserError, match="holds checkpoints of another run"):
        train(runs.make_spec(default_cache, finished[2], steps=8))


GENTLE = {"eps": 1e-3}
"""The key biases' gradient is 0 but for rounding (softmax does not see them), which Adam's own eps would blow up."""


def with_workers(cache: Cache, output: Path, **overrides: Any) -> StudentSpec:
    """Two Ray workers, each on its part of every batch."""
    execution = runs.make_execution(num_workers=2, checkpoint_steps=2, **overrides)
    return runs.make_spec(cache, output, steps=5, optimizer=GENTLE, execution=execution)


@pytest.fixture(scope="module")
def in_process(default_cache, tmp_path_factory) -> dict[str, torch.Tensor]:
    """The student of the same run without Ray."""
    output = tmp_path_factory.mktemp("in-process")
    train(runs.make_spec(default_cache, output, steps=5, optimizer=GENTLE))
    return read_student(output)


def assert_close(student: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, tensor in expected.items():
        torch.testing.assert_close(student[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_two_workers_learn_what_one_process_learns(default_cache, in_process, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # relative paths: Ray Train's workers run in folders of their own
    spec = with_workers(default_cache, Path("run"))
    summary = train(replace(spec, caches=(os.path.relpath(default_cache.url),)))
    assert "step 5/5  loss" in capsys.readouterr().err
    tmp_path = tmp_path / "run"
    assert (summary.num_workers, summary.num_steps) == (2, 5)
    assert set(summary.losses) == {"soft_labels", "masked_lm", "cosine", "total"}
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(1, 6))
    assert_close(read_student(tmp_path), in_process)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_a_worker_that_dies_is_started_again_and_goes_on(default_cache, in_process, tmp_path, monkeypatch):
    died = tmp_path / "died"

    def dying_loop(config: dict[str, Any]) -> dict[str, Any]:
        """A worker whose process ends at the first checkpoint, once."""
        import ray.train

        def die_once(report: Any) -> None:
            if ray.train.get_context().get_world_rank() == 1 and not died.exists():
                died.write_text(str(report.step))
                os._exit(1)
            ray.train.report({"step": report.step})

        torch.set_num_threads(1)
        spec = parse(StudentSpec, config["spec"])
        summary = run_worker(spec, device=torch.device("cpu"), show=config["shown"].put, on_checkpoint=die_once)
        return asdict(summary)

    monkeypatch.setattr(launch, "_train_loop", dying_loop)
    output = tmp_path / "run"
    summary = train(with_workers(default_cache, output))
    assert died.read_text() == "2"
    assert summary.num_steps == 5
    assert [row["step"] for row in read_metrics(output)] == list(range(1, 6))
    assert_close(read_student(output), in_process)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_a_mistake_that_only_workers_find_is_one_message(default_cache, tmp_path):
    """Hidden objects that are missing are found by the workers only."""
    cache = copy_without(default_cache, tmp_path / "cache", "shards/*/*.hidden*")
    with pytest.raises(UserError, match=r"hidden\S* is missing"):
        train(with_workers(cache, tmp_path / "run", max_failures=0))
