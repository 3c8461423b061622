"""Tiny saved models of every head."""

from pathlib import Path
from typing import Any

from transformers import (
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from student_train.saved_model import Head, SavedModel, load_model
from tests import families

LABELS = {0: "bad", 1: "good", 2: "neither"}
HEADS: dict[Head, tuple[Any, dict[str, Any]]] = {
    "masked_lm": (AutoModelForMaskedLM, {}),
    "classification": (AutoModelForSequenceClassification, {"id2label": LABELS}),
    "regression": (AutoModelForSequenceClassification, {"num_labels": 1}),
    "tagging": (AutoModelForTokenClassification, {"id2label": LABELS}),
    "question_answering": (AutoModelForQuestionAnswering, {}),
}


def save(folder: Path, head: Head = "masked_lm", family: str = "distilbert", **overrides: Any) -> Path:
    """A folder with a model of two layers, and its tokenizer."""
    auto_class, values = HEADS[head]
    layers = {"n_layers" if family == "distilbert" else "num_hidden_layers": 2}
    return families.save_pretrained(folder, family, auto_class=auto_class, **layers | values | overrides)


def make(folder: Path, head: Head = "masked_lm", family: str = "distilbert", **overrides: Any) -> SavedModel:
    return load_model(str(save(folder, head, family, **overrides)))
