"""Masked-LM loss and accuracy of a teacher and its students on documents that none of them has seen.

Usage: `python infra/bench/held_out.py --cache URL --text FILE NAME=FOLDER… [--json]`

Shapes: L masked positions of a batch, V vocabulary.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from student_train.student import encode_student
from teacher_cache import open_cache
from teacher_cache.corpus.sequences import sequences
from teacher_cache.errors import UserError
from teacher_cache.format.cache import Cache
from teacher_cache.format.spec import KeepConfig, MaskingConfig
from teacher_cache.inspect import info
from teacher_cache.masking import MaskedSequence, mask_sequence
from teacher_cache.targets.batching import pad
from teacher_cache.targets.heads import head_logits, head_of
from teacher_cache.units import vocabulary_of

HELD_OUT_SEED = 1
BATCH_SEQUENCES, TIMED_BATCHES = 64, 3


def held_out(path: Path, tokenizer: Any, sequence_length: int, *, most: int | None = None) -> list[MaskedSequence]:
    """The held-out documents, or the first `most` sequences of them, masked the same way for every model."""
    stream = sequences(
        str(path),
        format="text",
        text_field="text",
        tokenizer=tokenizer,
        sequence_length=sequence_length,
        packing="full",
    )
    masking, keep, vocabulary = MaskingConfig(seed=HELD_OUT_SEED), KeepConfig(), vocabulary_of(tokenizer)
    return [
        mask_sequence(sequence.input_ids, place, 0, masking=masking, keep=keep, vocabulary=vocabulary)
        for place, sequence in enumerate(itertools.islice(stream, most))
    ]


@torch.inference_mode()
def answers(
    model: PreTrainedModel, masked: Sequence[MaskedSequence], pad_id: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batch by batch: [L, V] float32 logits at the masked positions, and their [L] labels."""
    head = head_of(model)
    for start in range(0, len(masked), BATCH_SEQUENCES):
        batch = masked[start : start + BATCH_SEQUENCES]
        input_ids, attention_mask = pad([sequence.input_ids for sequence in batch], pad_id)
        hidden = encode_student(model, input_ids, attention_mask)
        rows = np.repeat(np.arange(len(batch)), [len(sequence.label_positions) for sequence in batch])
        places = np.concatenate([sequence.label_positions for sequence in batch])
        labels = torch.from_numpy(np.concatenate([sequence.label_ids for sequence in batch])).long()
        yield head_logits(head, hidden[rows, places]).float(), labels


def evaluate(model: PreTrainedModel, masked: Sequence[MaskedSequence], pad_id: int) -> dict[str, float]:
    """Masked-LM loss (nats a masked token) and top-1 accuracy."""
    loss, correct, num_labels = 0.0, 0, 0
    for said, labels in answers(model, masked, pad_id):
        loss += F.cross_entropy(said, labels, reduction="sum").item()
        correct += int((said.argmax(-1) == labels).sum())
        num_labels += len(labels)
    return {"loss": loss / num_labels, "accuracy": correct / num_labels}


@torch.inference_mode()
def sequences_per_s(model: PreTrainedModel, masked: Sequence[MaskedSequence], pad_id: int) -> float:
    """Of a whole forward pass, logits of every position included: the median of a few batches."""
    batch = masked[:BATCH_SEQUENCES]
    input_ids, attention_mask = pad([sequence.input_ids for sequence in batch], pad_id)
    seconds = []
    for _ in range(TIMED_BATCHES):
        begin = time.perf_counter()
        model(input_ids=input_ids, attention_mask=attention_mask)
        seconds.append(time.perf_counter() - begin)
    return len(batch) / statistics.median(seconds)


def compare(models: Mapping[str, str], cache: Cache, text: Path) -> list[dict[str, Any]]:
    """One row a model, all on the same masked sequences."""
    tokenizer = AutoTokenizer.from_pretrained(cache.teacher.folder)
    masked = held_out(text, tokenizer, cache.spec.corpus.sequence_length)
    rows = []
    for name, folder in models.items():
        model = AutoModelForMaskedLM.from_pretrained(folder).eval()
        figures = evaluate(model, masked, tokenizer.pad_token_id)
        speed = sequences_per_s(model, masked, tokenizer.pad_token_id)
        about = {"sequences_per_s": speed, "parameters": model.num_parameters(), "folder": folder}
        rows.append({"model": name, **figures, **about})
    return rows


def render(rows: Sequence[dict[str, Any]], cache: dict[str, Any]) -> str:
    width = max(len(row["model"]) for row in rows)
    header = f"{'on held-out documents':{width}}{'loss':>8}{'accuracy':>10}{'parameters':>13}{'sequences/s':>13}"
    lines = [
        f"{row['model']:{width}}{row['loss']:8.3f}{row['accuracy']:10.1%}{row['parameters']:13,}"
        f"{row['sequences_per_s']:13.0f}"
        for row in rows
    ]
    view = cache["views"][0]
    size = (
        f"cache: {view['bytes_per_token']:.1f} bytes a corpus token and view, "
        f"{view['bytes_per_kept_position']:.0f} a kept position; {view['num_tokens']:,} tokens, "
        f"{cache['num_views']} view(s), in {cache['cache']}"
    )
    return "\n".join([header, *lines, "", size, *(f"{row['model']}: {row['folder']}" for row in rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares masked-LM models on documents that none of them has seen.")
    parser.add_argument("--cache", required=True, metavar="URL", help="whose tokenizer and sequence length are used")
    parser.add_argument("--text", required=True, type=Path, metavar="FILE", help=".txt or .txt.zst, held out")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("models", nargs="+", metavar="NAME=FOLDER")
    arguments = parser.parse_args()
    transformers_logging.disable_progress_bar()
    if bare := [model for model in arguments.models if "=" not in model]:
        parser.error(f"{bare[0]} is no NAME=FOLDER")
    try:
        cache = open_cache(arguments.cache)
        rows = compare(dict(model.split("=", 1) for model in arguments.models), cache, arguments.text)
    except UserError as error:
        parser.error(str(error))
    print(json.dumps({"models": rows, "cache": info(cache.url)}) if arguments.json else render(rows, info(cache.url)))


if __name__ == "__main__":
    main()
