"""SQuAD's measures."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacher_cache.tasks.answers import best, exact_match, f1, normalised_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The  Denver Broncos!", ["denver", "broncos"]),
        ("a.m. an-other theatre", ["am", "another", "theatre"]),
        ("U.S.-born", ["usborn"]),
        ("1,000", ["1000"]),
        ("the «old» café", ["«old»", "café"]),
        ("A, the.", []),
    ],
)
def test_case_punctuation_articles_and_spaces_do_not_count(text: str, words: list[str]) -> None:
    assert normalised_words(text) == words


@pytest.mark.parametrize(
    ("guess", "truth", "exact", "share"),
    [
        ("the Broncos", "Broncos", 1, 1),
        ("Denver Broncos", "Broncos", 0, 2 / 3),
        ("Denver Broncos", "Carolina Panthers", 0, 0),
        ("in in May", "in May May", 0, 2 / 3),
        ("", "Broncos", 0, 0),
        ("", "", 1, 1),
        ("the", "", 1, 1),
    ],
)
def test_known_answers(guess: str, truth: str, exact: float, share: float) -> None:
    assert exact_match(guess, truth) == exact
    assert f1(guess, truth) == pytest.approx(share)


def test_the_best_of_the_right_answers_counts() -> None:
    assert best(f1, "Denver Broncos", ["Panthers", "Broncos", "the"]) == pytest.approx(2 / 3)
    assert best(exact_match, "", ["the"]) == 1
    assert best(f1, "", []) == 1
    assert best(f1, "Broncos", []) == 0


@given(st.text(max_size=20), st.text(max_size=20))
def test_f1_is_symmetric_and_1_for_equal_answers(left: str, right: str) -> None:
    assert f1(left, right) == f1(right, left)
    assert f1(left, left) == exact_match(left, left) == 1
    assert f1(left, right) >= exact_match(left, right)
