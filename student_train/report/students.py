"""A run's records → a `Student`: what reports tell of it, however many steps it took."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from student_train.run_folder import HeldOutReport, Run, RunDescription, StepReport

MAX_POINTS = 500
"""Of a curve: more cannot be told apart on a page."""
MIN_STEPS_TO_JUDGE = 20
"""Of fewer steps a rise may be chance."""
DIVERGED_RATIO = 1.2
"""Of the loss over the last tenth of the steps to that over the best tenth, above which a run counts as diverged."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """Of a training curve."""

    step: int
    """The last of those that the point is of."""
    loss: float
    """Mean of their total losses; not finite where one of them is not."""


@dataclass(frozen=True, kw_only=True)
class Student:
    """A run in brief."""

    name: str
    url: str
    description: RunDescription
    num_steps_done: int
    losses: dict[str, float]
    """Of the last step; empty before the first."""
    tokens_per_s: float | None
    """Median of the steps, over all workers, reading included; None before the first step."""
    seconds: float
    """Training time so far, over all attempts."""
    held_out: tuple[HeldOutReport, ...]
    """At most `MAX_POINTS`, the newest among them."""
    curve: tuple[Point, ...]
    finished: bool
    trouble: str
    """Why it counts as diverged; empty where it does not."""

    @property
    def newest(self) -> HeldOutReport | None:
        """The newest look at the rows set aside; None where there was none."""
        return self.held_out[-1] if self.held_out else None

    @property
    def state(self) -> str:
        """For people."""
        return ("finished" if self.finished else "unfinished") + (f", diverged: {self.trouble}" if self.trouble else "")

    @property
    def is_sound(self) -> bool:
        """Finished, and not diverged."""
        return self.finished and not self.trouble


def student_of(run: Run, name: str) -> Student:
    """What reports need of a run."""
    last = run.steps[-1] if run.steps else None
    return Student(
        name=name,
        url=run.url,
        description=run.description,
        num_steps_done=last.step if last else 0,
        losses=last.losses if last else {},
        tokens_per_s=_tokens_per_s(run.steps),
        seconds=run.summary.seconds if run.summary else last.seconds if last else 0.0,
        held_out=tuple(thin(run.held_out)),
        curve=tuple(curve(run.steps)),
        finished=run.summary is not None,
        trouble=_diverged(run) or trouble(run.steps, run.held_out),
    )


def _diverged(run: Run) -> str:
    return f"the gradient of step {run.diverged[0].step:,} is not finite" if run.diverged else ""


def _tokens_per_s(steps: Sequence[StepReport]) -> float | None:
    speeds = [step.num_tokens / step.step_s for step in steps if step.step_s > 0]
    return median(speeds) if speeds else None


def curve(steps: Sequence[StepReport]) -> list[Point]:
    """Total losses as at most `MAX_POINTS` means over as many steps each."""
    size = items_per_point(len(steps))
    groups = [steps[start : start + size] for start in range(0, len(steps), size)]
    return [Point(step=group[-1].step, loss=_mean_loss(group)) for group in groups]


def items_per_point(num_items: int) -> int:
    """How many of them one point stands for, so that there are at most `MAX_POINTS`."""
    return max(1, -(-num_items // MAX_POINTS))


def _mean_loss(steps: Sequence[StepReport]) -> float:
    return sum(step.losses["total"] for step in steps) / len(steps)  # fmean refuses what is not finite


def thin(reports: Sequence[HeldOutReport]) -> list[HeldOutReport]:
    """At most `MAX_POINTS` of the reports, evenly spread, with the last one."""
    return list(reports[:: -items_per_point(len(reports))])[::-1]


def trouble(steps: Sequence[StepReport], held_out: Sequence[HeldOutReport]) -> str:
    """Why a run counts as diverged, empty where it does not: a loss that is not finite, or one that rose again."""
    reports: list[StepReport | HeldOutReport] = [*steps, *held_out]
    for report in reports:
        if not all(map(math.isfinite, report.losses.values())):
            return f"a loss of step {report.step:,} is not finite"
    if len(steps) < MIN_STEPS_TO_JUDGE:
        return ""
    size = len(steps) // 10
    tenths = [_mean_loss(steps[start : start + size]) for start in range(len(steps) % size, len(steps), size)]
    least, last = min(tenths), tenths[-1]
    return f"the training loss rose again, from {least:.4g} to {last:.4g}" if last > DIVERGED_RATIO * least > 0 else ""
