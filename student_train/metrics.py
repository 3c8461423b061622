"""What a run says of itself to Prometheus, by its first worker."""

from student_train.run_folder import LOSS_NAMES, HeldOutReport, StepReport

DESCRIPTIONS = {
    "student_train_steps_total": "Optimiser steps",
    "student_train_sequences_total": "Sequences trained on, over all workers",
    "student_train_tokens_total": "Tokens trained on, over all workers",
    "student_train_step_seconds_total": "Time of the steps, reading included",
    "student_train_reader_wait_seconds_total": "Of this, spent by the first worker on waiting for its reader",
    "student_train_progress_ratio": "Share of the run's steps that are done",
    "student_train_loss": "Weighted sum of the losses of the last step",
    **{f"student_train_{name}_loss": f"Loss {name} of the last step, unweighted" for name in LOSS_NAMES},
    "student_train_gradient_norm": "Of the last step, before clipping",
    "student_train_learning_rate": "Of the last step",
    "student_train_peak_memory_bytes": "Most memory that the first worker held: on its GPU, or of its process on CPU",
    "student_train_held_out_loss": "Weighted sum of the losses on the rows set aside",
    "student_train_held_out_accuracy_ratio": "Share of masked positions set aside whose token is ranked first",
}


def step_figures(report: StepReport) -> dict[str, float]:
    return {
        "student_train_steps_total": 1,
        "student_train_sequences_total": report.num_sequences,
        "student_train_tokens_total": report.num_tokens,
        "student_train_step_seconds_total": report.step_s,
        "student_train_reader_wait_seconds_total": report.wait_s,
        "student_train_progress_ratio": report.step / report.num_steps,
        "student_train_loss": report.losses["total"],
        **{f"student_train_{name}_loss": value for name, value in report.losses.items() if name != "total"},
        "student_train_gradient_norm": report.grad_norm,
        "student_train_learning_rate": report.lr,
        "student_train_peak_memory_bytes": report.peak_bytes,
    }


def held_out_figures(report: HeldOutReport) -> dict[str, float]:
    return {
        "student_train_held_out_loss": report.losses["total"],
        "student_train_held_out_accuracy_ratio": report.accuracy,
    }
