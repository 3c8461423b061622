"""Teachers of random weights, for benchmarks that need a whole one and not a good one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def save_random_teacher(folder: Path, words: Sequence[str], *, sequence_length: int, **config: Any) -> Path:
    """Saves a BERT with a vocabulary of `words`; always the same one."""
    torch.manual_seed(0)
    vocabulary = {token: place for place, token in enumerate((*SPECIAL, *words))}
    values = {"vocab_size": len(vocabulary), "max_position_embeddings": sequence_length, **config}
    BertForMaskedLM(BertConfig(**values)).save_pretrained(folder)
    BertTokenizer(vocab=vocabulary, model_max_length=sequence_length).save_pretrained(folder)
    return folder
