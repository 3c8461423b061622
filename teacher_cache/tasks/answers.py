"""SQuAD's measures of an answer: exact match and F1 of words, after its own normalisation.

From the definition of the official evaluation (arXiv 1606.05250, section 6.1; 1806.03822, section 5): the best over the
right answers, and an unanswerable question has the one right answer that is empty.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")

Measure = Callable[[str, str], float]


def normalised_words(text: str) -> list[str]:
    """Words in lower case, without ASCII punctuation and articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def exact_match(guess: str, truth: str) -> float:
    return float(normalised_words(guess) == normalised_words(truth))


def f1(guess: str, truth: str) -> float:
    """Of the bags of words; if one is empty, whether both are."""
    guessed, true = normalised_words(guess), normalised_words(truth)
    if not guessed or not true:
        return float(guessed == true)
    num_common = (Counter(guessed) & Counter(true)).total()
    return 2 * num_common / (len(guessed) + len(true))


def best(measure: Measure, guess: str, answers: Sequence[str]) -> float:
    """The highest over the right answers; those of nothing but articles and punctuation do not count."""
    right = [answer for answer in answers if normalised_words(answer)] or [""]
    return max(measure(guess, answer) for answer in right)
