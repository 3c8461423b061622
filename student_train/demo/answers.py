"""What models answer to a sentence, and how long each takes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from student_train.latency import latencies_s, median_ms
from student_train.saved_model import SavedModel
from teacher_cache.errors import UserError

NUM_SHOWN = 5
NUM_ROUNDS = 5
MASKS = ("[MASK]", "<mask>")
"""As a user may write the place to fill, whatever the model's own sign for it."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    shares: dict[str, float]
    """Tokens or labels and their probabilities, the largest first; of a regression its value, under an empty name."""
    latency_ms: float
    """Of text → answer, tokenising included: the median of rounds in which each model has its turn."""


Work = Callable[[], dict[str, float]]


def fill_mask(models: Sequence[SavedModel], text: str) -> list[Answer]:
    """Each model's likeliest tokens for the one [MASK] of a text.

    Raises:
        UserError: there is no [MASK] in it, or more than one; or it is too long for one of the models.
    """
    num_masks = sum(text.count(mask) for mask in MASKS)
    if num_masks != 1:
        raise UserError(f"The text has {num_masks or 'no'} [MASK]; write it once, in place of the word to guess.")
    return _timed([_filling(saved, text) for saved in models])


def classify(models: Sequence[SavedModel], text: str, pair: str = "") -> list[Answer]:
    """Each model's labels of a text, or of a pair of texts.

    Raises:
        UserError: the text is empty, or too long for one of the models.
    """
    if not text.strip():
        raise UserError("There is no text; write a sentence.")
    return _timed([_classifying(saved, text, pair) for saved in models])


def _timed(works: Sequence[Work]) -> list[Answer]:
    answers = [work() for work in works]
    seconds = latencies_s({str(place): work for place, work in enumerate(works)}, num_rounds=NUM_ROUNDS)
    return [
        Answer(shares=answer, latency_ms=median_ms(values))
        for answer, values in zip(answers, seconds.values(), strict=True)
    ]


def _filling(saved: SavedModel, text: str) -> Work:
    tokenizer = saved.tokenizer
    for mask in MASKS:
        text = text.replace(mask, str(tokenizer.mask_token))
    _encoded(saved, text)

    def work() -> dict[str, float]:
        inputs = _encoded(saved, text)
        place = int((inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero()[0])
        top = torch.topk(_logits(saved, inputs)[0, place].softmax(dim=-1), NUM_SHOWN)
        tokens: Any = tokenizer.convert_ids_to_tokens(top.indices.tolist())
        return dict(zip(_readable(tokens), top.values.tolist(), strict=True))

    return work


def _readable(tokens: list[str]) -> list[str]:
    """Tokens without the mark of a word's beginning, where nothing else among them is called so then."""
    short = [token.lstrip("Ġ▁") for token in tokens]
    return [name if name and short.count(name) == 1 else token for name, token in zip(short, tokens, strict=True)]


def _classifying(saved: SavedModel, text: str, pair: str) -> Work:
    _encoded(saved, text, pair)

    def work() -> dict[str, float]:
        logits = _logits(saved, _encoded(saved, text, pair))[0]
        if saved.head == "regression":
            return {"": float(logits)}
        top = torch.topk(logits.softmax(dim=-1), min(NUM_SHOWN, len(logits)))
        return {
            saved.labels[place]: share for place, share in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        }

    return work


def _encoded(saved: SavedModel, text: str, pair: str = "") -> dict[str, torch.Tensor]:
    encoded: Any = saved.tokenizer(text, pair or None, return_tensors="pt", verbose=False)
    num_tokens = encoded["input_ids"].shape[1]
    if num_tokens > saved.max_length:
        raise UserError(
            f"The text has {num_tokens} tokens, {saved.place} takes at most {saved.max_length}; shorten it."
        )
    return {name: encoded[name] for name in saved.input_names}


@torch.inference_mode()
def _logits(saved: SavedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    logits: torch.Tensor = saved.model(**inputs).logits
    return logits
