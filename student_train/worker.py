"""One worker's whole run: resume, train, checkpoint, export; plain torch, with or without Ray around it."""

import platform
from collections.abc import Callable

import torch
import transformers

from student_train import diverged
from student_train.config import StudentSpec
from student_train.export.finished import export
from student_train.loop import DivergedError, Trainer
from student_train.rank import Rank
from student_train.run_folder import (
    DIVERGED_PREFIX,
    MODEL_PREFIX,
    HeldOutReport,
    RunDescription,
    StepReport,
    TrainSummary,
)
from student_train.run_log import RunLog, Show
from student_train.sources import describe, views_line
from student_train.tracking import Tracker
from teacher_cache.errors import UserError
from teacher_cache.shell.settings import to_dict
from teacher_cache.storage.store import Store


def run_worker(
    spec: StudentSpec,
    *,
    device: torch.device,
    show: Show,
    on_checkpoint: Callable[[StepReport], None] = lambda report: None,
    on_held_out: Callable[[HeldOutReport], None] = lambda report: None,
    num_views: int | None = None,
) -> TrainSummary:
    """Trains, or goes on with the run that `spec.output` holds.

    The first worker shows its reports; all workers call back after a checkpoint and after an evaluation.

    Raises:
        DivergedError: on all workers; what they computed is saved for `diverged.examine`.
        UserError: bad input.
    """
    trainer = Trainer(spec, device=device, rank=Rank.of_process(), num_views=num_views)
    store = Store(spec.output)
    trainer.resume(store)
    log = _open_log(trainer, store, show) if trainer.rank.index == 0 else None
    resumed, resumed_s = trainer.num_consumed(trainer.progress), trainer.progress.seconds

    def on_step(report: StepReport) -> None:
        if log:
            log.step(report)

    def after_step(report: StepReport) -> None:
        if report.step % spec.execution.checkpoint_steps == 0 or report.step == report.num_steps:
            if log:  # first: a restart drops what lies behind its checkpoint, but cannot make up what is missing
                log.flush()
            trainer.save(store)
            on_checkpoint(report)

    def on_evaluation(report: HeldOutReport) -> None:
        if log:
            log.held_out(report)
        on_held_out(report)

    try:
        if log:
            show(views_line(trainer.caches, num_views=trainer.num_views, num_epochs=trainer.num_epochs))
        trainer.train(on_step, on_evaluation, after_step)
        num_sequences, seconds = trainer.num_consumed(trainer.progress) - resumed, trainer.progress.seconds - resumed_s
        summary = _summary(trainer, log, num_sequences / seconds if seconds else 0.0)
        if log:
            log.flush()
            _finish(trainer, store, log, summary)
        return summary
    except DivergedError as error:
        diverged.save_batch(store, trainer, error.batch)
        if log:
            log.fail()
        raise
    except torch.OutOfMemoryError as error:
        if log:
            log.fail()
        raise UserError(
            f"a worker's GPU is too small for this student: {' '.join(str(error).split()[:40])} …; lower"
            f" execution.micro_batch_tokens, which is {spec.execution.micro_batch_tokens}, or set"
            " execution.gradient_checkpointing: true"
        ) from None
    finally:
        if log:
            log.close()


def describe_run(trainer: Trainer) -> RunDescription:
    """What a run is, known when it starts."""
    config, device = trainer.model.config, trainer.device
    return RunDescription(
        spec=to_dict(trainer.spec),
        caches=[describe(cache, num_views=trainer.num_views) for cache in trainer.caches],
        model_type=config.model_type,
        num_layers=config.num_hidden_layers,
        width=config.hidden_size,
        num_parameters=_num_parameters(trainer),
        num_steps=trainer.num_steps,
        num_workers=trainer.rank.size,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        versions={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    )


def _open_log(trainer: Trainer, store: Store, show: Show) -> RunLog:
    description, after_step = describe_run(trainer), trainer.progress.step
    store.delete_folder(DIVERGED_PREFIX)
    tracker = Tracker(trainer.spec.execution.mlflow, store, description, resumed=after_step > 0)
    return RunLog(store, description, after_step=after_step, tracker=tracker, show=show)


def _finish(trainer: Trainer, store: Store, log: RunLog, summary: TrainSummary) -> None:
    export(
        trainer.model,
        store,
        spec=trainer.spec,
        caches=trainer.caches,
        views=trainer.views_read,
        last=log.last,
        also=log.tracker.log_model,
    )
    log.finish(summary)


def _summary(trainer: Trainer, log: RunLog | None, sequences_per_s: float) -> TrainSummary:
    url = Store(trainer.spec.output).url
    last, held_out = (log.last, log.last_held_out) if log else (None, None)
    return TrainSummary(
        output=url,
        model=f"{url}/{MODEL_PREFIX}",
        fingerprints=[cache.fingerprint for cache in trainer.caches],
        num_parameters=_num_parameters(trainer),
        num_steps=trainer.num_steps,
        num_workers=trainer.rank.size,
        losses=last.losses if last else {},
        held_out=held_out.losses | {"accuracy": held_out.accuracy} if held_out else {},
        sequences_per_s=sequences_per_s,
        seconds=trainer.progress.seconds,
    )


def _num_parameters(trainer: Trainer) -> int:
    return sum(parameter.numel() for parameter in trainer.model.parameters())
