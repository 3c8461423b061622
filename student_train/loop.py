"""One worker's training in plain torch: with `torch.distributed` where it is initialised, without Ray anywhere.

Gradients of a global batch are accumulated locally over micro-batches and summed over workers once a step.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from transformers import PreTrainedModel

from student_train import checkpoint
from student_train.batch import collate, decode_hidden
from student_train.checkpoint import Progress
from student_train.config import OptimizerConfig, StudentSpec
from student_train.losses import TripleLoss, step_denominators, teacher_parts
from student_train.order import epoch_order
from student_train.reader import Reader
from student_train.student import build_student, encode_student
from teacher_cache.errors import UserError
from teacher_cache.format import documents, philox
from teacher_cache.format.cache import Cache, open_cache
from teacher_cache.format.row import Row
from teacher_cache.shell.settings import to_dict
from teacher_cache.storage.store import Store
from teacher_cache.targets.batching import group_by_tokens
from teacher_cache.targets.heads import OutputHead, head_of
from teacher_cache.targets.soft_labels import check_stored


class DivergedError(UserError):
    """Training that cannot go on; raised by all workers at the same step."""


LOSS_NAMES = ("soft_labels", "masked_lm", "cosine")


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one optimiser step did, over all workers."""

    step: int
    num_steps: int
    epoch: int
    losses: dict[str, float]
    """Means over the step's positions, unweighted; `total` is their weighted sum."""
    grad_norm: float
    lr: float
    num_sequences: int
    num_tokens: int
    step_s: float
    """Since the end of the step before: reading included."""
    seconds: float
    """Training time so far, over all attempts."""


@dataclass(frozen=True, kw_only=True)
class Rank:
    """This worker's place, and how it adds up tensors with the others."""

    index: int = 0
    size: int = 1

    @classmethod
    def of_process(cls) -> "Rank":
        if dist.is_available() and dist.is_initialized():
            return cls(index=dist.get_rank(), size=dist.get_world_size())
        return cls()

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


class Trainer:
    """A run's state on one worker."""

    def __init__(self, spec: StudentSpec, *, device: torch.device, rank: Rank, num_views: int | None = None) -> None:
        """`num_views` are the views to read in turn, the same on all workers; None for all that are sealed now."""
        self.spec, self.device, self.rank = spec, device, rank
        self.caches = open_caches(spec)
        self.num_views = num_views or min(cache.num_views for cache in self.caches)
        self.num_epoch_sequences = epoch_order(self.caches, view=0, seed=spec.seed, epoch=0).num_sequences
        self.num_steps = count_steps(spec, self.num_epoch_sequences)
        torch.manual_seed(spec.seed)
        self.model = build_student(self.caches[0].teacher.folder, spec.student)
        self.model.to(device).train()  # type: ignore[arg-type]  # transformers annotates `to` as a decorator
        projection = make_projection(self.model, self.caches[0]) if spec.loss.weights.cosine else None
        self.modules = nn.ModuleDict({"student": self.model})
        if projection is not None:
            self.modules["projection"] = projection.to(device)
        self.optimizer = make_optimizer(self.modules, spec.optimizer)
        self.loss = TripleLoss(spec.loss, self._teacher_head(), projection)
        self._coders = [cache.coder.to(device) for cache in self.caches] if self._needs("hidden") else []
        self._step_end = time.perf_counter()
        self.progress = Progress(
            run=run_digest(spec, self.caches, self.num_views),
            num_views=self.num_views,
            step=0,
            epoch=0,
            sequences=0,
            seconds=0.0,
        )

    def _needs(self, part: str) -> bool:
        return part in teacher_parts(self.spec.loss)

    def _teacher_head(self) -> OutputHead | None:
        return self.caches[0].head.to(self.device) if self._needs("head") else None

    def check_output(self, store: Store) -> Progress | None:
        """The progress that `store` holds, None for none.

        Raises:
            UserError: it belongs to a run with another configuration.
        """
        progress = checkpoint.newest_progress(store)
        if progress is None:
            return None
        # Views that were sealed since the run began are none of its own.
        own = run_digest(self.spec, self.caches, min(progress.num_views, self.num_views))
        if progress.run != own:
            raise UserError(
                f"{store.url} holds checkpoints of another run: its configuration or its caches differ; "
                "choose another `output`, or delete that one"
            )
        return progress

    def resume(self, store: Store) -> None:
        """Goes on from the newest whole checkpoint, if there is one."""
        progress = self.check_output(store)
        if progress is not None:
            checkpoint.load_checkpoint(store, progress, self.modules, self.optimizer)
            self.progress, self.num_views = progress, progress.num_views

    def num_consumed(self, progress: Progress) -> int:
        """Sequences of all epochs that the run had consumed at `progress`, over all workers."""
        return progress.epoch * self.num_epoch_sequences + progress.sequences

    @property
    def views_read(self) -> list[int]:
        """Views of which the run has read so far."""
        epochs = self.progress.epoch + (self.progress.sequences > 0)
        return list(range(min(epochs, self.num_views)))

    def save(self, store: Store) -> None:
        """Writes a checkpoint on the first worker; the others wait."""
        if self.rank.index == 0:
            checkpoint.save_checkpoint(store, self.progress, self.modules, self.optimizer)
        self.rank.barrier()

    def train(self, on_step: Callable[[StepReport], None]) -> None:
        """Runs all steps that are left, calling back after each."""
        self._step_end = time.perf_counter()
        while self.progress.step < self.num_steps:
            for rows in self._epoch_batches():
                on_step(self._timed_step(rows))
                if self.progress.step == self.num_steps:
                    return
            self.progress = dataclasses.replace(self.progress, epoch=self.progress.epoch + 1, sequences=0)

    def _epoch_batches(self) -> Iterator[list[Row]]:
        layer = self.caches[0].last_hidden_layer
        layers = (layer,) if self._needs("hidden") and layer is not None else ()
        reader = Reader(self.caches, view=self.progress.epoch % self.num_views, layers=layers)
        return reader.batches(
            seed=self.spec.seed,
            epoch=self.progress.epoch,
            batch_sequences=self.spec.batch_sequences,
            rank=self.rank.index,
            num_ranks=self.rank.size,
            start_sequence=self.progress.sequences,
        )

    def _timed_step(self, rows: list[Row]) -> StepReport:
        lr = self._set_learning_rate()
        losses, counts, grad_norm = self.step(rows)
        num_sequences = int(counts[2])
        now = time.perf_counter()
        step_s, self._step_end = now - self._step_end, now
        self.progress = dataclasses.replace(
            self.progress,
            step=self.progress.step + 1,
            sequences=self.progress.sequences + num_sequences,
            seconds=self.progress.seconds + step_s,
        )
        return StepReport(
            step=self.progress.step,
            num_steps=self.num_steps,
            epoch=self.progress.epoch,
            losses=losses,
            grad_norm=grad_norm,
            lr=lr,
            num_sequences=num_sequences,
            num_tokens=int(counts[0]),
            step_s=step_s,
            seconds=self.progress.seconds,
        )

    def step(self, rows: list[Row]) -> tuple[dict[str, float], torch.Tensor, float]:
        """One optimiser step on this worker's rows: losses, counts (tokens, labels, sequences), gradient norm."""
        self.optimizer.zero_grad(set_to_none=True)
        losses, counts = self.gradients(rows)
        parameters = [parameter for parameter in self.modules.parameters() if parameter.requires_grad]
        norm = float(nn.utils.clip_grad_norm_(parameters, self.spec.optimizer.clip_norm))
        if not torch.isfinite(torch.tensor(norm)):
            raise DivergedError(
                f"the gradient of step {self.progress.step + 1} is not finite (losses {losses}); "
                "nothing was changed by it: lower optimizer.lr, or use dtype: float32"
            )
        self.optimizer.step()
        return losses, counts, norm

    def gradients(self, rows: list[Row]) -> tuple[dict[str, float], torch.Tensor]:
        """Sums the gradients of a global batch over micro-batches and workers into `.grad`."""
        counts = torch.tensor(
            [sum(len(row.input_ids) for row in rows), sum(len(row.label_positions) for row in rows), len(rows)],
            dtype=torch.float64,
        )
        counts = self.rank.sum(counts.to(self.device)).cpu()
        denominators = step_denominators(float(counts[0]), float(counts[1]), self.caches[0].spec.keep.unmasked)
        sums = torch.zeros(len(LOSS_NAMES), device=self.device)
        layer = self.caches[0].last_hidden_layer if self._needs("hidden") else None
        groups = group_by_tokens([len(row.input_ids) for row in rows], self.spec.execution.micro_batch_tokens)
        for index, group in enumerate(groups):
            self._seed_dropout(index)
            batch = collate(
                [rows[place] for place in group], pad_id=self.model.config.pad_token_id, hidden_layer=layer
            ).to(self.device)
            if layer is not None:
                batch = decode_hidden(batch, self._coders, layer)
            with self._autocast():
                hidden = encode_student(self.model, batch.input_ids, batch.attention_mask).flatten(0, 1)
                parts = self.loss.backward(hidden, head_of(self.model), batch, denominators)
            sums += torch.stack([getattr(parts, name) for name in LOSS_NAMES])
        self._sum_gradients()
        values = dict(zip(LOSS_NAMES, self.rank.sum(sums).tolist(), strict=True))
        weights = self.spec.loss.weights
        values["total"] = sum(getattr(weights, name) * values[name] for name in LOSS_NAMES)
        return values, counts

    def _seed_dropout(self, micro_batch: int) -> None:
        key = philox.key_of("dropout", self.spec.seed, self.progress.step, self.rank.index, micro_batch)
        torch.manual_seed(key[0] >> 1)

    def _sum_gradients(self) -> None:
        """One flat all-reduce of all gradients; what no position needed has zeros, whatever the number of workers."""
        parameters = [parameter for parameter in self.modules.parameters() if parameter.requires_grad]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.rank.size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = self.rank.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))

    def _set_learning_rate(self) -> float:
        config = self.spec.optimizer
        lr = config.lr * schedule(self.progress.step, self.num_steps, config.warmup_share)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.spec.dtype == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=getattr(torch, self.spec.dtype))


def open_caches(spec: StudentSpec) -> list[Cache]:
    """Opens the caches, and checks that they are sealed, fit together, and hold what the losses need.

    Raises:
        UserError: they do not.
    """
    caches = [open_cache(url, disk_cache=spec.execution.disk_cache) for url in spec.caches]
    first = caches[0]
    for cache in caches:
        cache.manifest(0)
        same = (cache.spec.teacher, cache.spec.corpus.tokenizer_sha256) == (
            first.spec.teacher,
            first.spec.corpus.tokenizer_sha256,
        )
        if not same:
            raise UserError(f"{cache.url} and {first.url} are of different teachers or tokenizers: one run needs one")
        _check_targets(cache, spec)
        alike = [(c.spec.soft_labels, c.last_hidden_layer, c.spec.hidden.code) for c in (cache, first)]
        if alike[0] != alike[1]:
            raise UserError(
                f"{cache.url} and {first.url} differ in soft_labels, hidden.code or the name of the last hidden layer: "
                "one run needs caches built alike"
            )
    if len({cache.spec.keep.unmasked > 0 for cache in caches}) > 1:
        raise UserError("some caches keep unmasked positions and some do not: their losses have different means")
    return caches


def _check_targets(cache: Cache, spec: StudentSpec) -> None:
    if teacher_parts(spec.loss) and cache.last_hidden_layer is None:
        raise UserError(
            f"{cache.url} stores no last hidden states, which loss.soft_labels: replay and loss.weights.cosine need; "
            "use loss.soft_labels=bucket and loss.weights.cosine=0, or a cache with hidden.layers: [-1]"
        )
    stored = cache.spec.soft_labels
    exact = stored.top_k == cache.teacher.vocab_size
    if spec.loss.soft_labels == "bucket" and spec.loss.weights.soft_labels and not exact:
        check_stored(spec.loss.temperature, stored.temperatures)


def count_steps(spec: StudentSpec, num_epoch_sequences: int) -> int:
    """Optimiser steps of the whole run."""
    if spec.steps is not None:
        return spec.steps
    return (spec.epochs or 3) * -(-num_epoch_sequences // spec.batch_sequences)


def schedule(step: int, num_steps: int, warmup_share: float) -> float:
    """Factor of the learning rate for the step after `step` steps: linear rise, then linear decay to 0."""
    warmup = warmup_share * num_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return max(0.0, (num_steps - step) / max(1.0, num_steps - warmup))


def make_optimizer(modules: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW; biases and layer norms do not decay."""
    parameters = [parameter for parameter in modules.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)


def make_projection(model: PreTrainedModel, cache: Cache) -> nn.Linear | None:
    """Student width to teacher width, learned with the student and dropped at export; None where they agree."""
    width, teacher_width = model.config.hidden_size, cache.teacher.hidden_size
    return None if width == teacher_width else nn.Linear(width, teacher_width, bias=False)


def run_digest(spec: StudentSpec, caches: list[Cache], num_views: int) -> str:
    """Digest of all that decides what a run learns: its configuration, and the views that it reads.

    Not their manifests: a repaired view is the same view.
    """
    values = to_dict(spec)
    for name in ("caches", "output", "execution"):
        del values[name]
    fingerprints = [cache.fingerprint for cache in caches]
    return documents.digest_of({"spec": values, "caches": fingerprints, "num_views": num_views})
