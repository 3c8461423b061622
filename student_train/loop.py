"""One worker's training in plain torch: with `torch.distributed` where it is initialised, without Ray anywhere.

Gradients of a global batch are accumulated locally over micro-batches and summed over workers once a step. Batches are
read, decoded and padded by threads while the one before is trained on.
"""

import dataclasses
import itertools
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from student_train import checkpoint
from student_train.batch import Batch, MicroBatch, decode_hidden, made_ahead, make_batch
from student_train.checkpoint import Progress
from student_train.config import StudentSpec
from student_train.held_out import set_aside
from student_train.losses import Denominators, TripleLoss, step_denominators, teacher_parts
from student_train.optimizer import count_steps, make_optimizer, schedule
from student_train.order import epoch_order
from student_train.rank import Rank
from student_train.reader import Reader
from student_train.run_folder import LOSS_NAMES, HeldOutReport, StepReport
from student_train.sources import open_caches
from student_train.student import build_student, encode_student
from teacher_cache.errors import UserError
from teacher_cache.format import documents, philox
from teacher_cache.format.cache import Cache
from teacher_cache.format.row import Row
from teacher_cache.shell.settings import to_dict
from teacher_cache.storage.store import Store
from teacher_cache.targets.heads import head_of


class DivergedError(UserError):
    """Training that cannot go on; raised by all workers at the same step."""

    def __init__(self, message: str, batch: Batch) -> None:
        super().__init__(message)
        self.batch = batch
        """This worker's part of the global batch."""


class Trainer:
    """A run's state on one worker."""

    def __init__(self, spec: StudentSpec, *, device: torch.device, rank: Rank, num_views: int | None = None) -> None:
        """`num_views` are the views to read in turn, the same on all workers; None for all that are sealed now."""
        self.spec, self.device, self.rank = spec, device, rank
        self.caches = open_caches(spec)
        self.num_views = num_views or min(cache.num_views for cache in self.caches)
        self._held_out = set_aside(self.caches, spec.held_out_sequences)
        order = epoch_order(self.caches, view=0, seed=spec.seed, epoch=0, held_out=self._held_out)
        self.num_epoch_sequences = order.num_sequences
        if self.num_epoch_sequences == 0:
            raise UserError(f"{', '.join(spec.caches)}: there is no sequence to learn from")
        self.num_steps = count_steps(spec, self.num_epoch_sequences)
        torch.manual_seed(spec.seed)
        self.model = build_student(self.caches[0].teacher.folder, spec.student)
        self.model.to(device).train()  # type: ignore[arg-type]  # transformers annotates `to` as a decorator
        if spec.execution.gradient_checkpointing:
            keep_no_activations(self.model)
        projection = make_projection(self.model, self.caches[0]) if spec.loss.weights.cosine else None
        self.modules = nn.ModuleDict({"student": self.model})
        if projection is not None:
            self.modules["projection"] = projection.to(device)
        self.optimizer = make_optimizer(self.modules, spec.optimizer)
        parts = teacher_parts(spec.loss)
        self._hidden_layer = self.caches[0].last_hidden_layer if "hidden" in parts else None
        head = self.caches[0].head.to(device) if "head" in parts else None
        self.loss = TripleLoss(spec.loss, head, projection)
        self._coders = [cache.coder.to(device) for cache in self.caches] if "hidden" in parts else []
        self._step_end = time.perf_counter()
        self.progress = Progress(
            run=run_digest(spec, self.caches, self.num_views),
            num_views=self.num_views,
            step=0,
            epoch=0,
            sequences=0,
            seconds=0.0,
        )

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
    def num_epochs(self) -> int:
        """Of the whole run; the last may be cut short."""
        return -(-self.num_steps // -(-self.num_epoch_sequences // self.spec.batch_sequences))

    @property
    def views_read(self) -> list[int]:
        """Views of which the run has read so far."""
        epochs = self.progress.epoch + (self.progress.sequences > 0)
        return list(range(min(epochs, self.num_views)))

    def save(self, store: Store) -> None:
        """Writes a checkpoint on the first worker; the others wait."""
        if self.rank.index == 0:
            manifests = [[cache.manifest(view).sha256 for view in self.views_read] for cache in self.caches]
            progress = dataclasses.replace(self.progress, manifests=manifests)
            checkpoint.save_checkpoint(store, progress, self.modules, self.optimizer)
        self.rank.barrier()

    def train(
        self,
        on_step: Callable[[StepReport], None],
        on_held_out: Callable[[HeldOutReport], None] = lambda report: None,
        after_step: Callable[[StepReport], None] = lambda report: None,
    ) -> None:
        """Runs all steps that are left, calling back after each, after each evaluation on the rows held out, and once a
        step and its evaluation are done: from there another process may go on."""
        batches = made_ahead(itertools.islice(self.batches(), self.num_steps - self.progress.step))
        self._step_end = asked = time.perf_counter()
        for batch in batches:
            report = self._timed_step(batch, wait_s=time.perf_counter() - asked)
            on_step(report)
            if self._evaluation_is_due():
                on_held_out(self.evaluate())
                self._step_end = time.perf_counter()
            after_step(report)
            asked = time.perf_counter()

    def batches(self) -> Iterator[Batch]:
        """This worker's parts of all global batches from here on, epoch after epoch."""
        start = self.progress.sequences
        for epoch in itertools.count(self.progress.epoch):
            batches = self.reader(epoch % self.num_views).batches(
                seed=self.spec.seed,
                epoch=epoch,
                batch_sequences=self.spec.batch_sequences,
                rank=self.rank.index,
                num_ranks=self.rank.size,
                start_sequence=start,
            )
            yield from (self.batch(rows, epoch) for rows in batches)
            start = 0

    def reader(self, view: int) -> Reader:
        """Of what the losses need, and nothing else."""
        layers = () if self._hidden_layer is None else (self._hidden_layer,)
        return Reader(self.caches, view=view, layers=layers, held_out=self._held_out)

    def batch(self, rows: list[Row], epoch: int) -> Batch:
        """Rows as this run trains on them."""
        return make_batch(
            rows,
            epoch=epoch,
            max_tokens=self.spec.execution.micro_batch_tokens,
            pad_id=self.model.config.pad_token_id,
            hidden_layer=self._hidden_layer,
            pin=self.device.type == "cuda",
        )

    def _timed_step(self, batch: Batch, wait_s: float) -> StepReport:
        if batch.epoch > self.progress.epoch:
            self.progress = dataclasses.replace(self.progress, epoch=batch.epoch, sequences=0)
        lr = self._set_learning_rate()
        losses, counts, grad_norm = self.step(batch)
        num_sequences, num_tokens, _, rows_digest = counts.tolist()
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
            num_tokens=num_tokens,
            rows_digest=rows_digest,
            step_s=step_s,
            wait_s=wait_s,
            seconds=self.progress.seconds,
            peak_bytes=peak_bytes(self.device),
        )

    def step(self, batch: Batch) -> tuple[dict[str, float], torch.Tensor, float]:
        """One optimiser step on this worker's rows: losses, counts over all workers (as in `Batch`), gradient norm.

        Raises:
            DivergedError: the gradient is not finite; nothing was changed.
        """
        self.optimizer.zero_grad(set_to_none=True)
        losses, counts = self.gradients(batch)
        parameters = [parameter for parameter in self.modules.parameters() if parameter.requires_grad]
        norm = float(nn.utils.clip_grad_norm_(parameters, self.spec.optimizer.clip_norm))
        if not torch.isfinite(torch.tensor(norm)):
            raise DivergedError(
                f"the gradient of step {self.progress.step + 1} is not finite (losses {losses}); nothing was changed by"
                " it: lower optimizer.lr, or use dtype: float32; `student-train debug-batch` tells which sequences",
                batch,
            )
        self.optimizer.step()
        return losses, counts, norm

    def gradients(self, batch: Batch) -> tuple[dict[str, float], torch.Tensor]:
        """Sums the gradients of a global batch over micro-batches and workers into `.grad`; losses and counts."""
        counts, denominators = self._totals(batch.counts)
        sums = torch.zeros(len(LOSS_NAMES), device=self.device)
        for index, micro_batch in enumerate(batch.micro_batches):
            self._seed_dropout(index)
            on_device = self._on_device(micro_batch)
            with self._autocast():
                parts = self.loss.backward(self._encode(on_device), head_of(self.model), on_device, denominators)
            sums += torch.stack([getattr(parts, name) for name in LOSS_NAMES])
        self.rank.sum_gradients(self.modules)
        return self._weighted(self.rank.sum(sums)), counts

    @torch.no_grad()
    def evaluate(self) -> HeldOutReport:
        """Losses and accuracy on the rows held out, masked as in view 0."""
        names = (*LOSS_NAMES, "accuracy")
        counts, denominators = self._totals(self._held_out_batch.counts)
        sums = torch.zeros(len(names), device=self.device)
        self.model.eval()
        for micro_batch in self._held_out_batch.micro_batches:
            on_device = self._on_device(micro_batch)
            with self._autocast():
                parts = self.loss.measure(self._encode(on_device), head_of(self.model), on_device, denominators)
            sums += torch.stack([getattr(parts, name) for name in names])
        self.model.train()
        self.rank.sum(sums)
        return HeldOutReport(
            step=self.progress.step,
            seconds=self.progress.seconds,
            num_sequences=int(counts[0]),
            losses=self._weighted(sums[: len(LOSS_NAMES)]),
            accuracy=float(sums[-1]),
        )

    def _evaluation_is_due(self) -> bool:
        step = self.progress.step
        return bool(self._held_out.blocks) and (
            step % self.spec.execution.evaluation_steps == 0 or step == self.num_steps
        )

    @cached_property
    def _held_out_batch(self) -> Batch:
        """This worker's part of the rows held out, coded as they lie in the cache."""
        rows = self.reader(0).rows_at(self._held_out.rows[self.rank.index :: self.rank.size])
        return self.batch(rows, epoch=0)

    def _totals(self, counts: torch.Tensor) -> tuple[torch.Tensor, Denominators]:
        """Counts over all workers, and what means are taken over."""
        counts = self.rank.sum(counts.to(self.device, copy=True)).cpu()  # the batch keeps its own
        _, num_tokens, num_labels, _ = counts.tolist()
        return counts, step_denominators(num_tokens, num_labels, self.caches[0].spec.keep.unmasked)

    def _on_device(self, batch: MicroBatch) -> MicroBatch:
        batch = batch.to(self.device)
        return batch if self._hidden_layer is None else decode_hidden(batch, self._coders, self._hidden_layer)

    def _encode(self, batch: MicroBatch) -> torch.Tensor:
        return encode_student(self.model, batch.input_ids, batch.attention_mask).flatten(0, 1)

    def _weighted(self, sums: torch.Tensor) -> dict[str, float]:
        """Each loss, and their weighted sum as `total`."""
        values = dict(zip(LOSS_NAMES, sums.tolist(), strict=True))
        return values | {"total": sum(getattr(self.spec.loss.weights, name) * value for name, value in values.items())}

    def _seed_dropout(self, micro_batch: int) -> None:
        key = philox.key_of("dropout", self.spec.seed, self.progress.step, self.rank.index, micro_batch)
        torch.manual_seed(key[0] >> 1)

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


def keep_no_activations(model: PreTrainedModel) -> None:
    """Has each layer's activations computed again in the backward pass.

    Raises:
        UserError: transformers cannot do so for this family.
    """
    if not model.supports_gradient_checkpointing:
        raise UserError(
            f"execution.gradient_checkpointing: transformers has none for {model.config.model_type}; leave it out, and"
            " lower execution.micro_batch_tokens"
        )
    model.gradient_checkpointing_enable({"use_reentrant": False})


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


def peak_bytes(device: torch.device) -> int:
    """The most memory held so far: on a GPU by its tensors, on CPU by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        # Not `getrusage`, which starts from what the process that started this one had held.
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
