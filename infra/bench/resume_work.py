"""What `resume` trains: a small student, for a minute at most, on a cache of as many shards as four workers like."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.bench.chaos_work import SEQUENCE_LENGTH, SIZES, WORDS
from infra.bench.random_teacher import save_random_teacher
from student_train.config import ExecutionConfig, OptimizerConfig, StudentConfig, StudentSpec
from teacher_cache import CacheSpec, build
from teacher_cache.format.cache import Cache, open_cache
from teacher_cache.shell.settings import parse, to_dict

NUM_VIEWS, NUM_EPOCHS = 2, 6
UNIT_SEQUENCES, NUM_UNITS = 4, 120
"""Two shards for each lane of the reading order."""
BATCH_SEQUENCES = 50
"""Does not divide an epoch's 480: the last batch of each is short."""
CHECKPOINT_STEPS = 4
GENTLE_EPS = 1e-3
"""Of AdamW: the key biases' gradients are 0 but for rounding, which its usual eps would blow up."""


@dataclass(frozen=True)
class Work:
    """A folder with a cache, and the runs that learn from it."""

    folder: Path

    @property
    def cache(self) -> Cache:
        return open_cache(str(self.folder / "cache"))

    def output(self, name: str) -> Path:
        return self.folder / name

    def spec(self, name: str, *, num_workers: int, num_epochs: int = NUM_EPOCHS) -> StudentSpec:
        """A run with as many Ray workers, or in its own process with 0."""
        return StudentSpec(
            caches=(str(self.folder / "cache"),),
            output=str(self.output(name)),
            student=StudentConfig(dropout=0.0),
            optimizer=OptimizerConfig(eps=GENTLE_EPS),
            batch_sequences=BATCH_SEQUENCES,
            epochs=num_epochs,
            execution=ExecutionConfig(
                num_workers=num_workers,
                gpus_per_worker=0,
                micro_batch_tokens=8 * SEQUENCE_LENGTH,
                checkpoint_steps=CHECKPOINT_STEPS,
                log_steps=1,
                max_failures=1000,
            ),
        )

    def configuration(self, name: str, *, num_workers: int) -> Path:
        """The file that `student-train run` takes."""
        path = self.folder / f"{name}-{num_workers}.yaml"
        path.write_text(json.dumps(to_dict(self.spec(name, num_workers=num_workers))))
        return path


def make(folder: Path, *, num_units: int = NUM_UNITS, **overrides: Any) -> Work:
    """Builds the cache; each document fills one sequence. `overrides` are of its specification."""
    save_random_teacher(folder / "teacher", WORDS, sequence_length=SEQUENCE_LENGTH, **SIZES)
    draw = random.Random(0)
    num_sequences = num_units * UNIT_SEQUENCES
    documents = [" ".join(draw.choices(WORDS, k=SEQUENCE_LENGTH - 2)) for _ in range(num_sequences)]
    (folder / "text.txt").write_text("\n\n".join(documents) + "\n")
    values: dict[str, Any] = {
        "cache": str(folder / "cache"),
        "corpus": {"paths": [str(folder / "text.txt")], "sequence_length": SEQUENCE_LENGTH},
        "teacher": {"model": str(folder / "teacher")},
        "views": NUM_VIEWS,
        "unit_sequences": UNIT_SEQUENCES,
        "execution": {"num_workers": 0, "gpus_per_worker": 0},
    }
    build(parse(CacheSpec, values | overrides), progress=False)
    return Work(folder)
