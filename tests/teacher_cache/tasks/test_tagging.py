"""Tags of words, labels of tokens, and entities."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teacher_cache.tasks.record import Task
from teacher_cache.tasks.tagging import IGNORED, encode, first_tokens
from teacher_cache.tasks.task import features, score
from tests.families import WORDS
from tests.teacher_cache.tasks import tiny_tokenizers
from tests.teacher_cache.tasks.task_files import conll, load, make_config, perfect

TAGS = ["O", "B-place", "I-place", "B-person", "I-person"]
CONFIG = make_config(layout="conll", train="a", dev="b", max_length=16)
# Without whitespace, controls and marks: a tokenizer treats these otherwise in a text than alone.
CHARACTERS = st.characters(codec="utf-8", categories=["L", "N", "P", "S"])
SENTENCES = st.lists(st.one_of(st.sampled_from(WORDS), st.text(CHARACTERS, min_size=1, max_size=6)), min_size=1)
kinds = pytest.mark.parametrize("kind", tiny_tokenizers.KINDS)


def make_task(folder: Path, dev: str, **values: Any) -> Task:
    train = conll([("a", "B-place"), ("b", "I-place"), ("c", "B-person"), ("d", "I-person"), ("e", "O")])
    return load(folder, {"train": train, "dev": dev}, layout="conll", train="train", dev="dev", **values)


class TestAlignment:
    @kinds
    @given(words=SENTENCES)
    def test_tokens_and_their_words_are_those_of_words_given_one_by_one(self, kind: str, words: list[str]) -> None:
        options = {"add_prefix_space": True} if kind == "byte_level" else {}
        alone = tiny_tokenizers.make(kind, **options)(words, is_split_into_words=True, truncation=True, max_length=16)
        seen: list[int | None] = []
        expected = []
        for word in alone.word_ids():
            expected.append(-1 if word is None or word in seen else word)
            seen.append(word)
        tags = list(range(len(words)))
        found = encode({"words": [words], "tags": [tags]}, tiny_tokenizers.make(kind), CONFIG)
        assert found["input_ids"][0] == alone["input_ids"]
        assert found["words"][0] == expected
        assert found["labels"][0] == [IGNORED if word < 0 else tags[word] for word in expected]

    @kinds
    def test_a_word_of_spaces_and_letters_is_one_word(self, kind: str) -> None:
        found = encode({"words": [["new york", "river"]], "tags": [[1, 2]]}, tiny_tokenizers.make(kind), CONFIG)
        assert [word for word in found["words"][0] if word >= 0] == [0, 1]

    def test_the_space_before_a_word_is_the_words(self) -> None:
        # " ab c": [CLS], " a", "b", " ", "c", [SEP]
        assert first_tokens(["ab", "c"], [0, 2, 3, 4, 5, 0]) == [-1, 0, -1, 1, -1, -1]

    def test_words_that_a_tokenizer_drops_have_no_token(self) -> None:
        words = ["a", "\u200b", "river"]
        found = encode({"words": [words], "tags": [[0, 1, 2]]}, tiny_tokenizers.make("wordpiece"), CONFIG)
        assert found["labels"][0] == [IGNORED, 0, 2, IGNORED]


class TestScore:
    @settings(max_examples=30)
    @given(kind=st.sampled_from(tiny_tokenizers.KINDS), data=st.data())
    def test_true_tags_score_100(
        self, kind: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        entities = data.draw(st.lists(st.sampled_from(["place", "person", None]), min_size=1, max_size=6))
        words, tags = ["here"], ["B-place"]
        for entity in entities:
            length = data.draw(st.integers(1, 3))
            words += data.draw(st.lists(st.sampled_from(WORDS), min_size=length, max_size=length))
            tags += [f"{'I' if place else 'B'}-{entity}" if entity else "O" for place in range(length)]
        dev = conll(list(zip(words, tags, strict=True)))
        task = make_task(tmp_path_factory.mktemp("task"), dev)
        dev_features = features(task, "dev", tiny_tokenizers.make(kind))
        assert score(task, perfect(task, dev_features), dev_features) == dict.fromkeys(task.metrics, 100.0)

    def test_an_entity_counts_with_type_and_both_ends(self, tmp_path: Path) -> None:
        words = ["a", "b", "c", "d", "e", "f"]
        tags = ["B-place", "I-place", "O", "B-person", "O", "B-place"]
        task = make_task(tmp_path, conll(list(zip(words, tags, strict=True))))
        dev_features = features(task, "dev", tiny_tokenizers.make("wordpiece"))

        def said(*guess: str) -> dict[str, float]:
            predictions = np.zeros((1, len(words) + 2, len(task.labels)))
            predictions[0, range(1, len(words) + 1), [task.labels.index(tag) for tag in guess]] = 1
            return score(task, predictions, dev_features)

        # Found: one too short, the person, and one that no B- begins, which strict IOB2 does not count.
        assert said("B-place", "O", "O", "B-person", "O", "I-place") == pytest.approx(
            {"f1": 40.0, "precision": 50.0, "recall": 100 / 3}
        )
        assert said(*["O"] * 6) == {"f1": 0.0, "precision": 0.0, "recall": 0.0}

    def test_words_behind_max_length_count_as_outside(self, tmp_path: Path) -> None:
        sentence = [("a", "B-place"), *[("b", "O")] * 10, ("c", "B-place")]
        task = make_task(tmp_path, conll(sentence), max_length=8)
        dev_features = features(task, "dev", tiny_tokenizers.make("wordpiece"))
        assert len(dev_features[0]["input_ids"]) == 8
        found = score(task, perfect(task, dev_features), dev_features)
        assert found == pytest.approx({"f1": 200 / 3, "precision": 100.0, "recall": 50.0})
