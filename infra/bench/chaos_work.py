"""What the kill test builds: a cache of 30 units, by `teacher-cache build` with a tiny random teacher."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = tuple(a + b + c for a in "bdfgklmn" for b in "aiou" for c in "prst")
SEQUENCE_LENGTH = 64
NUM_FILES, FILE_DOCUMENTS = 2, 360
UNIT_SEQUENCES = 24
NUM_VIEWS = 1
UNITS_PER_VIEW = NUM_FILES * FILE_DOCUMENTS // UNIT_SEQUENCES


@dataclass(frozen=True)
class Work:
    """A folder with teacher, corpus and the caches built of them."""

    folder: Path

    def cache(self, name: str) -> Path:
        return self.folder / name

    def configuration(self, name: str, *, num_workers: int) -> Path:
        """The file that `teacher-cache build` takes for one cache."""
        values = {
            "cache": str(self.cache(name)),
            "corpus": {"paths": [str(self.folder / "*.txt")], "sequence_length": SEQUENCE_LENGTH},
            "teacher": {"model": str(self.folder / "teacher")},
            "views": NUM_VIEWS,
            "unit_sequences": UNIT_SEQUENCES,
            # One sequence at a time: a unit's second attempt has smaller micro-batches, and the last bits of a
            # float depend on their size, but here all are equal.
            "execution": {"num_workers": num_workers, "gpus_per_worker": 0, "batch_tokens": SEQUENCE_LENGTH},
        }
        path = self.folder / f"{name}-{num_workers}.yaml"
        path.write_text(json.dumps(values))
        return path


def make(folder: Path) -> Work:
    """Writes teacher and corpus; each document fills one sequence."""
    torch.manual_seed(0)
    vocabulary = {token: place for place, token in enumerate((*SPECIAL, *WORDS))}
    sizes: dict[str, Any] = {
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 512,
    }
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=SEQUENCE_LENGTH, **sizes)
    BertForMaskedLM(config).save_pretrained(folder / "teacher")
    BertTokenizer(vocab=vocabulary, model_max_length=SEQUENCE_LENGTH).save_pretrained(folder / "teacher")
    draw = random.Random(0)
    for file in range(NUM_FILES):
        documents = [" ".join(draw.choices(WORDS, k=SEQUENCE_LENGTH - 2)) for _ in range(FILE_DOCUMENTS)]
        (folder / f"{file}.txt").write_text("\n\n".join(documents) + "\n")
    return Work(folder)
