"""What the kill test builds: a cache of 30 units, by `teacher-cache build` with a tiny random teacher."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.bench.random_teacher import save_random_teacher

WORDS = tuple(a + b + c for a in "bdfgklmn" for b in "aiou" for c in "prst")
SEQUENCE_LENGTH = 64
SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 512,
}
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
            # float depend on their size, as on the number of threads, but here all are equal.
            "execution": {
                "num_workers": num_workers,
                "gpus_per_worker": 0,
                "cpus_per_worker": 1,
                "batch_tokens": SEQUENCE_LENGTH,
            },
        }
        path = self.folder / f"{name}-{num_workers}.yaml"
        path.write_text(json.dumps(values))
        return path


def make(folder: Path) -> Work:
    """Writes teacher and corpus; each document fills one sequence."""
    save_random_teacher(folder / "teacher", WORDS, sequence_length=SEQUENCE_LENGTH, **SIZES)
    draw = random.Random(0)
    for file in range(NUM_FILES):
        documents = [" ".join(draw.choices(WORDS, k=SEQUENCE_LENGTH - 2)) for _ in range(FILE_DOCUMENTS)]
        (folder / f"{file}.txt").write_text("\n\n".join(documents) + "\n")
    return Work(folder)
