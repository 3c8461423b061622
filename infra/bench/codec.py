"""What the codes cost in time and memory, beside the teacher that they encode and the student that they feed.

Random weights of BERT-base's shape: times do not depend on what the teacher knows. Ratios are of one run.

Usage: `python infra/bench/codec.py [--quick] [--json]`
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import BertConfig, BertForMaskedLM

from student_train.batch import collate, decode_hidden
from student_train.config import LossConfig, StudentConfig
from student_train.losses import TripleLoss, step_denominators
from student_train.student import build_student, encode_student
from teacher_cache.codebooks import make_codebook
from teacher_cache.format.coder import Coder
from teacher_cache.format.sequences import StoredSequence
from teacher_cache.format.shard import BLOCK_SEQUENCES, ShardReader, encode
from teacher_cache.format.spec import (
    CorpusIdentity,
    HiddenConfig,
    Identity,
    KeepConfig,
    MaskingConfig,
    SoftLabelsConfig,
    TeacherIdentity,
)
from teacher_cache.masking import Vocabulary
from teacher_cache.targets.heads import head_of
from teacher_cache.teacher import LoadedTeacher, Teacher
from teacher_cache.units import ask_unit, mask_unit

MASK_ID, SPECIAL_IDS = 103, (0, 100, 101, 102, 103)


def identity(sequence_length: int) -> Identity:
    """The default codes; the digests name nothing."""
    nothing = "0" * 64
    return Identity(
        objective="masked_lm",
        corpus=CorpusIdentity(
            files=(), text_field="text", sequence_length=sequence_length, packing="full", tokenizer_sha256=nothing
        ),
        teacher=TeacherIdentity(sha256=nothing, dtype="float32"),
        masking=MaskingConfig(),
        keep=KeepConfig(),
        soft_labels=SoftLabelsConfig(),
        hidden=HiddenConfig(),
        unit_sequences=BLOCK_SEQUENCES,
    )


def random_sequences(num: int, length: int, vocab_size: int) -> list[StoredSequence]:
    draw = np.random.default_rng(0)
    rows = draw.integers(1000 if vocab_size > 2000 else 110, vocab_size, (num, length)).astype(np.int32)
    rows[:, 0], rows[:, -1] = 101, 102
    return [StoredSequence(sequence_id=place, document_id=place, input_ids=ids) for place, ids in enumerate(rows)]


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def peak_bytes(work: Callable[[], Any]) -> int:
    """How far the process's resident memory rises above what it was, while `work` runs (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes("VmRSS")
    work()
    return _status_bytes("VmHWM") - before


def _status_bytes(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def encoding(model: BertForMaskedLM, num_sequences: int, length: int, folder: Path) -> tuple[dict[str, Any], Coder]:
    """Teacher's time and encoding's on the same unit, and the unit's files."""
    spec = identity(length)
    asking: dict[str, Any] = {
        "teacher": Teacher(LoadedTeacher(model=model, tokenizer=None), torch.float32, "cpu"),  # type: ignore[arg-type]  # ids are random
        "pad_id": 0,
        "identity": spec,
        "batch_tokens": 16384,
    }
    vocabulary = Vocabulary(size=model.config.vocab_size, mask_id=MASK_ID, special_ids=SPECIAL_IDS)
    sequences = random_sequences(num_sequences, length, model.config.vocab_size)
    unit = mask_unit(sequences, 0, identity=spec, vocabulary=vocabulary)
    rows, teacher_s = timed(lambda: ask_unit(unit, **asking))
    head = head_of(model)
    head = replace(head, **{k: v.detach() for k, v in vars(head).items() if isinstance(v, torch.Tensor)})
    codebook, fit_s = timed(
        lambda: make_codebook(unit[:8], head=head, num_layers=model.config.num_hidden_layers, **asking)
    )
    coder = Coder(codebook=codebook, head=head)
    metadata = {"fingerprint": spec.fingerprint}
    (labels, hidden), encode_s = timed(lambda: encode(rows, spec, coder, metadata=metadata))
    memory = peak_bytes(lambda: encode(rows, spec, coder, metadata=metadata))
    (folder / "labels").write_bytes(labels)
    (folder / "hidden").write_bytes(hidden or b"")
    num_kept = sum(len(row.kept_positions) for row in rows)
    return {
        "num_tokens": num_sequences * length,
        "num_kept": num_kept,
        "teacher_s": teacher_s,
        "encode_s": encode_s,
        "codebook_of_8_sequences_s": fit_s,
        "encode_kept_per_s": num_kept / encode_s,
        "encode_peak_bytes": memory,
        "unit_hidden_bytes": num_kept * model.config.hidden_size * 4,
    }, coder


def decoding(teacher_folder: Path, files: Path, coder: Coder, length: int, num_layers: int) -> dict[str, Any]:
    """A training step's time, and what of it goes to reading and decoding the same positions."""
    reader = ShardReader(files / "labels", files / "hidden", identity(length), coder, layers=(-1,), as_levels=True)
    rows, decompress_s = timed(lambda: list(reader.rows()))
    student = build_student(teacher_folder, StudentConfig(num_layers=num_layers))
    batch, collate_s = timed(lambda: collate(rows, pad_id=0, hidden_layer=-1))
    batch, decode_s = timed(lambda: decode_hidden(batch, [coder], -1))
    loss = TripleLoss(LossConfig(), coder.head, None)
    denominators = step_denominators(batch.input_ids.numel(), len(batch.label_ids), 0.1)

    def train() -> None:
        hidden = encode_student(student, batch.input_ids, batch.attention_mask).flatten(0, 1)
        loss.backward(hidden, head_of(student), batch, denominators)

    _, train_s = timed(train)
    num_kept = sum(len(row.kept_positions) for row in rows)
    return {
        "decompress_s": decompress_s,
        "collate_s": collate_s,
        "decode_s": decode_s,
        "train_s": train_s,
        "decompress_kept_per_s": num_kept / decompress_s,
        "decode_kept_per_s": num_kept / decode_s,
    }


def measure(quick: bool) -> dict[str, Any]:
    config = BertConfig(num_hidden_layers=2, hidden_size=128, num_attention_heads=2, intermediate_size=512)
    model = BertForMaskedLM(config if quick else BertConfig()).eval()
    with tempfile.TemporaryDirectory() as folder:
        teacher_folder, files = Path(folder, "teacher"), Path(folder, "files")
        files.mkdir()
        model.save_pretrained(teacher_folder)
        num_sequences, length = (8, 128) if quick else (32, 512)
        figures, coder = encoding(model, num_sequences, length, files)
        figures |= decoding(teacher_folder, files, coder, length, model.config.num_hidden_layers // 2)
    return {
        "name": "codec" + (" (quick: a small teacher)" if quick else ""),
        "ratios": {
            "encoding / teacher": figures["encode_s"] / figures["teacher_s"],
            "decompressing and decoding / training step": (figures["decompress_s"] + figures["decode_s"])
            / figures["train_s"],
        },
        "figures": figures,
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": np.__version__},
    }


def render(result: dict[str, Any]) -> str:
    lines = [result["name"], *(f"  {label}: {value:.4f}" for label, value in result["ratios"].items())]
    return "\n".join(lines + [f"  {name}: {value:,.3f}" for name, value in result["figures"].items()])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few seconds: a small teacher")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    result = measure(arguments.quick)
    print(json.dumps(result) if arguments.json else render(result))


if __name__ == "__main__":
    main()
