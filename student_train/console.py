"""A run's progress for a person: a bar on a terminal, lines anywhere else. Both go to standard error."""

import sys

from tqdm import tqdm

from student_train.run_folder import HeldOutReport, StepReport
from student_train.run_log import Shown


def say(line: str) -> None:
    """A line, beside a bar where there is one."""
    tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()


class Console:
    """Shows reports as they come; `close` ends the bar."""

    def __init__(self, *, every_steps: int) -> None:
        self._every_steps = every_steps
        self._bar: tqdm | None = None

    def show(self, item: Shown) -> None:
        if isinstance(item, StepReport):
            self._show_step(item)
        else:
            say(item if isinstance(item, str) else held_out_line(item))

    def _show_step(self, report: StepReport) -> None:
        if not sys.stderr.isatty():
            if report.step % self._every_steps == 0 or report.step == report.num_steps:
                say(step_line(report))
            return
        if self._bar is None:
            self._bar = tqdm(total=report.num_steps, initial=report.step - 1, unit="step", dynamic_ncols=True)
        self._bar.set_postfix_str(summary(report), refresh=False)
        self._bar.update(report.step - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def summary(report: StepReport) -> str:
    """Losses and speed."""
    losses = report.losses
    return (
        f"loss {losses['total']:.3f}  soft labels {losses['soft_labels']:.4f}  masked-LM {losses['masked_lm']:.3f}"
        f"  cosine {losses['cosine']:.4f}  {report.num_sequences / report.step_s:.0f} sequences/s"
    )


def step_line(report: StepReport) -> str:
    left = (report.num_steps - report.step) * report.seconds / report.step
    waited = f"  waited {report.wait_s / report.step_s:.0%}" if report.wait_s > 0.05 * report.step_s else ""
    return f"step {report.step}/{report.num_steps}  {summary(report)}{waited}  {left:.0f} s left"


def held_out_line(report: HeldOutReport) -> str:
    losses = report.losses
    return (
        f"step {report.step}  held out: loss {losses['total']:.3f}  masked-LM {losses['masked_lm']:.3f}"
        f"  accuracy {report.accuracy:.1%}  of {report.num_sequences:,} sequences"
    )
