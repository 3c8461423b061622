"""Segment ids: of token ids alone, and of tokenizers that make them only where they are told to."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    RobertaConfig,
)

from student_train.finetune.models import load_tokenizer
from student_train.saved_model import load_model
from teacher_cache.format.spec import TaskObjective
from teacher_cache.tasks.segments import name_segments, segments_of
from teacher_cache.teacher import load_teacher
from tests import families
from tests.teacher_cache.tasks import tiny_tokenizers

UNTOLD = ["input_ids", "attention_mask"]
PARTED = [0, 0, 0, 1, 1]
"""Of two texts of one token each."""


def test_segments_change_after_the_first_separator() -> None:
    ids = torch.tensor([[2, 9, 3, 8, 3, 0], [2, 9, 8, 7, 3, 0]])
    assert segments_of(ids, 3).tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1]]
    assert segments_of(ids[0].numpy(), 3).tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("kind", "config", "segments"),
    [
        ("wordpiece", BertConfig(), PARTED),
        ("wordpiece", DistilBertConfig(), None),
        ("unigram", AlbertConfig(), PARTED),
        ("unigram", AlbertConfig(type_vocab_size=1), None),
        ("byte_level", RobertaConfig(type_vocab_size=1), None),
        ("byte_level", RobertaConfig(type_vocab_size=2), None),  # that tokenizer parts no texts by them
    ],
)
def test_a_tokenizer_makes_the_segments_that_its_model_knows(kind: str, config: Any, segments: Any) -> None:
    tokenizer = tiny_tokenizers.make.__wrapped__(kind)  # one of its own
    tokenizer.model_input_names = list(UNTOLD)
    name_segments(tokenizer, config)
    assert tokenizer("cat", "dog").get("token_type_ids") == segments


def test_whoever_loads_albert_gives_its_pairs_segments(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizers.make.__wrapped__("unigram", model_max_length=families.MAX_LENGTH)
    assert tokenizer.model_input_names == UNTOLD
    options = {"vocab_size": len(tokenizer), "id2label": {0: "no", 1: "yes"}}
    model = families.make_model("albert", auto_class=AutoModelForSequenceClassification, **options)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    folder, objective = str(tmp_path), TaskObjective(kind="classification", labels=("no", "yes"))
    for loaded in (
        load_tokenizer(folder),
        load_model(folder).tokenizer,
        load_teacher(folder, objective=objective).tokenizer,
    ):
        assert loaded("cat", "dog")["token_type_ids"] == PARTED
