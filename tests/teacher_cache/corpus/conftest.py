"""Two kinds of tokenizers."""

import pytest
from tokenizers import ByteLevelBPETokenizer
from transformers import BertTokenizerFast, PreTrainedTokenizerBase, PreTrainedTokenizerFast

LETTERS = "a b c d e . ##a ##b ##c ##d ##e"


@pytest.fixture(scope="module")
def wordpiece() -> PreTrainedTokenizerBase:
    words = f"[PAD] [UNK] [CLS] [SEP] [MASK] [ ] mask {LETTERS} the one ##s"
    return BertTokenizerFast(vocab={word: number for number, word in enumerate(words.split())})


@pytest.fixture(scope="module")
def byte_level() -> PreTrainedTokenizerBase:
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(["a b c a bc de  de\n\nabc"] * 3, vocab_size=270, min_frequency=2, show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer)
