"""CoNLL files."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacher_cache.errors import UserError
from teacher_cache.tasks.conll import read_conll, to_iob2
from teacher_cache.tasks.tagging import tag_names
from tests.teacher_cache.tasks.task_files import load

FORMS = {
    "two columns": "Old\tB-place\nTown\tI-place\n\nwent\tO\n",
    "whitespace": "Old B-place\nTown  I-place\n\nwent O",
    "four columns": "-DOCSTART- -X- -X- O\n\nOld JJ B-NP B-place\nTown NN I-NP I-place\n\n\nwent VBD B-VP O\n",
    "tabs on empty lines": "Old\tB-place\nTown\tI-place\n\t\nwent\tO\n\t\n",
    "Windows": "\ufeffOld\tB-place\r\nTown\tI-place\r\n\r\nwent\tO\r\n",
    "IOB1": "Old I-place\nTown I-place\n\nwent O\n",
}


def write(folder: Path, content: str | bytes) -> str:
    path = folder / "a.conll"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str, tmp_path: Path) -> None:
    sentences = read_conll(write(tmp_path, FORMS[form]))
    assert [sentence.words for sentence in sentences] == [["Old", "Town"], ["went"]]
    assert [sentence.tags for sentence in sentences] == [["B-place", "I-place"], ["O"]]
    assert tag_names(sentences) == ("O", "B-place", "I-place")


def test_tokens_of_a_file_with_tabs_keep_their_spaces(tmp_path: Path) -> None:
    (sentence,) = read_conll(write(tmp_path, "1 000\tO\nOld\u2028Town\tB-place\n"))
    assert sentence.words == ["1 000", "Old\u2028Town"]


def test_iob1_parts_entities_that_touch(tmp_path: Path) -> None:
    content = "a I-x\nb I-x\nc B-x\nd I-x\ne I-y\nf O\ng I-x\n"
    (sentence,) = read_conll(write(tmp_path, content))
    assert sentence.tags == ["B-x", "I-x", "B-x", "I-x", "B-y", "O", "B-x"]


@given(st.lists(st.sampled_from(["O", "B-x", "I-x", "B-y", "I-y"])))
def test_iob2_is_kept_and_each_entity_begins_with_b(tags: list[str]) -> None:
    found = to_iob2(tags)
    assert [tag[2:] for tag in found] == [tag[2:] for tag in tags]
    assert to_iob2(found) == found
    for before, tag in zip(["O", *found], found, strict=False):
        assert not tag.startswith("I-") or before[2:] == tag[2:]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no sentences"),
        ("\n-DOCSTART- O\n\n", "holds no sentences"),
        ("a O\nb O\n", "every tag is O"),
        ("a\nb O\n", r"a\.conll line 1 has 1 columns"),
        ("a O\nb NN O\n", r"a\.conll line 2 has 3 columns, and the first line 2"),
        ("a O\n\nb place\n", "line 3: 'place' is no tag of 'b'; tags are O, B-type and I-type"),
        ("a S-place\n", "line 1: 'S-place' is no tag"),
        ("\tO\n\tB-x\na\tO\n", "line 1 has a tag, but no token before it"),
        ("a B-x\nb O\nc I-x\n", "line 3: an I- tag that continues no entity of its type; begin entities with B-"),
        ("a B-x\n\nb I-x\n", "line 3: an I- tag"),
        (b"a B-x\n\xe9 O\n", r"a\.conll is not UTF-8 at byte 6"),
    ],
)
def test_wrong_files_are_named(content: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_conll(write(tmp_path, content))


def test_tags_unknown_to_train_are_refused(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {"train": "a B-x\n", "dev": "a B-x\nb B-y\n"}
    with pytest.raises(UserError, match=r"dev line 2: 'B-y' is no tag of the train file, which has O, B-x, I-x"):
        load(tmp_path, files, layout="conll", train="train", dev="dev")
