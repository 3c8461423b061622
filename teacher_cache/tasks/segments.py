"""Segments: which of a pair's two texts a token belongs to, as BERT's next-sentence task had it."""

from typing import Any, TypeVar

import numpy as np
import torch

Ids = TypeVar("Ids", np.ndarray, torch.Tensor)


def segments_of(input_ids: Ids, sep_id: int) -> Ids:
    """[..., S] token ids → False up to the first separator, then True: the segments that BERT's tokenizer makes."""
    is_separator: Any = input_ids == sep_id
    return is_separator.cumsum(-1) > is_separator


def name_segments(tokenizer: Any, config: Any) -> None:
    """Has a fast tokenizer make segment ids where its model tells texts apart by them.

    ALBERT's can, but in transformers 5 does not unless asked to.
    """
    names = tokenizer.model_input_names
    if "token_type_ids" in names or getattr(config, "type_vocab_size", 0) < 2:
        return
    if any(tokenizer("a", "a", return_token_type_ids=True)["token_type_ids"]):
        tokenizer.model_input_names = [*names, "token_type_ids"]
