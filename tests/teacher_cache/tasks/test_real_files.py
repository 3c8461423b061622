"""Real task files, where TASK_FILES names a folder with SST-2, RTE, STS-B, wnut17 and xquad-en."""

import json
import os
from pathlib import Path

import pytest

from teacher_cache.tasks.task import features, load_task, score
from tests.teacher_cache.tasks import tiny_tokenizers
from tests.teacher_cache.tasks.task_files import make_config, perfect

TASKS = {
    "SST-2": ({"layout": "SST-2"}, 67_349, 872),
    "RTE": ({"layout": "RTE"}, 2_490, 277),
    "STS-B": ({"layout": "STS-B"}, 5_749, 1_500),
    "wnut17": ({"layout": "conll", "train": "wnut17train.conll", "dev": "emerging.dev.conll"}, 3_394, 1_009),
}
LEAST = {"wnut17": 85}
"""The tiny tokenizers make many tokens, so that max_length cuts entities off."""


@pytest.fixture
def folder() -> Path:
    if "TASK_FILES" not in os.environ:
        pytest.skip("needs real task files: set TASK_FILES to a folder with SST-2, RTE, STS-B, wnut17 and xquad-en")
    return Path(os.environ["TASK_FILES"])


@pytest.mark.parametrize("kind", tiny_tokenizers.KINDS)
@pytest.mark.parametrize("name", TASKS)
def test_perfect_predictions(name: str, kind: str, folder: Path) -> None:
    values, num_train, num_dev = TASKS[name]
    places = {split: str(folder / name / values[split]) for split in ("train", "dev") if split in values}
    task = load_task(name, make_config(**(values | (places or {"folder": str(folder / name)}))))
    assert (task.train.num_rows, task.dev.num_rows) == (num_train, num_dev)
    dev = features(task, "dev", tiny_tokenizers.make(kind))
    found = score(task, perfect(task, dev), dev)
    assert LEAST.get(name, 100 - 1e-9) <= min(found.values()) <= max(found.values()) <= 100


def test_true_spans_are_the_answers(folder: Path, tmp_path: Path) -> None:
    whole = folder / "xquad-en" / "xquad.en.json"
    train = tmp_path / "train.json"
    train.write_text(json.dumps({"data": json.loads(whole.read_text())["data"][:4]}))
    config = make_config(layout="squad", train=str(train), dev=str(whole), max_length=512, stride=160)
    task = load_task("xquad", config)
    assert task.dev.num_rows == 1_190
    found = {}
    for window in features(task, "dev", tiny_tokenizers.make("wordpiece", model_max_length=512)):
        if window["start_positions"]:
            example = task.dev[window["example"]]
            start, end = window["starts"][window["start_positions"]], window["ends"][window["end_positions"]]
            assert example["answers"][0] in example["context"][start:end]
            found[window["example"]] = example["context"][start:end] == example["answers"][0]
    assert len(found) > 0.99 * task.dev.num_rows  # some answers are longer than what windows share
    assert sum(found.values()) > 0.99 * len(found)  # some end within a token
