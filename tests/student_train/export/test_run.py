"""`student-train export`: what it writes loads elsewhere, and what it refuses leaves nothing."""

import importlib.util
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

from student_train.cli import main
from student_train.export import onnx_graph
from student_train.launch import train
from teacher_cache.storage.store import Store
from tests import families
from tests.student_train import runs
from tests.student_train.export import heads
from tests.student_train.export.test_task_scores import write_table
from tests.student_train.worth.records import write_made_up_worth

TEXT = "the old man saw a small bird"


@pytest.fixture(scope="module")
def run(default_cache, tmp_path_factory) -> Path:
    """A finished run's output."""
    output = tmp_path_factory.mktemp("run")
    train(runs.make_spec(default_cache, output, steps=1))
    return output


def refusal(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """The one line that a refused command says."""
    assert main(["export", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert len(captured.err.splitlines()) == 1
    return captured.err


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_run_with_everything(run, tmp_path, capsys):
    worth = write_made_up_worth(tmp_path / "worth", paths={"six layers": str(run / "model")})
    output = tmp_path / "out"
    arguments = ["--onnx", "--int8", "--sentence-embedding", "--worth", worth, "--json"]
    assert main(["export", str(run), str(output), *arguments]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {*result["num_bytes"], "README.md"} == files_of(output)
    added = {"modules.json", "1_Pooling/config.json", "onnx/model.onnx", "onnx/model_int8.onnx"}
    assert added <= set(result["num_bytes"])
    assert all((output / key).stat().st_size == size for key, size in result["num_bytes"].items())
    expected = AutoModelForMaskedLM.from_pretrained(run / "model").state_dict()
    model = AutoModelForMaskedLM.from_pretrained(output)
    assert all(torch.equal(expected[name], value) for name, value in model.state_dict().items())
    inputs = AutoTokenizer.from_pretrained(output)([TEXT], return_tensors="np")
    assert onnx_graph.onnx_logits(output / "onnx" / "model.onnx")(inputs).shape == (1, 9, families.VOCAB_SIZE)
    figures = result["onnx"]
    assert figures["largest_difference"] <= onnx_graph.TOLERANCE
    assert set(figures["latency_ms"]) == {"PyTorch", "onnx/model.onnx", "onnx/model_int8.onnx"}
    assert all(0 < value < math.inf for value in (*figures["latency_ms"].values(), *figures["speedup"].values()))
    assert 0 < result["int8_agreement"]["divergence"] < 1
    card = (output / "README.md").read_text()
    assert card.startswith((run / "model" / "README.md").read_text().strip())
    sections = [line for line in card.splitlines() if line.startswith("## ")]
    assert sections[-3:] == ["## What it is worth", "## ONNX", "## Sentence embeddings"]
    assert "This model is six layers." in card
    assert "- six layers keeps 93." in card
    assert f"int8 on sample text: the same first as float32 in {result['int8_agreement']['top_1']:.1%}" in card
    assert main(["export", str(output), str(tmp_path / "again"), "--sentence-embedding"]) == 0
    again = (tmp_path / "again" / "README.md").read_text()
    assert "ONNX" not in again, "these files are not here"
    assert again.count("## Sentence embeddings") == 1
    assert again.startswith((run / "model" / "README.md").read_text().strip())


def test_a_worth_of_other_models_is_refused(run, tmp_path, capsys):
    worth = write_made_up_worth(tmp_path / "worth")
    message = f"--worth {worth} does not know {run}; export a model as its worth.yaml names it: teacher (teacher), six"
    assert message in refusal(capsys, run, tmp_path / "out", "--worth", worth)


def test_a_fine_tuned_model_is_told_by_its_place(tmp_path, capsys):
    worth = write_made_up_worth(tmp_path / "worth")
    model = heads.save(tmp_path / "worth" / "runs" / "six_layers" / "RTE" / "3e-05-1" / "model", "classification")
    assert main(["export", str(model), str(tmp_path / "out"), "--worth", worth]) == 0
    assert "This model was fine-tuned from six layers." in (tmp_path / "out" / "README.md").read_text()


def test_int8_of_a_regression_is_measured_too(tmp_path, capsys):
    model = heads.save(tmp_path / "model", "regression")
    assert main(["export", str(model), str(tmp_path / "out"), "--int8"]) == 0
    assert re.search(r"differs from float32 by 0\.\d+ in the mean of 12 texts", capsys.readouterr().out)


def test_without_options_the_folder_alone(run, tmp_path, capsys):
    assert main(["export", str(run), str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "model.safetensors" in said
    assert "tokenizer_config.json" in said
    assert "onnx" not in said
    assert files_of(tmp_path / "out") == files_of(run / "model")


def test_what_int8_loses_on_a_task(tmp_path, capsys):
    task, model = write_table(tmp_path / "task"), heads.save(tmp_path / "model", "classification", "bert")
    assert main(["export", str(model), str(tmp_path / "out"), "--int8", "--task", task, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    exact, rounded = result["scores"]["onnx/model.onnx"], result["scores"]["onnx/model_int8.onnx"]
    assert set(exact) == set(rounded)
    assert 0 < exact["accuracy"] < 100
    card = (tmp_path / "out" / "README.md").read_text()
    assert "# bert for classification, 2 layers" in card
    assert f"| `onnx/model_int8.onnx` | {rounded['accuracy']:.2f} |" in card
    classifier = pipeline("text-classification", str(tmp_path / "out"))
    assert classifier(TEXT)[0]["label"] in heads.LABELS.values()


@pytest.mark.s3
def test_an_export_to_a_url(run, s3, capsys):
    assert main(["export", str(run), f"{s3}/out", "--sentence-embedding", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert Store(f"{s3}/out").exists("1_Pooling/config.json")
    assert all(Store(f"{s3}/out").exists(key) for key in result["num_bytes"])
    assert "is not empty" in refusal(capsys, run, f"{s3}/out")


def test_a_place_that_holds_something_is_refused(run, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    message = f"{tmp_path} is not empty; give a folder that holds nothing yet, or delete it first"
    assert message in refusal(capsys, run, tmp_path)
    assert "is not empty" in refusal(capsys, run, tmp_path / "notes.txt")
    assert files_of(tmp_path) == {"notes.txt"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "task.yaml"], "--task says what int8 loses on a task; add --int8, or leave it out"),
        (["--int8", "--task", "absent.yaml"], "absent.yaml does not exist"),
        (["--worth", "absent"], "absent holds no worth.json; give what `student-train worth` wrote"),
        (["--push", "user/name"], "--push needs a token of the hub that may write; set HF_TOKEN, or run `hf auth logi"),
        (["--push", "name"], "--push name names no owner; write user/name"),
        (["--push", "a/b/c"], "--push a/b/c is no name of a repository"),
    ],
)
def test_refusals_leave_nothing(arguments, message, run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert message in refusal(capsys, run, tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


def test_a_graph_that_is_not_true_leaves_nothing(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(onnx_graph, "TOLERANCE", 0)
    assert "is no true one" in refusal(capsys, run, tmp_path / "out", "--onnx")
    assert not (tmp_path / "out").exists()


def test_what_is_not_installed_is_named(run, tmp_path, monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find_spec(name))
    message = "ONNX needs onnxscript; run pip install 'teacher-cache[export]'"
    assert message in refusal(capsys, run, tmp_path / "out", "--onnx")
    assert main(["export", str(run), str(tmp_path / "out")]) == 0
