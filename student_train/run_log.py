"""What a run says of itself as it learns: records in its output, TensorBoard, MLflow, Prometheus and who watches."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tensorboardX import SummaryWriter

from student_train.metrics import DESCRIPTIONS, held_out_figures, step_figures
from student_train.run_folder import (
    HELD_OUT_KEY,
    METRICS_KEY,
    RUN_KEY,
    SUMMARY_KEY,
    HeldOutReport,
    RunDescription,
    StepReport,
    TrainSummary,
    read_records,
    write_records,
)
from student_train.tracking import Tracker
from teacher_cache.shell.metrics import Metrics
from teacher_cache.storage.store import Store

SHOW_EVERY_S = 0.5
"""To whoever watches; all steps are in the records."""
Shown = StepReport | HeldOutReport | str
Show = Callable[[Shown], None]


class RunLog:
    """The log of a run's first worker; `flush` puts it into the store, `finish` ends it."""

    def __init__(self, store: Store, description: RunDescription, *, after_step: int, tracker: Tracker, show: Show):
        self._store, self._show, self.tracker = store, show, tracker
        self._every_steps = description.spec["execution"]["log_steps"]
        self._steps = [row for row in read_records(store, METRICS_KEY, StepReport) if row.step <= after_step]
        self._held_out = [row for row in read_records(store, HELD_OUT_KEY, HeldOutReport) if row.step <= after_step]
        self._temporary = None if store.is_local else tempfile.TemporaryDirectory()
        self._folder = Path(self._temporary.name if self._temporary else store.path("tensorboard"))
        self._writer = SummaryWriter(str(self._folder), purge_step=after_step + 1)
        self._metrics = Metrics(DESCRIPTIONS, {"run": store.url})
        self._shown = 0.0
        write_records(store, RUN_KEY, [description])

    def step(self, report: StepReport) -> None:
        """Notes a step."""
        self._steps.append(report)
        self._write(report.step, step_scalars(report))
        self._metrics.record(step_figures(report))
        is_due = report.step % self._every_steps == 0 or report.step == report.num_steps
        if is_due or time.monotonic() - self._shown > SHOW_EVERY_S:
            self._shown = time.monotonic()
            self._show(report)

    def held_out(self, report: HeldOutReport) -> None:
        """Notes an evaluation."""
        self._held_out.append(report)
        scalars = {f"held_out/{name}": value for name, value in report.losses.items()}
        self._write(report.step, scalars | {"held_out/accuracy": report.accuracy})
        self._metrics.record(held_out_figures(report))
        self._show(report)

    @property
    def last(self) -> StepReport | None:
        """The newest step, of this attempt or of one before."""
        return self._steps[-1] if self._steps else None

    @property
    def last_held_out(self) -> HeldOutReport | None:
        """The newest evaluation, of this attempt or of one before."""
        return self._held_out[-1] if self._held_out else None

    def flush(self) -> None:
        write_records(self._store, METRICS_KEY, self._steps)
        if self._held_out:
            write_records(self._store, HELD_OUT_KEY, self._held_out)
        self._writer.flush()
        self.tracker.flush()
        if self._temporary:
            for path in self._folder.iterdir():
                self._store.replace(f"tensorboard/{path.name}", path.read_bytes())

    def finish(self, summary: TrainSummary) -> None:
        """Notes that the run is done."""
        write_records(self._store, SUMMARY_KEY, [summary])
        self.tracker.finish()

    def fail(self) -> None:
        """Notes that the run cannot go on as it is; its last steps are what tells why."""
        self.flush()
        self.tracker.finish("FAILED")

    def close(self) -> None:
        self._writer.close()
        if self._temporary:
            self._temporary.cleanup()

    def _write(self, step: int, scalars: dict[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        self.tracker.log(scalars, step)


def step_scalars(report: StepReport) -> dict[str, float]:
    """A step's curves by name."""
    losses = {f"loss/{name}": value for name, value in report.losses.items()}
    return losses | {
        "grad_norm": report.grad_norm,
        "lr": report.lr,
        "tokens_per_s": report.num_tokens / report.step_s,
        "wait_share": report.wait_s / report.step_s,
        "peak_bytes": report.peak_bytes,
    }
