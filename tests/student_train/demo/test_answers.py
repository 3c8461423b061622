"""What models answer, and what is said of texts that they cannot answer."""

import pytest
import torch

from student_train.demo.answers import NUM_SHOWN, _readable, classify, fill_mask
from teacher_cache.errors import UserError
from tests import families
from tests.student_train.export import heads

TEXT = "the old man saw a small [MASK]"


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_likeliest_tokens_with_their_probabilities(family, tmp_path):
    saved = heads.make(tmp_path, family=family)
    (answer,) = fill_mask([saved], TEXT)
    inputs = saved.tokenizer([TEXT], return_tensors="pt")
    with torch.inference_mode():
        logits = saved.model(**{name: inputs[name] for name in saved.input_names}).logits[0, -2]
    shares = logits.softmax(dim=-1).sort(descending=True)
    expected = dict(zip(saved.tokenizer.convert_ids_to_tokens(shares.indices[:NUM_SHOWN]), shares.values, strict=False))
    assert list(answer.shares) == list(expected)
    assert list(answer.shares.values()) == pytest.approx([float(share) for share in expected.values()])
    assert answer.latency_ms > 0


def test_tokens_that_look_alike_are_told_apart():
    assert _readable(["ĠParis", "ĠLyon", "Paris", "Ġ", "▁"]) == ["ĠParis", "Lyon", "Paris", "Ġ", "▁"]


def test_either_sign_is_the_models_mask(tmp_path):
    saved = heads.make(tmp_path)
    (answer,), (other,) = (fill_mask([saved], TEXT.replace("[MASK]", sign)) for sign in ("[MASK]", "<mask>"))
    assert answer.shares == other.shares


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("the old man", r"The text has no \[MASK\]; write it once, in place of the word to guess"),
        ("", r"The text has no \[MASK\]"),
        ("[MASK] old <mask>", r"The text has 2 \[MASK\]; write it once"),
        ("old " * 80 + "[MASK]", "The text has 83 tokens, .* takes at most 64; shorten it"),
    ],
)
def test_texts_that_cannot_be_filled_are_refused(text, message, tmp_path):
    with pytest.raises(UserError, match=message):
        fill_mask([heads.make(tmp_path)], text)


def test_classes_of_texts_and_of_pairs(tmp_path):
    saved = heads.make(tmp_path, "classification", "bert")
    one, two = classify([saved, saved], "the old man")
    assert one.shares == two.shares
    assert set(one.shares) == set(heads.LABELS.values())
    assert sum(one.shares.values()) == pytest.approx(1)
    assert list(one.shares.values()) == sorted(one.shares.values(), reverse=True)
    (pair,) = classify([saved], "the old man", "the small bird")
    assert pair.shares != one.shares


def test_a_regression_gives_its_value(tmp_path):
    saved = heads.make(tmp_path, "regression")
    (answer,) = classify([saved], "the old man")
    inputs = saved.tokenizer(["the old man"], return_tensors="pt")
    with torch.inference_mode():
        expected = saved.model(**{name: inputs[name] for name in saved.input_names}).logits
    assert answer.shares == {"": pytest.approx(float(expected))}


@pytest.mark.parametrize(
    ("text", "message"), [(" ", "There is no text; write"), ("old " * 80, "has 82 tokens, .* 64;")]
)
def test_texts_that_cannot_be_classified_are_refused(text, message, tmp_path):
    with pytest.raises(UserError, match=message):
        classify([heads.make(tmp_path, "classification")], text)
