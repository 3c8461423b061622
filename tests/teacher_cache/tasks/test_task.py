"""What all kinds of tasks share."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from teacher_cache.errors import UserError
from teacher_cache.tasks import task as tasks
from teacher_cache.tasks.task import features, load_task, score
from tests.teacher_cache.tasks import tiny_tokenizers
from tests.teacher_cache.tasks.task_files import load, make_config, perfect

HEADER = "sentence\tlabel\n"


@pytest.fixture
def task(tmp_path: Path) -> tasks.Task:
    rows = [f"the {'old ' * (number % 7)}man\t{number % 2}\n" for number in range(11)]
    files: dict[str, str | bytes] = {
        "train.tsv": HEADER + "".join(rows),
        "dev.tsv": HEADER + "".join(rows[:5]),
    }
    return load(tmp_path, files, layout="SST-2", max_length=8)


@pytest.mark.parametrize("kind", tiny_tokenizers.KINDS)
def test_features_come_in_the_order_of_examples(kind: str, task: tasks.Task, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizers.make(kind)
    whole = features(task, "train", tokenizer)
    monkeypatch.setattr(tasks, "BATCH_EXAMPLES", 3)
    assert features(task, "train", tokenizer)[:] == whole[:]
    assert whole["example"][:] == list(range(11))
    assert whole["labels"][:] == task.train["label"][:]
    assert max(map(len, whole["input_ids"])) == 8
    # RoBERTa and ALBERT, whose tokenizers say no types, take them as 0.
    assert ("token_type_ids" in whole.column_names) == (kind == "wordpiece")


def test_rows_are_found_by_their_example(task: tasks.Task) -> None:
    dev = features(task, "dev", tiny_tokenizers.make("wordpiece"))
    turned = dev.select([4, 2, 0, 1, 3])
    assert score(task, perfect(task, turned), turned) == {"accuracy": 100.0}
    assert score(task, perfect(task, dev), turned)["accuracy"] < 100


def test_predictions_of_another_shape_are_refused(task: tasks.Task) -> None:
    dev = features(task, "dev", tiny_tokenizers.make("wordpiece"))
    for shape in [(4, 2), (5, 3), (5,)]:
        with pytest.raises(ValueError, match=r"they must be \(5, …, 2\)"):
            score(task, np.zeros(shape), dev)


def test_tokenizers_that_do_not_fit_are_refused(task: tasks.Task) -> None:
    slow = SimpleNamespace(is_fast=False)
    with pytest.raises(UserError, match="SimpleNamespace is a slow tokenizer"):
        features(task, "dev", slow)
    short = tiny_tokenizers.make("wordpiece")
    long = load_task("long", make_config(layout="SST-2", folder=task.config.folder, max_length=129))
    with pytest.raises(UserError, match="task long: max_length is 129, and the tokenizer's models take 128 tokens"):
        features(long, "dev", short)


def test_missing_libraries_are_named(task: tasks.Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "LIBRARIES", ("scipy", "no_such_library"))
    with pytest.raises(UserError, match=r"tasks need no_such_library: pip install 'teacher-cache\[tasks\]'"):
        load_task("tiny", task.config)
