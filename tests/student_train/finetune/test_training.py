"""Tiny models learn tiny tasks of each kind, for real."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from student_train.finetune import training
from student_train.finetune.models import load_model
from student_train.finetune.plan import Run
from student_train.finetune.run import finetune
from teacher_cache.errors import UserError
from teacher_cache.tasks.task import features, load_task, score
from tests.student_train.finetune import tiny

RUN = Run(model="m", task="t", lr=3e-3, seed=1)


def config_of(folder: Path, kind: str, *, family: str = "bert", **changes: Any) -> Any:
    models = {"m": tiny.make_model(folder / "m", family)}
    tasks = {"t": tiny.make_task(folder / "t", kind)}
    return tiny.make_config(folder, **{"models": models, "tasks": tasks, "epochs": 8} | changes)


@pytest.mark.parametrize("kind", ["single", "pair", "regression", "tagging", "question_answering"])
def test_each_kind_of_task_is_learned(tmp_path, kind):
    """Far better than before, which is about chance."""
    config = config_of(tmp_path, kind)
    record = training.finetune_once(config, RUN, on_gpu=False)
    assert (record.state, record.num_steps) == ("finished", 8 * 10)
    task = load_task("t", config.tasks["t"])
    assert set(record.metrics) == set(task.metrics)
    assert record.score == record.metrics[task.metrics[0]] > 75
    assert kept_score(record.folder, task) == pytest.approx(record.metrics)


def kept_score(folder: str, task: Any) -> dict[str, float]:
    """The score of a model that was kept, one feature after the other."""
    model, tokenizer = load_model(folder, task).eval(), AutoTokenizer.from_pretrained(folder)
    dev = features(task, "dev", tokenizer)
    longest = max(map(len, dev["input_ids"]))
    logits = []
    for row in dev:
        inputs = {name: torch.tensor([row[name]]) for name in ("input_ids", "attention_mask")}
        if "token_type_ids" in row:
            inputs["token_type_ids"] = torch.tensor([row["token_type_ids"]])
        with torch.inference_mode():
            found = model(**inputs)
        if task.kind == "question_answering":
            found = torch.stack([found.start_logits, found.end_logits], dim=-1)
        else:
            found = found.logits
        found = found[0].numpy()
        if task.kind in ("tagging", "question_answering"):
            found = np.pad(found, ((0, longest - len(found)), (0, 0)))
        logits.append(found)
    return score(task, np.stack(logits), dev)


@pytest.mark.parametrize("changed", ["task", "model"])
def test_what_changed_since_it_was_checked_is_refused(tmp_path, changed):
    config = config_of(tmp_path, "single", epochs=1)
    assert finetune(config).ok
    if changed == "task":
        path = Path(config.tasks["t"].dev)
        lines = path.read_text().splitlines()
        path.write_text("\n".join(lines[1:] + lines[:1]) + "\n")
    else:
        tiny.make_model(tmp_path / "m", seed=1)
    with pytest.raises(UserError, match=f"{changed} .* is not what it was when the command began"):
        training.finetune_once(config, RUN, on_gpu=False)


@pytest.mark.parametrize("family", ["roberta", "albert", "electra", "distilbert"])
def test_all_families_learn_pairs(tmp_path, family):
    config = config_of(tmp_path, "pair", family=family, epochs=1)
    assert training.finetune_once(config, RUN, on_gpu=False).state == "finished"


def test_a_kept_model_names_its_labels(tmp_path):
    record = training.finetune_once(config_of(tmp_path, "single", epochs=1), RUN, on_gpu=False)
    config = AutoConfig.from_pretrained(record.folder)
    assert config.id2label == {0: "animal", 1: "thing"}
    assert config.problem_type == "single_label_classification"
    model = AutoModelForSequenceClassification.from_pretrained(record.folder)
    assert model.dtype == torch.float32


def test_only_the_first_seeds_models_are_kept_unless_all_are_wanted(tmp_path):
    config = config_of(tmp_path, "single", epochs=1)
    other = replace(RUN, seed=2)
    assert training.finetune_once(config, other, on_gpu=False).folder is None
    kept = training.finetune_once(replace(config, keep_models=True), other, on_gpu=False).folder
    assert kept == f"{config.output}/runs/m/t/0.003-2/model"
    assert (Path(kept) / "model.safetensors").exists()


def test_a_seed_decides_all_and_another_seed_something_else(tmp_path):
    config = config_of(tmp_path, "single", epochs=1, keep_models=True)
    first, again, other = (trained(config, replace(RUN, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(again, first)
    assert not torch.equal(other, first)


def trained(config: Any, run: Run) -> torch.Tensor:
    """The head of a fine-tuned model."""
    folder = training.finetune_once(config, run, on_gpu=False).folder
    return load_file(Path(folder) / "model.safetensors")["classifier.weight"]


def test_bfloat16_keeps_parameters_in_float32(tmp_path):
    config = config_of(tmp_path, "tagging", dtype="bfloat16")
    record = training.finetune_once(config, RUN, on_gpu=False)
    assert record.score > 75
    assert AutoModelForTokenClassification.from_pretrained(record.folder).dtype == torch.float32
    assert not torch.equal(
        trained(replace(config, epochs=1, dtype="float32"), RUN), trained(replace(config, epochs=1), RUN)
    )


def test_a_learning_rate_that_no_model_survives_diverges(tmp_path):
    record = training.finetune_once(config_of(tmp_path, "single"), replace(RUN, lr=1e30), on_gpu=False)
    assert (record.state, record.score, record.metrics, record.folder) == ("diverged", None, {}, None)
    assert 0 < record.num_steps < 80


def test_a_head_of_another_task_is_replaced(tmp_path):
    config = config_of(tmp_path, "tagging", epochs=1)
    tagger = training.finetune_once(config, RUN, on_gpu=False).folder
    again = config_of(tmp_path / "again", "regression", models={"m": tagger}, epochs=1)
    record = training.finetune_once(again, RUN, on_gpu=False)
    assert record.state == "finished"
    assert AutoConfig.from_pretrained(record.folder).num_labels == 1


def test_examples_of_all_lengths_are_seen_once_an_epoch(tmp_path, monkeypatch):
    seen: list[int] = []
    collate = training._collator

    def counting(task: Any, tokenizer: Any) -> Any:
        inner = collate(task, tokenizer)

        def collated(rows: list[dict[str, Any]]) -> Any:
            seen.extend(len(row["input_ids"]) for row in rows)
            return inner(rows)

        return collated

    monkeypatch.setattr(training, "_collator", counting)
    config = config_of(tmp_path, "single", epochs=1)
    training.finetune_once(config, RUN, on_gpu=False)
    task, tokenizer = load_task("t", config.tasks["t"]), AutoTokenizer.from_pretrained(config.models["m"])
    train, dev = ([len(ids) for ids in features(task, split, tokenizer)["input_ids"]] for split in ("train", "dev"))
    assert sorted(seen[:160]) == sorted(train)
    assert seen[160:] == sorted(dev)
    padded = [max(batch) * len(batch) for batch in np.array_split(np.array(seen[:160]), 10)]
    assert sum(padded) < 1.2 * sum(train), "batches are of like lengths"
    assert math.isclose(sum(seen), sum(train) + sum(dev))
