"""The model card of an export: the model's own, and what was made and measured here."""

import re
from collections.abc import Sequence
from typing import Any

from huggingface_hub import ModelCardData

from student_train.export.command import agreement_text
from student_train.saved_model import Head, SavedModel
from student_train.worth.records import QUIET_LOAD
from teacher_cache.shell import command

PIPELINES: dict[Head, str] = {
    "masked_lm": "fill-mask",
    "classification": "text-classification",
    "regression": "text-classification",
    "tagging": "token-classification",
    "question_answering": "question-answering",
}

WORTH, ONNX, EMBEDDING = "## What it is worth", "## ONNX", "## Sentence embeddings"


def extended(saved: SavedModel, summary: dict[str, Any], *, worth: str, is_embedding: bool) -> str:
    """Markdown; `summary` is an `ExportSummary` as plain values, `worth` a text of tables or empty.

    What an earlier export said is not said again: it was of that export's files.
    """
    sections = [
        _without_own(saved.card).strip() or _new(saved),
        f"{WORTH}\n\n{worth.strip()}" if worth else "",
        _onnx(saved, summary) if summary["onnx"] else "",
        _embedding(saved) if is_embedding else "",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _without_own(card: str) -> str:
    own = "|".join(map(re.escape, (WORTH, ONNX, EMBEDDING)))
    return re.sub(rf"^(?:{own})\n.*?(?=^#{{1,2}} |\Z)", "", card, flags=re.MULTILINE | re.DOTALL)


def _new(saved: SavedModel) -> str:
    """For a model that has none, as after a fine-tuning."""
    config = saved.model.config
    data = ModelCardData(library_name="transformers", pipeline_tag=PIPELINES[saved.head])
    return (
        f"---\n{data.to_yaml()}\n---\n\n# {config.model_type} for {saved.head.replace('_', ' ')},"
        f" {config.num_hidden_layers} layers, {saved.num_parameters / 1e6:.1f} M parameters"
    )


def _onnx(saved: SavedModel, summary: dict[str, Any]) -> str:
    figures, sizes, machine = summary["onnx"], summary["num_bytes"], summary["onnx"]["machine"]
    files = {"PyTorch": "model.safetensors"} | {key: key for key in figures["speedup"]}
    rows = [
        [
            f"`{file}`",
            command.size(sizes[file]),
            f"{figures['latency_ms'][name]:.1f} ms",
            f"{figures['speedup'].get(name, 1):.2f}",
        ]
        for name, file in files.items()
    ]
    busy = "" if figures["load_per_core"] <= QUIET_LOAD else ", while other work ran beside"
    blocks = [
        ONNX,
        _table(["file", "size", "latency", "speed against PyTorch"], rows),
        f"Latency: one text of {figures['num_tokens']} tokens on {machine['processor']}, {machine['threads']} threads"
        f"{busy}; the median of rounds in which each had its turn. The graphs have opset {figures['opset']} and take"
        f" any number of texts of up to {saved.max_length} tokens. Logits of `model.onnx` differ from PyTorch's by at"
        f" most {figures['largest_difference']:.1e} of the largest, or of 1 where none is larger.",
        _int8(summary),
    ]
    return "\n\n".join(block for block in blocks if block)


def _int8(summary: dict[str, Any]) -> str:
    agreement, scores = summary["int8_agreement"], summary["scores"]
    if scores:
        metrics = list(next(iter(scores.values())))
        rows = [[f"`{key}`", *(f"{found[metric]:.2f}" for metric in metrics)] for key, found in scores.items()]
        return f"On the task's dev set, in per cent:\n\n{_table(['file', *metrics], rows)}"
    if agreement:
        return f"int8 on sample text: {agreement_text(agreement)}."
    return ""


def _embedding(saved: SavedModel) -> str:
    return f"""{EMBEDDING}

`SentenceTransformer` loads this folder, too: {saved.model.config.hidden_size} dimensions, the mean over a text's \
tokens. It was not trained for that; embeddings are a start for training, or for comparison with other such means."""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
