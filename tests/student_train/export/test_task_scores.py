"""Exported files are scored on the task's dev set, by the code that scored the fine-tuning."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from student_train.export import onnx_graph, task_scores
from teacher_cache.errors import UserError
from teacher_cache.tasks.task import features, score
from tests import families
from tests.student_train.export import heads


def write_table(folder: Path, *, num_rows: int = 70) -> str:
    """A task of texts of 1 to 9 words in three classes; the file that names it."""
    folder.mkdir(exist_ok=True)
    names = list(heads.LABELS.values())
    for split in ("train", "dev"):
        rows = [
            {
                "text": " ".join(families.WORDS[row % 40 : row % 40 + 1 + row % 9]),
                "label": names[row % 3],
                "split": split,
            }
            for row in range(num_rows)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {split: str(folder / f"{split}.jsonl") for split in ("train", "dev")}
    columns = {"layout": "table", "text": ["text"], "label": "label", "kind": "classification", "max_length": 32}
    columns |= {"epochs": 2}  # a line as it stands in a worth.yaml
    path = folder / "words.yaml"
    path.write_text(yaml.safe_dump(files | columns))
    return str(path)


def write_tags(folder: Path) -> str:
    """A task of named entities in sentences of 1 to 9 words."""
    folder.mkdir(exist_ok=True)
    for split, step in (("train", 1), ("dev", 2)):
        sentences = [
            "\n".join(
                f"{word}\t{'B-place' if word == 'river' else 'O'}" for word in families.WORDS[row : row + 1 + row % 9]
            )
            for row in range(0, 40, step)
        ]
        (folder / f"{split}.conll").write_text("\n\n".join(sentences) + "\n")
    path = folder / "tags.yaml"
    files = {split: str(folder / f"{split}.conll") for split in ("train", "dev")}
    path.write_text(yaml.safe_dump(files | {"layout": "conll", "max_length": 32}))
    return str(path)


def test_scores_are_those_of_the_model(tmp_path):
    task = task_scores.read_task(write_table(tmp_path / "task"))
    saved = heads.make(tmp_path / "model", "classification")
    task_scores.check_task(task, saved)
    onnx_graph.write_onnx(saved, tmp_path / "model.onnx")
    answers = {"torch": onnx_graph.torch_logits(saved), "onnx": onnx_graph.onnx_logits(tmp_path / "model.onnx")}
    found = task_scores.dev_scores(task, saved, answers)
    assert found["torch"] == found["onnx"]
    dev = features(task, "dev", saved.tokenizer)
    alone = [answers["torch"](one(dev, row, saved.input_names)) for row in range(len(dev))]
    assert found["torch"] == pytest.approx(score(task, np.concatenate(alone), dev))
    assert 0 < found["torch"][task.metrics[0]] < 100


def test_tags_of_texts_of_several_lengths(tmp_path):
    task = task_scores.read_task(write_tags(tmp_path / "task"))
    saved = heads.make(tmp_path / "model", "tagging", id2label=dict(enumerate(task.labels)))
    task_scores.check_task(task, saved)
    dev = features(task, "dev", saved.tokenizer)
    answer = onnx_graph.torch_logits(saved)
    together = task_scores.predict(answer, dev, saved)
    assert together.shape == (len(dev), max(map(len, dev["input_ids"])), len(task.labels))
    for row in range(len(dev)):
        alone = answer(one(dev, row, saved.input_names))[0]
        assert np.allclose(together[row, : len(alone)], alone, atol=1e-3)
    assert set(task_scores.dev_scores(task, saved, {"torch": answer})["torch"]) == set(task.metrics)


def one(dev, row, names) -> dict[str, np.ndarray]:
    """A feature alone, without padding."""
    return {name: np.array([dev[row][name]]) for name in names}


def test_a_task_of_another_kind_is_refused(tmp_path):
    task = task_scores.read_task(write_table(tmp_path / "task"))
    with pytest.raises(
        UserError, match=r"--task is classification, .* does masked_lm; give the task it was fine-tuned"
    ):
        task_scores.check_task(task, heads.make(tmp_path / "model"))


def test_a_task_of_longer_texts_than_the_model_takes_is_refused(tmp_path):
    task = task_scores.read_task(write_table(tmp_path / "task"))
    long = replace(task, config=replace(task.config, max_length=65))
    saved = heads.make(tmp_path / "model", "classification", id2label=dict(enumerate(task.labels)))
    with pytest.raises(UserError, match=r"--task has max_length 65, .* takes 64 tokens; lower it"):
        task_scores.check_task(long, saved)


def test_a_task_with_other_labels_is_refused(tmp_path):
    task = task_scores.read_task(write_table(tmp_path / "task"))
    saved = heads.make(tmp_path / "model", "classification", id2label={0: "good", 1: "bad", 2: "neither"})
    with pytest.raises(UserError, match=r"--task has the labels bad, good, neither, .* knows good, bad, neither; give"):
        task_scores.check_task(task, saved)
