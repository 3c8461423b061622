"""SQuAD's files."""

import json
from pathlib import Path
from typing import Any

import pytest

from teacher_cache.errors import UserError
from teacher_cache.tasks.squad import read_squad
from tests.teacher_cache.tasks.task_files import load, question, squad

CONTEXT = "Zoë 🎈 saw the old river."


def read(folder: Path, content: str | bytes) -> dict[str, list[Any]]:
    path = folder / "a.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_squad(str(path))


def test_both_versions_are_read(tmp_path: Path) -> None:
    twice = question(CONTEXT, "old river", text=" what ")
    twice["answers"].append({"text": "river", "answer_start": CONTEXT.index("river")})
    possible = question(CONTEXT, "Zoë", id="p", is_impossible=False)
    impossible = question(CONTEXT, None, id="i", plausible_answers=[{"text": "Zoë", "answer_start": 0}])
    assert read(tmp_path, squad((CONTEXT, [twice, possible]), ("No.", [impossible]))) == {
        "id": ["q", "p", "i"],
        "question": ["what", "what", "what"],
        "context": [CONTEXT, CONTEXT, "No."],
        "answers": [["old river", "river"], ["Zoë"], []],
        "answer_starts": [[14, 18], [0], []],
    }


def test_a_file_without_an_answer_has_the_same_columns(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "train": squad((CONTEXT, [question(CONTEXT, "river")])),
        "dev": squad((CONTEXT, [question(CONTEXT, None)])),
    }
    task = load(tmp_path, files, layout="squad", train="train", dev="dev")
    assert task.train.features == task.dev.features
    assert (task.kind, task.labels, task.num_outputs) == ("question_answering", (), 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not in SQuAD's layout: the file: Invalid JSON"),
        ("[]", "is not in SQuAD's layout: the file: "),
        ('{"data": [{"title": "a"}]}', r"is not in SQuAD's layout: data\.0\.paragraphs: Field required"),
        (squad(("a", [{"id": "q", "question": "x"}])), r"data\.0\.paragraphs\.0\.qas\.0\.answers: Field required"),
        (json.dumps({"data": []}), "holds no questions"),
        (
            squad(("a", [{"id": "q", "question": "x", "answers": []}])),
            "question q: it has no answer; give one, or mark",
        ),
        (squad(("a", [question("a", "a", is_impossible=True)])), "question q: it is marked as impossible, and has an"),
        (squad(("a", [question("a", "")])), "question q: an answer is empty"),
        (
            squad(("a b", [question("a b c", "b c")])),
            "from character 2 to 5 stands outside its context of 3 characters",
        ),
        (squad(("a b", [question("b a", "b")])), "at character 0 of the context stands 'a', and not the answer 'b'"),
        (b'{"data": "\xff"}', "is not UTF-8 at byte 10"),
    ],
)
def test_wrong_files_are_named(content: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"a\.json.*{message}"):
        read(tmp_path, content)
