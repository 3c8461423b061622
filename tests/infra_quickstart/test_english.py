"""The quickstart's text and its stand-in teacher."""

import ast
import math
from itertools import islice
from pathlib import Path

import pytest
from transformers import AutoModelForMaskedLM, AutoTokenizer

from infra.quickstart import english, stand_in_teacher

SENTENCE = "The result is the first line of the file that was read."


def prose(text: str) -> list[str]:
    return [paragraph for paragraph in english.paragraphs(text) if english.is_prose(paragraph)]


def test_hard_wrapped_lines_become_one_paragraph() -> None:
    assert prose("The result is the first line\nof the file that was read.\n\n" + SENTENCE) == [SENTENCE, SENTENCE]


def test_list_items_are_paragraphs_without_bullets() -> None:
    text = "- The result is the first line\n  of the file that was read.\n2. " + SENTENCE
    assert prose(text) == [SENTENCE, SENTENCE]


@pytest.mark.parametrize(
    ("marked", "plain"),
    [
        (":class:`~a.Tensor`", "a.Tensor"),
        ("``x`` and `y`", "x and y"),
        ("**bold** and *slanted*", "bold and slanted"),
        ("`the guide <https://example.org>`_", "the guide"),
        ("2 * 3 * 4", "2 * 3 * 4"),
    ],
)
def test_markup_is_stripped(marked: str, plain: str) -> None:
    assert english.without_markup(marked) == plain


@pytest.mark.parametrize(
    "paragraph",
    [
        "Too short to keep.",
        "the result is the first line of the file that was read.",
        "The result is the first line of the file that was read",
        ">>> " + SENTENCE,
        "The result is at https://example.org in the file that was read.",
        "x (int): The number of the lines of the file that was read.",
        "+---+---+ | a | b | +---+---+ | c | d | +---+---+.",
        "Copyright is held by the authors of the file that was read.",
        "Das Ergebnis ist immer die erste Zeile der gelesenen Datei.",
    ],
)
def test_what_is_no_prose_is_refused(paragraph: str) -> None:
    assert not english.is_prose(paragraph)


def test_docstrings_of_classes_and_methods_are_found_in_order() -> None:
    source = '"""M"""\nclass A:\n  """A"""\n  def f(self):\n    """f"""\ndef g():\n  """g"""\n'
    assert list(english.docstrings(ast.parse(source))) == ["M", "A", "f", "g"]


def test_a_paragraph_is_kept_once_and_short_documents_are_dropped() -> None:
    text = "\n\n".join(SENTENCE.replace("first", ordinal) for ordinal in ("first", "second", "last"))
    assert list(english.documents([text, SENTENCE, text], set())) == [text.replace("\n\n", "\n") + "\n"]


def test_all_get_a_fair_share() -> None:
    assert list(english.round_robin([["a", "b", "c"], [], ["d"]])) == ["a", "d", "b", "c"]


def test_the_limit_counts_separating_lines() -> None:
    assert list(english.up_to(8, ["abc", "def", "g"])) == ["abc", "def"]


def test_the_same_text_is_found_again() -> None:
    assert list(islice(english.english(), 20)) == list(islice(english.english(), 20))


def test_stand_in_teacher_loads_and_guesses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stand_in_teacher, "VOCABULARY", 500)
    paths = english.write(tmp_path, islice(english.english(), 30))
    assert {path.name for path in paths} == {"heldout.txt", "english-00.txt"}
    loss, accuracy = stand_in_teacher.make_teacher(tmp_path, tmp_path / "teacher", num_steps=3)
    assert math.isfinite(loss)
    assert 0 <= accuracy <= 1
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "teacher")
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "teacher")
    ids = tokenizer("The FILE is [MASK].", return_tensors="pt")["input_ids"]
    assert tokenizer.mask_token_id in ids
    assert model(ids).logits.isfinite().all()
