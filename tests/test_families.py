"""Students of all kinds, the whole way: asked, taught, fine-tuned, exported."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModel, AutoTokenizer, BertTokenizer

from student_train.export.onnx_graph import TOLERANCE
from student_train.export.run import INT8_KEY, ONNX_KEY, ExportOptions, export_model
from student_train.finetune.run import finetune
from student_train.launch import train
from tests import caches, families
from tests.student_train import runs
from tests.student_train.finetune import tiny


@dataclass(frozen=True, kw_only=True)
class Case:
    """A teacher, what its student is, and what comes out."""

    family: str = "bert"
    teacher: dict[str, Any] = field(default_factory=dict)
    student: dict[str, Any] = field(default_factory=dict)
    is_cased: bool = False
    becomes: str
    """The student's family."""
    num_layers: int
    width: int = 32


LARGE = {"num_hidden_layers": 24, "hidden_size": 64, "num_attention_heads": 16, "intermediate_size": 256}
CASES = {
    "bert": Case(becomes="distilbert", num_layers=2),
    "bert, one layer": Case(student={"num_layers": 1}, becomes="distilbert", num_layers=1),
    "bert, cased, all layers": Case(is_cased=True, student={"num_layers": 4}, becomes="distilbert", num_layers=4),
    "bert-large": Case(teacher=LARGE, student={"num_layers": 6}, becomes="distilbert", num_layers=6, width=64),
    "bert, other width and heads": Case(
        student={"num_layers": 3, "width": 24, "num_heads": 3, "initial_weights": "random"},
        becomes="distilbert",
        num_layers=3,
        width=24,
    ),
    "roberta": Case(family="roberta", becomes="roberta", num_layers=2),
    "albert": Case(family="albert", becomes="albert", num_layers=2),
    "electra": Case(family="electra", becomes="electra", num_layers=2),
    "distilbert": Case(family="distilbert", becomes="distilbert", num_layers=2),
}


@pytest.mark.parametrize("name", CASES)
def test_a_student_goes_the_whole_way(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    teacher = families.save_pretrained(tmp_path / "teacher", case.family, **case.teacher)
    if case.is_cased:
        save_cased_tokenizer(teacher)
    # Two lengths of sequences, neither of which is the teacher's own.
    built = [
        caches.build_cache(
            tmp_path / f"cache-{length}",
            teacher=teacher,
            corpus={"paths": [str(corpus(tmp_path, case.is_cased))], "sequence_length": length},
        )
        for length in (12, 40)
    ]
    run = train(runs.make_spec(built, tmp_path / "student", student=case.student | {"dropout": 0.0}, steps=2))
    check_student(case, run.model)

    task = tiny.make_task(tmp_path / "task", "pair", num_train=32, num_dev=16)
    models = {"teacher": str(teacher), "student": run.model}
    found = finetune(tiny.make_config(tmp_path, models=models, tasks={"animals": task}))
    assert found.errors == {}
    assert [(record.model, record.state) for record in found.results.runs] == [
        ("teacher", "finished"),
        ("student", "finished"),
    ]

    (tmp_path / "task.yaml").write_text(yaml.safe_dump(task))
    tuned = next(record.folder for record in found.results.runs if record.model == "student")
    assert tuned is not None
    exported = export_model(
        tuned, str(tmp_path / "exported"), ExportOptions(int8=True, task=str(tmp_path / "task.yaml"))
    )
    assert exported.onnx is not None
    assert exported.onnx.largest_difference <= TOLERANCE
    assert exported.num_bytes[INT8_KEY] < exported.num_bytes[ONNX_KEY]
    assert set(exported.scores) == {ONNX_KEY, INT8_KEY}


def save_cased_tokenizer(teacher: Path) -> None:
    """Of the same size, such that capitals are tokens of their own."""
    words = [word.capitalize() if place % 2 else word for place, word in enumerate(families.WORDS)]
    tokens = [*families.make_tokenizer().all_special_tokens, *words]
    vocabulary = {token: families.make_tokenizer().get_vocab().get(token, place) for place, token in enumerate(tokens)}
    BertTokenizer(vocab=vocabulary, do_lower_case=False, model_max_length=families.MAX_LENGTH).save_pretrained(teacher)


def corpus(folder: Path, is_cased: bool) -> Path:
    path = folder / "corpus.txt"
    if not path.exists():
        caches.make_corpus(path)
        if is_cased:
            path.write_text(path.read_text().title())
    return path


def check_student(case: Case, folder: str) -> None:
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    config = model.config
    assert (config.model_type, config.num_hidden_layers, config.hidden_size) == (
        case.becomes,
        case.num_layers,
        case.width,
    )
    assert (tokenizer("Of")["input_ids"] != tokenizer("of")["input_ids"]) == case.is_cased
