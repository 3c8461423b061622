"""Tiny random masked-LM models of all five families with a WordPiece tokenizer, made without a network."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForMaskedLM, BertTokenizer, PreTrainedModel

# On tensors this small a second thread only waits for the first, for seconds where cores are shared.

FAMILIES = ("bert", "roberta", "albert", "electra", "distilbert")

_TEXT = """
the a of and to in is was it he she they we you one two new old big small man woman child house river sea tree
bird fish dog cat horse road town king day night sun moon rain snow fire stone gold bread water went came saw
made gave took ran sat fell
"""
WORDS = _TEXT.split()
"""With the five special tokens, the whole vocabulary: 60 tokens."""

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCAB_SIZE = len(_SPECIAL) + len(WORDS)
MAX_LENGTH = 64
"""Longest sequence, in tokens, of every family."""

_COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": MAX_LENGTH,
}
_CONFIGS: dict[str, dict[str, Any]] = {
    "bert": _COMMON,
    # Positions of RoBERTa start after its padding token's id, and its epsilon is another.
    "roberta": _COMMON | {"max_position_embeddings": MAX_LENGTH + 2, "layer_norm_eps": 1e-5},
    "albert": _COMMON | {"embedding_size": 24},
    "electra": _COMMON | {"embedding_size": 20},
    "distilbert": {
        "dim": 32,
        "n_layers": 4,
        "n_heads": 4,
        "hidden_dim": 64,
        "max_position_embeddings": MAX_LENGTH,
    },
}


def make_tokenizer(family: str = "bert") -> BertTokenizer:
    """A lower-casing WordPiece tokenizer of `WORDS`; [PAD] is 0, for RoBERTa 1."""
    special = ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]") if family == "roberta" else _SPECIAL
    vocabulary = {token: index for index, token in enumerate([*special, *WORDS])}
    return BertTokenizer(vocab=vocabulary, model_max_length=MAX_LENGTH)


def make_model(
    family: str = "bert", seed: int = 0, *, auto_class: Any = AutoModelForMaskedLM, **overrides: Any
) -> PreTrainedModel:
    """A model in eval mode; every tensor is random, and large enough that logits vary by some units."""
    values = _CONFIGS[family] | {"vocab_size": VOCAB_SIZE, "pad_token_id": int(family == "roberta")} | overrides
    model: PreTrainedModel = auto_class.from_config(AutoConfig.for_model(family, **values))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:  # biases and norms: about what they were
                parameter.add_(0.1 * noise)
            else:
                parameter.copy_(0.4 * noise)
    return model.eval()


def save_pretrained(folder: Path, family: str = "bert", seed: int = 0, **overrides: Any) -> Path:
    """A folder with model, config and tokenizer: as `load_teacher` takes it, unless `auto_class` has another head."""
    make_model(family, seed, **overrides).save_pretrained(folder)
    make_tokenizer(family).save_pretrained(folder)
    return folder


def make_batch(family: str = "bert", seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """[3, 12] token ids and attention mask, padded on the right to lengths 12, 7 and 4."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(len(_SPECIAL), VOCAB_SIZE, (3, 12), generator=generator)
    attention_mask = (torch.arange(12) < torch.tensor([[12], [7], [4]])).long()
    return input_ids.masked_fill(attention_mask == 0, int(family == "roberta")), attention_mask
