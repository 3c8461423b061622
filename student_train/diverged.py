"""A step whose gradient is not finite: saved as it was, and looked through sequence by sequence.

`diverged/` in a run's output holds the parameters of that step, and for each worker the sequences of its part of the
global batch.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import nn
from transformers import AutoTokenizer

from student_train.batch import Batch
from student_train.checkpoint import model_tensors
from student_train.config import StudentSpec
from student_train.loop import Trainer
from student_train.rank import Rank
from student_train.run_folder import DIVERGED_PREFIX, DivergedBatch, read_run, write_records
from teacher_cache.errors import UserError
from teacher_cache.format.cache import Cache
from teacher_cache.format.row import Row
from teacher_cache.shell.settings import parse
from teacher_cache.storage.store import Store

MODEL_KEY = f"{DIVERGED_PREFIX}/model.safetensors"
MAX_MODEL_BYTES = 2**34
SHOWN_SEQUENCES, SHOWN_CHARACTERS = 10, 300


@dataclass(frozen=True, kw_only=True)
class Examined:
    """What one sequence, alone, does to the student."""

    row: Row
    losses: dict[str, float]
    """Its share of the means of a batch of its own."""
    grad_norm: float

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.grad_norm) and all(map(math.isfinite, self.losses.values()))


def save_batch(store: Store, trainer: Trainer, batch: Batch) -> None:
    """Saves this worker's part of a batch, and on the first worker the parameters."""
    view = trainer.progress.epoch % trainer.num_views
    saved = DivergedBatch(step=trainer.progress.step + 1, view=view, sequences=batch.sequences)
    write_records(store, f"{DIVERGED_PREFIX}/worker-{trainer.rank.index}.json", [saved])
    if trainer.rank.index == 0:
        store.replace(MODEL_KEY, save(model_tensors(trainer.modules)))


def examine(url: str) -> dict[str, Any]:
    """Runs each sequence of the saved batch alone, and tells which are not finite; the worst first.

    Raises:
        UserError: there is no run at `url`, or it has not diverged.
    """
    store = Store(url)
    run = read_run(store)
    if not run.diverged:
        raise UserError(f"{store.url} has not diverged: there is no {DIVERGED_PREFIX}/")
    trainer = Trainer(
        parse(StudentSpec, run.description.spec),
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        rank=Rank(),
    )
    trainer.modules.load_state_dict(load(store.read(MODEL_KEY, max_bytes=MAX_MODEL_BYTES)), strict=False)
    rows = [row for batch in run.diverged for row in _rows(trainer, batch)]
    examined = sorted((_examine(trainer, row) for row in rows), key=lambda found: (found.is_finite, -found.grad_norm))
    parameters = trainer.modules.named_parameters()
    return {
        "step": run.diverged[0].step,
        "parameters_not_finite": [name for name, values in parameters if not values.isfinite().all()],
        "num_sequences": len(examined),
        "num_not_finite": sum(not found.is_finite for found in examined),
        "worst": [_told(trainer, found) for found in examined[:SHOWN_SEQUENCES]],
    }


def render(found: dict[str, Any]) -> str:
    """What `examine` found, for a person."""
    bad = found["parameters_not_finite"]
    lines = [
        f"step {found['step']}: {found['num_not_finite']} of {found['num_sequences']} sequences lack a finite gradient",
        f"parameters that were not finite before it: {', '.join(bad) or 'none'}",
    ]
    for row in found["worst"]:
        losses = ", ".join(f"{name} {value:.4g}" for name, value in row["losses"].items())
        lines.append(f"\nsequence {row['sequence_id']} of {row['cache']}, {row['num_tokens']} tokens")
        lines += [f"  gradient norm {row['grad_norm']:.4g}; {losses}", f"  {row['text']}"]
    return "\n".join(lines)


def _rows(trainer: Trainer, saved: DivergedBatch) -> list[Row]:
    pairs = [_pair(trainer.caches, saved.view, source, sequence_id) for source, sequence_id in saved.sequences]
    return trainer.reader(saved.view).rows_at(np.array(pairs, np.int64).reshape(-1, 2))


def _pair(caches: list[Cache], view: int, source: int, sequence_id: int) -> tuple[int, int]:
    """Shard, counted over all caches, and row."""
    before = sum(len(cache.manifest(view).shards) for cache in caches[:source])
    stops = np.cumsum(caches[source].manifest(view).sizes)
    shard = int(np.searchsorted(stops, sequence_id, side="right"))
    return before + shard, sequence_id - (int(stops[shard - 1]) if shard else 0)


def _examine(trainer: Trainer, row: Row) -> Examined:
    trainer.optimizer.zero_grad(set_to_none=True)
    losses, _ = trainer.gradients(trainer.batch([row], epoch=0))
    gradients = [values.grad for values in trainer.modules.parameters() if values.grad is not None]
    return Examined(row=row, losses=losses, grad_norm=float(nn.utils.get_total_norm(gradients)))


def _told(trainer: Trainer, found: Examined) -> dict[str, Any]:
    cache = trainer.caches[found.row.source]
    text = AutoTokenizer.from_pretrained(cache.teacher.folder).decode(found.row.input_ids)
    return {
        "cache": cache.url,
        "sequence_id": found.row.sequence_id,
        "num_tokens": len(found.row.input_ids),
        "grad_norm": found.grad_norm,
        "losses": found.losses,
        "text": text[:SHOWN_CHARACTERS],
    }
