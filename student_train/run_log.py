"""What a run says of itself while it learns: lines for a person, `metrics.jsonl`, and TensorBoard."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from student_train.loop import StepReport
from teacher_cache.storage.store import Store

METRICS_KEY = "metrics.jsonl"
MAX_METRICS_BYTES = 2**30


class RunLog:
    """The log of a run's first worker; `flush` puts it into the store, `close` ends it."""

    def __init__(self, store: Store, *, after_step: int, every_steps: int, say: Callable[[str], None]) -> None:
        self._store = store
        self._every_steps = every_steps
        self._say = say
        self._rows = [row for row in _read(store) if row["step"] <= after_step]
        self._temporary = None if store.is_local else tempfile.TemporaryDirectory()
        self._folder = Path(self._temporary.name if self._temporary else store.path("tensorboard"))
        self._writer = SummaryWriter(str(self._folder), purge_step=after_step + 1)

    def step(self, report: StepReport) -> None:
        """Notes a step, and says every `every_steps`-th and the last one."""
        row = asdict(report)
        self._rows.append(row)
        for name, value in report.losses.items():
            self._writer.add_scalar(f"loss/{name}", value, report.step)
        for name in ("grad_norm", "lr"):
            self._writer.add_scalar(name, row[name], report.step)
        self._writer.add_scalar("tokens_per_s", report.num_tokens / report.step_s, report.step)
        if report.step % self._every_steps == 0 or report.step == report.num_steps:
            self._say(line(report))

    @property
    def last(self) -> StepReport | None:
        """The newest step, of this attempt or of one before."""
        return StepReport(**self._rows[-1]) if self._rows else None

    def flush(self) -> None:
        lines = "".join(json.dumps(row) + "\n" for row in self._rows)
        self._store.replace(METRICS_KEY, lines.encode())
        self._writer.flush()
        if self._temporary:
            for path in self._folder.iterdir():
                self._store.replace(f"tensorboard/{path.name}", path.read_bytes())

    def close(self) -> None:
        self.flush()
        self._writer.close()
        if self._temporary:
            self._temporary.cleanup()


def line(report: StepReport) -> str:
    """One step for a person to read."""
    left = (report.num_steps - report.step) * report.seconds / report.step
    losses = report.losses
    return (
        f"step {report.step}/{report.num_steps}  loss {losses['total']:.3f}  soft labels {losses['soft_labels']:.4f}  "
        f"masked-LM {losses['masked_lm']:.3f}  cosine {losses['cosine']:.4f}  "
        f"{report.num_sequences / report.step_s:.0f} sequences/s  {left:.0f} s left"
    )


def _read(store: Store) -> list[dict[str, Any]]:
    try:
        data = store.read(METRICS_KEY, max_bytes=MAX_METRICS_BYTES)
    except FileNotFoundError:
        return []
    return [json.loads(text) for text in data.decode().splitlines()]
