"""Windows, the tokens of an answer, and the best span."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from teacher_cache.errors import UserError
from teacher_cache.tasks.question_answering import MAX_ANSWER_TOKENS, OUTSIDE, answer_tokens, best_span, encode, predict
from teacher_cache.tasks.record import Task
from teacher_cache.tasks.task import features, score
from tests.families import WORDS
from tests.teacher_cache.tasks import tiny_tokenizers
from tests.teacher_cache.tasks.task_files import load, make_config, perfect, question, squad

CONTEXT = "the old man went to the river and saw a big fish in the water"
kinds = pytest.mark.parametrize("kind", tiny_tokenizers.KINDS)


def make_task(folder: Path, *paragraphs: tuple[str, list[dict[str, Any]]], **values: Any) -> Task:
    train = squad((CONTEXT, [question(CONTEXT, "fish", id="train")]))
    files: dict[str, str | bytes] = {"train": train, "dev": squad(*paragraphs)}
    return load(folder, files, layout="squad", train="train", dev="dev", **values)


class TestWindows:
    @kinds
    @given(data=st.data())
    def test_true_spans_are_the_answers(self, kind: str, data: st.DataObject) -> None:
        """Where a window holds the whole answer; each token of the context is in some window."""
        words = data.draw(st.lists(st.sampled_from([*WORDS, "Kot", "7,5", "(xy)"]), min_size=1, max_size=60))
        first = data.draw(st.integers(0, len(words) - 1))
        last = data.draw(st.integers(first, min(first + 4, len(words) - 1)))
        context, answer = " ".join(words), " ".join(words[first : last + 1])
        start = len(" ".join([*words[:first], ""]))
        batch = {
            "id": ["q"],
            "question": ["who"],
            "context": [context],
            "answers": [[answer]],
            "answer_starts": [[start]],
        }
        config = make_config(layout="squad", train="a", dev="b", max_length=48, stride=30)
        found = encode(batch, tiny_tokenizers.make(kind), config)
        held = 0
        covered = set()
        for starts, ends, one, two in zip(
            found["starts"], found["ends"], found["start_positions"], found["end_positions"], strict=True
        ):
            inside = [(a, b) for a, b in zip(starts, ends, strict=True) if b != OUTSIDE]
            covered.update(place for a, b in inside for place in range(a, b))
            if one or two:
                held += 1
                assert context[starts[one] : ends[two]].strip() == answer
            else:
                assert inside[0][0] > start or inside[-1][1] < start + len(answer)
        assert held
        assert {place for place, character in enumerate(context) if character != " "} <= covered
        assert found["example"] == [0] * len(found["starts"])

    def test_an_answer_that_a_window_cuts_is_not_there(self) -> None:
        starts, ends = np.array([[-1, -1], [4, 6], [6, 9], [10, 12], [-1, -1]]).T
        assert answer_tokens(starts, ends, 6, 12) == (2, 3)
        assert answer_tokens(starts, ends, 7, 8) == (2, 2)  # a part of a token
        assert answer_tokens(starts, ends, 3, 6) == (0, 0)
        assert answer_tokens(starts, ends, 10, 13) == (0, 0)
        assert answer_tokens(starts, ends, 20, 22) == (0, 0)

    def test_a_question_must_leave_room(self, tmp_path: Path) -> None:
        dev = (CONTEXT, [question(CONTEXT, "river", id="long", text="who " * 9)])
        task = make_task(tmp_path, dev, max_length=32, stride=20)
        said = r"question long is 27 tokens long; with max_length 32 and stride 20 it may be 8 tokens at most"
        with pytest.raises(UserError, match=said):
            features(task, "dev", tiny_tokenizers.make("wordpiece"))


class TestBestSpan:
    @given(arrays.arrays(np.float64, st.tuples(st.integers(1, 45), st.just(2)), elements=st.floats(-9, 9)), st.data())
    def test_no_allowed_span_is_better(self, logits: np.ndarray, data: st.DataObject) -> None:
        before = data.draw(st.integers(0, len(logits) - 1))
        in_context = np.arange(len(logits)) >= before
        total, first, last = best_span(logits, in_context)
        spans = [
            logits[one, 0] + logits[two, 1]
            for one in range(before, len(logits))
            for two in range(one, min(one + MAX_ANSWER_TOKENS, len(logits)))
        ]
        assert total == max(spans) == logits[first, 0] + logits[last, 1]
        assert before <= first <= last < first + MAX_ANSWER_TOKENS

    def test_the_best_window_answers(self, tmp_path: Path) -> None:
        task = make_task(tmp_path, (CONTEXT, [question(CONTEXT, "river")]), max_length=20, stride=8)
        windows = features(task, "dev", tiny_tokenizers.make("wordpiece"))
        assert len(windows) > 1
        predictions = np.zeros((len(windows), 20, 2))
        last = len(windows[-1]["ends"]) - 2  # before [SEP]
        predictions[0, 0] = 9  # [CLS] is no answer where every question has one
        predictions[0, 10, 0] = 1
        predictions[-1, last] = 1
        predictions[-1, last + 1 :] = 5  # padding
        assert predict(task, predictions, windows) == [CONTEXT[windows[-1]["starts"][last] :]]


class TestScore:
    @settings(max_examples=15)
    @given(kind=st.sampled_from(tiny_tokenizers.KINDS), data=st.data())
    def test_true_answers_score_100(
        self, kind: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        paragraphs = []
        for _ in range(3):
            words = data.draw(st.lists(st.sampled_from(WORDS), min_size=6, max_size=60))
            first = data.draw(st.integers(0, len(words) - 3))
            context, answer = " ".join(words), " ".join(words[first : first + 3])
            paragraphs.append((context, [question(context, data.draw(st.sampled_from([answer, None])))]))
        task = make_task(tmp_path_factory.mktemp("task"), *paragraphs, max_length=64, stride=30)
        windows = features(task, "dev", tiny_tokenizers.make(kind))
        predictions = perfect(task, windows)
        predictions[(np.array(windows["start_positions"]) == 0), 0] = 0.5  # another window may hold the answer
        assert score(task, predictions, windows) == {"f1": 100.0, "exact_match": 100.0}

    def test_no_answer_needs_every_window_to_say_so(self, tmp_path: Path) -> None:
        asked = [question(CONTEXT, "river", id="a"), question(CONTEXT, None, id="b")]
        task = make_task(tmp_path, (CONTEXT, asked))
        windows = features(task, "dev", tiny_tokenizers.make("wordpiece"))
        predictions = perfect(task, windows)
        assert predict(task, predictions, windows) == ["river", ""]
        predictions[1, [0, windows[1]["starts"].index(CONTEXT.index("old"))]] = [[-1, -1], [1, 1]]
        assert predict(task, predictions, windows) == ["river", "old"]
        assert score(task, predictions, windows) == {"f1": 50.0, "exact_match": 50.0}
