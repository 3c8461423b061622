"""From which teacher layers a student had best start: every choice of so many, against the teacher before training.

Usage: `python -m infra.bench.starting_layers --cache URL --text FILE [--layers NUMBER] [--json]`

The cache gives teacher, tokenizer and sequence length; FILE holds documents that nothing was trained on. To try some of
the choices by training, `student-train sweep` takes `student.teacher_layers: {choose: [[0, 2, 5], [0, 2, 4]]}`.

Shapes: L masked positions, V vocabulary.
"""

import argparse
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from infra.bench import output
from infra.bench.held_out import answers, held_out
from student_train.config import StudentConfig
from student_train.student import build_student, spread_layers
from teacher_cache import UserError, open_cache
from teacher_cache.format.cache import Cache

NUM_SEQUENCES = 128
MAX_CHOICES = 1000


def figures(said: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Of `[L, V]` log-probabilities: divergence from the teacher and masked-LM loss (nats a masked token), accuracy."""
    return {
        "kl": F.kl_div(said, teacher, log_target=True, reduction="batchmean").item(),
        "masked_lm": F.nll_loss(said, labels).item(),
        "accuracy": (said.argmax(-1) == labels).float().mean().item(),
    }


def choices(num_teacher: int, num_student: int) -> list[tuple[int, ...]]:
    """All ascending choices of a student's layers.

    Raises:
        UserError: none or too many.
    """
    number = math.comb(num_teacher, num_student) if num_student > 0 else 0
    if not 0 < number <= MAX_CHOICES:
        raise UserError(
            f"--layers is {num_student}: of {num_teacher} teacher layers that are {number} choices; "
            f"they must be 1 to {MAX_CHOICES}"
        )
    return list(itertools.combinations(range(num_teacher), num_student))


def measure(cache: Cache, text: Path, num_layers: int | None) -> Iterator[dict[str, Any]]:
    """A row a choice, the teacher's first; nothing is trained."""
    folder = cache.teacher.folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pad_id = tokenizer.pad_token_id
    masked = held_out(text, tokenizer, cache.spec.corpus.sequence_length, most=NUM_SEQUENCES)

    def say(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
        """`[L, V]` log-probabilities and `[L]` labels."""
        said = [(logits.log_softmax(dim=-1), labels) for logits, labels in answers(model, masked, pad_id)]
        logs, labels = zip(*said, strict=True)
        return torch.cat(logs), torch.cat(labels)

    whole = AutoModelForMaskedLM.from_pretrained(folder).eval()
    num_teacher = whole.config.num_hidden_layers
    teacher, labels = say(whole)
    yield {"layers": list(range(num_teacher)), "is_default": False, **figures(teacher, teacher, labels)}
    num_student = max(1, num_teacher // 2) if num_layers is None else num_layers
    for layers in choices(num_teacher, num_student):
        student = build_student(folder, StudentConfig(teacher_layers=layers)).eval()
        said, _ = say(student)
        is_default = layers == spread_layers(num_teacher, num_student)
        yield {"layers": list(layers), "is_default": is_default, **figures(said, teacher, labels)}


def render(rows: Sequence[dict[str, Any]]) -> str:
    lines = [f"{'starts from layers':24}{'KL':>8}{'masked-LM':>11}{'accuracy':>10}"]
    for row in rows:
        name = ", ".join(map(str, row["layers"])) + (" (default)" if row["is_default"] else "")
        lines.append(f"{name:24}{row['kl']:8.3f}{row['masked_lm']:11.3f}{row['accuracy']:10.1%}")
    return "\n".join(lines)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The teacher, then the choices by ascending divergence from it."""
    teacher, *rows = measure(open_cache(options.cache), options.text, options.layers)
    return {
        "name": "starting_layers",
        "figures": [teacher, *sorted(rows, key=lambda row: row["kl"])],
        "machine": output.machine(),
        "versions": output.versions(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cache", required=True, metavar="URL")
    parser.add_argument("--text", required=True, type=Path, metavar="FILE", help=".txt or .txt.zst, held out")
    parser.add_argument(
        "--layers", type=int, metavar="NUMBER", help="of the student; half of the teacher's if left out"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    transformers_logging.disable_progress_bar()
    with output.errors():
        found = run(options)
    output.show(found, render(found["figures"]), as_json=options.json)


if __name__ == "__main__":
    main()
