"""Tiny tasks that tiny models can learn, models to learn them, and configurations of both."""

import json
import random
from pathlib import Path
from typing import Any

from student_train.finetune.config import FinetuneConfig
from teacher_cache.shell.settings import parse
from tests import families

ANIMALS = ("cat", "dog", "fish", "bird", "horse")
OTHERS = tuple(word for word in families.WORDS if word not in ANIMALS)
SMALL: dict[str, Any] = {"num_hidden_layers": 2}


def make_model(folder: Path, family: str = "bert", seed: int = 0) -> str:
    """A masked-LM model of two layers."""
    layers = {"n_layers": 2} if family == "distilbert" else SMALL
    return str(families.save_pretrained(folder, family, seed, **layers))


def sentences(num: int, seed: int) -> list[tuple[list[str], int]]:
    """Words, and the place of the one animal among them; -1: there is none."""
    draw = random.Random(seed)
    made = []
    for _ in range(num):
        words, place = draw.choices(OTHERS, k=draw.randint(3, 9)), -1
        if draw.random() < 0.5:
            place = draw.randrange(len(words))
            words[place] = draw.choice(ANIMALS)
        made.append((words, place))
    return made


def make_task(folder: Path, kind: str, *, num_train: int = 160, num_dev: int = 40) -> dict[str, Any]:
    """A task's files; its configuration in plain values."""
    folder.mkdir(parents=True, exist_ok=True)
    write, suffix, values = _KINDS[kind]
    files = {"train": (num_train, 1), "dev": (num_dev, 2)}
    for split, (num, seed) in files.items():
        (folder / f"{split}.{suffix}").write_text(write(sentences(num, seed)))
    return values | {split: str(folder / f"{split}.{suffix}") for split in files} | {"max_length": 32}


def _table(row: Any) -> Any:
    return lambda made: "".join(json.dumps(row(words, place)) + "\n" for words, place in made)


def _conll(made: list[tuple[list[str], int]]) -> str:
    tagged = [[f"{word}\t{'B-animal' if i == place else 'O'}" for i, word in enumerate(words)] for words, place in made]
    return "\n\n".join("\n".join(lines) for lines in tagged) + "\n"


def _squad(made: list[tuple[list[str], int]]) -> str:
    """Which animal is it? Sentences without one are given one."""
    paragraphs = []
    for index, (words, place) in enumerate(made):
        words, place = (words, place) if place >= 0 else ([*words, "cat"], len(words))
        start = len(" ".join([*words[:place], ""]))
        answer = {"text": words[place], "answer_start": start}
        question = {"id": str(index), "question": "we saw", "answers": [answer]}
        paragraphs.append({"context": " ".join(words), "qas": [question]})
    return json.dumps({"version": "1.1", "data": [{"title": "animals", "paragraphs": paragraphs}]})


def _label(place: int) -> str:
    return "thing" if place < 0 else "animal"


_CLASSES = {"layout": "table", "label": "label", "kind": "classification"}
_KINDS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "single": (
        _table(lambda words, place: {"text": " ".join(words), "label": _label(place)}),
        "jsonl",
        _CLASSES | {"text": ["text"]},
    ),
    "pair": (
        _table(lambda words, place: {"one": "we saw", "two": " ".join(words), "label": _label(place)}),
        "jsonl",
        _CLASSES | {"text": ["one", "two"]},
    ),
    "regression": (
        _table(lambda words, place: {"text": " ".join(words), "label": float(place >= 0)}),
        "jsonl",
        {"layout": "table", "text": ["text"], "label": "label", "kind": "regression"},
    ),
    "tagging": (_conll, "conll", {"layout": "conll"}),
    "question_answering": (_squad, "json", {"layout": "squad", "stride": 8}),
}


def make_values(folder: Path, **overrides: Any) -> dict[str, Any]:
    """A configuration in plain values, of one model and one task in this process unless keywords say otherwise."""
    values: dict[str, Any] = {
        "output": str(folder / "output"),
        "lrs": [1e-3],
        "seeds": [1],
        "epochs": 1,
        "batch_size": 16,
        "execution": {"num_workers": 0, "gpus_per_worker": 0},
    }
    if "models" not in overrides:
        values["models"] = {"teacher": make_model(folder / "teacher")}
    if "tasks" not in overrides:
        values["tasks"] = {"animals": make_task(folder / "animals", "single")}
    return values | overrides


def make_config(folder: Path, **overrides: Any) -> FinetuneConfig:
    return parse(FinetuneConfig, make_values(folder, **overrides))
