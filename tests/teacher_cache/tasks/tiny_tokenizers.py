"""Tokenizers of the families' three kinds that cut most words into several tokens."""

import json
import string
from functools import cache
from typing import Any

from tokenizers import ByteLevelBPETokenizer
from transformers import AlbertTokenizer, BertTokenizer, RobertaTokenizer

from tests.families import WORDS

KINDS = ("wordpiece", "byte_level", "unigram")
"""Of BERT, ELECTRA and DistilBERT; of RoBERTa; of ALBERT."""
MAX_LENGTH = 128


@cache
def make(kind: str, *, model_max_length: int = MAX_LENGTH, **options: Any) -> Any:
    return _MAKERS[kind](model_max_length=model_max_length, **options)


def _wordpiece(**options: Any) -> BertTokenizer:
    letters = string.ascii_lowercase + string.digits
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *string.punctuation]
    tokens += [f"##{letter}" for letter in letters] + [word for word in WORDS if len(word) > 1]
    return BertTokenizer(vocab={token: place for place, token in enumerate(tokens)}, **options)


def _byte_level(**options: Any) -> RobertaTokenizer:
    trained = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator([" ".join(WORDS)], vocab_size=300, min_frequency=1, special_tokens=special)
    merges = [tuple(merge) for merge in json.loads(trained.to_str())["model"]["merges"]]
    return RobertaTokenizer(vocab=trained.get_vocab(), merges=merges, **options)


def _unigram(**options: Any) -> AlbertTokenizer:
    pieces = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]", "▁", *string.ascii_lowercase, *string.punctuation]
    scores = [(piece, 0.0 if place < 5 else -10.0) for place, piece in enumerate(pieces)]
    return AlbertTokenizer(vocab=scores + [(f"▁{word}", -5.0) for word in WORDS if len(word) > 1], **options)


_MAKERS = {"wordpiece": _wordpiece, "byte_level": _byte_level, "unigram": _unigram}
