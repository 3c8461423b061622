"""Which runs there are and which come next: pure, from what is asked for and what is done."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from student_train.finetune.records import RunRecord
from student_train.finetune.results import best_try


@dataclass(frozen=True, kw_only=True)
class Run:
    """One model, fine-tuned on one task once."""

    model: str
    task: str
    lr: float
    seed: int


Done = Mapping[Run, RunRecord]


def done_of(records: Iterable[RunRecord]) -> dict[Run, RunRecord]:
    return {Run(model=record.model, task=record.task, lr=record.lr, seed=record.seed): record for record in records}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """For each model and task every learning rate with the first seed, then the best of them with the other seeds."""

    models: Sequence[str]
    tasks: Sequence[str]
    lrs: Sequence[float]
    seeds: Sequence[int]

    @property
    def num_runs(self) -> int:
        """Of the whole plan; fewer where a model diverges with every learning rate."""
        return len(self.models) * len(self.tasks) * (len(self.lrs) + len(self.seeds) - 1)

    def known(self, done: Done) -> list[Run]:
        """The runs of which it is known already that they belong to the plan, done or not, task by task."""
        cells = [self.tries(model, task) for task, model in itertools.product(self.tasks, self.models)]
        return [run for tries in cells for run in [*tries, *self._repeats(tries, done)]]

    def tries(self, model: str, task: str) -> list[Run]:
        """The runs that find a model's learning rate on a task."""
        return [Run(model=model, task=task, lr=lr, seed=self.seeds[0]) for lr in self.lrs]

    def losers(self, model: str, task: str, done: Done) -> list[RunRecord]:
        """Tries of other learning rates than the best; none before all are done."""
        tries = self.tries(model, task)
        best = _best_of(tries, done)
        return [done[run] for run in tries if run != best] if best else []

    def _repeats(self, tries: Sequence[Run], done: Done) -> list[Run]:
        """The best of the tries with the other seeds; none before all are done."""
        best = _best_of(tries, done)
        return [replace(best, seed=seed) for seed in self.seeds[1:]] if best else []


def _best_of(tries: Sequence[Run], done: Done) -> Run | None:
    if not all(run in done for run in tries):
        return None
    best = best_try(done[run] for run in tries)
    return replace(tries[0], lr=best.lr) if best else None
