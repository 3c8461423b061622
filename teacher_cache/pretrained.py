"""What transformers loads from files that a user named: their kinds of model, and one message where they are bad."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from teacher_cache.errors import UserError
from teacher_cache.format.spec import MASKED_LM

AUTO_CLASSES: Mapping[str, Any] = {
    MASKED_LM: AutoModelForMaskedLM,
    "classification": AutoModelForSequenceClassification,
    "regression": AutoModelForSequenceClassification,
    "tagging": AutoModelForTokenClassification,
    "question_answering": AutoModelForQuestionAnswering,
}
"""By objective."""
_BAD_FILES = (OSError, ValueError, KeyError, RuntimeError, SafetensorError, pickle.UnpicklingError)


def load(auto_class: Any, source: str | Path, *, what: str, expected: str, **options: Any) -> Any:
    """What an auto class makes of a folder or a hub name; no code of a model is run.

    Args:
        what: names in a message what is loaded, as its user knows it.
        expected: says there what would do.

    Raises:
        UserError: it cannot be loaded.
    """
    try:
        return auto_class.from_pretrained(source, trust_remote_code=False, **options)
    except _BAD_FILES as error:
        raise UserError(f"the {what} cannot be loaded; {expected} ({' '.join(str(error).split())})") from None
