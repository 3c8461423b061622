"""One fine-tuning run: a model with a task's head, transformers' Trainer, and the score on dev after the last epoch."""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from transformers import (
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_pt_utils import LengthGroupedSampler

from student_train.finetune import records
from student_train.finetune.config import DistillationConfig, FinetuneConfig
from student_train.finetune.models import describe, load_model, load_tokenizer
from student_train.finetune.plan import Run
from student_train.finetune.records import MODEL_FOLDER, RunRecord, run_key
from student_train.finetune.soft_loss import answer_mask, soft_loss, task_logits
from student_train.finetune.teacher_logits import FEATURE, TEACHER_LOGITS, TaughtCollator, read_logits, teaching
from student_train.saved_model import local_path, put_model
from teacher_cache.errors import UserError
from teacher_cache.storage.store import Store
from teacher_cache.tasks.record import Task
from teacher_cache.tasks.task import features, load_task, score

CLIP_NORM = 1.0
"""As in BERT's own fine-tuning."""
_AGAIN = "run the command again with another `output`"


class DivergedError(Exception):
    """A loss or a prediction is not finite."""


def finetune_once(config: FinetuneConfig, run: Run, *, on_gpu: bool) -> RunRecord:
    """Makes one run, and puts the model that may be wanted later into the output; the record is the caller's to write.

    Raises:
        UserError: the model or the task is no longer what it was when it was checked.
    """
    task = load_task(run.task, config.tasks[run.task])
    _check_unchanged(config, run, task)
    taught = None
    with local_path(config.models[run.model]) as folder, tempfile.TemporaryDirectory() as temporary:
        tokenizer = load_tokenizer(folder)
        train, collate = features(task, "train", tokenizer), _collator(task, tokenizer)
        if url := config.distillation.caches.get(run.model, {}).get(run.task):
            taught = teaching(config.distillation, url, task)
            collate = TaughtCollator(collate, read_logits(url, task, train, run.model))
            train = train.add_column(FEATURE, list(range(len(train))))
        set_seed(run.seed)
        model = load_model(folder, task)
        trainer = _Trainer(
            task,
            config.distillation,
            model=model,
            args=_arguments(config, run, temporary, on_gpu=on_gpu),
            data_collator=collate,
            train_dataset=train,
        )
        trainer.remove_callback(PrinterCallback)
        dev = features(task, "dev", tokenizer)
        metrics, seconds = _train_and_score(trainer, task, dev)
        kept = None
        if metrics and (config.keep_models or run.seed == config.seeds[0]):
            load_tokenizer(folder).save_pretrained(temporary)  # untouched by the calls
            kept = _keep(model, Path(temporary), config, run)
    return RunRecord(
        **vars(run),
        state="finished" if metrics else "diverged",
        score=metrics[task.metrics[0]] if metrics else None,
        metrics=metrics,
        seconds=seconds,
        num_steps=trainer.state.global_step,
        folder=kept,
        taught=taught,
    )


def _check_unchanged(config: FinetuneConfig, run: Run, task: Task) -> None:
    store, path = Store(config.output), config.models[run.model]
    task_then, model_then = records.read_task(store, run.task), records.read_model(store, run.model)
    if task_then and task_then.content_sha256 != task.content_sha256:
        raise UserError(f"task {run.task} is not what it was when the command began; {_AGAIN}")
    if model_then and model_then.content_sha256 != describe(run.model, path, max_lengths={}).content_sha256:
        raise UserError(f"model {run.model} ({path}) is not what it was when the command began; {_AGAIN}")


def _train_and_score(trainer: Trainer, task: Task, dev: Dataset) -> tuple[dict[str, float], float]:
    """Metrics on dev, none where training diverged, and the seconds that training took."""
    start = time.perf_counter()
    try:
        trainer.train()
        seconds = time.perf_counter() - start
        return score(task, predict(trainer, dev), dev), seconds
    except DivergedError:
        return {}, time.perf_counter() - start


def _arguments(config: FinetuneConfig, run: Run, folder: str, *, on_gpu: bool) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=folder,
        num_train_epochs=config.tasks[run.task].epochs or config.epochs,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        learning_rate=run.lr,
        lr_scheduler_type="linear",
        warmup_steps=config.warmup_share,
        weight_decay=config.weight_decay,
        max_grad_norm=CLIP_NORM,
        bf16=config.dtype == "bfloat16",
        seed=run.seed,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # Trainer takes all GPUs that it sees, for larger batches
    return arguments


def _collator(task: Task, tokenizer: PreTrainedTokenizerFast) -> Any:
    kind = DataCollatorForTokenClassification if task.kind == "tagging" else DataCollatorWithPadding
    return kind(tokenizer)


class _Trainer(Trainer):
    """transformers' Trainer, with batches of like lengths, a teacher's word where a batch holds it, and an end at the
    first loss that is not finite."""

    def __init__(self, task: Task, distillation: DistillationConfig, **options: Any) -> None:
        super().__init__(**options)
        self._task, self._distillation = task, distillation

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        # What is not among these is dropped before the collator sees it.
        self._signature_columns = [*self._signature_columns, FEATURE]  # type: ignore[misc,assignment]  # declared as None

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        teacher = inputs.pop(TEACHER_LOGITS, None)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if teacher is not None:
            kind, weight = self._task.kind, self._distillation.soft_weight
            mask, temperature = answer_mask(kind, inputs), self._distillation.temperature
            soft = soft_loss(kind, task_logits(outputs), teacher, mask=mask, temperature=temperature)
            loss = weight * soft + (1 - weight) * loss
        return (loss, outputs) if return_outputs else loss

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler:
        # train_sampling_strategy would change the order of predictions too.
        train: Any = self.train_dataset
        lengths = [len(ids) for ids in train["input_ids"]]
        return LengthGroupedSampler(self.args.train_batch_size, lengths=lengths)

    def training_step(self, *args: Any, **options: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*args, **options)
        if not torch.isfinite(loss):
            raise DivergedError
        return loss


def predict(trainer: Trainer, dev: Dataset) -> NDArray[Any]:
    """Logits of features [N, num_outputs], of tokens [N, S, num_outputs] padded to the longest at the end.

    Raises:
        DivergedError: one is not finite.
    """
    order = np.argsort([len(ids) for ids in dev["input_ids"]], kind="stable")  # little padding
    found = trainer.predict(dev.select(order), ignore_keys=["hidden_states", "attentions"]).predictions
    by_length = np.stack(found, axis=-1) if isinstance(found, tuple) else found  # start and end
    if not np.isfinite(by_length).all():
        raise DivergedError
    logits = np.empty_like(by_length)
    logits[order] = by_length
    return logits


def _keep(model: PreTrainedModel, folder: Path, config: FinetuneConfig, run: Run) -> str:
    """Puts a model into the output, beside the files that lie in `folder`; where it lies."""
    model.save_pretrained(folder)
    store, prefix = Store(config.output), f"{run_key(**vars(run))}/{MODEL_FOLDER}"
    put_model(store, f"{prefix}/", folder)
    return f"{store.url}/{prefix}"
