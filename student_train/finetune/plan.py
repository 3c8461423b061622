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
        return [run for tries in self._tries() for run in [*tries, *self._repeats(tries, done)]]

    def losers(self, done: Done) -> list[Run]:
        """Tries of other learning rates than the best one, where all tries are done."""
        pairs = [(tries, _best_of(tries, done)) for tries in self._tries()]
        return [run for tries, best in pairs if best for run in tries if run != best]

    def missing(self, done: Done, *, keep_models: bool) -> list[Run]:
        """Known runs that are not done, or of which a model that is wanted was deleted: when another learning rate was
        the best, or models were not to be kept."""
        known = self.known(done)
        bests = [_best_of(tries, done) for tries in self._tries()]
        wanted = known if keep_models else [best for best in bests if best]
        lost = [run for run in wanted if run in done and not _has_model(done[run])]
        return [run for run in known if run not in done or run in lost]

    def _tries(self) -> list[list[Run]]:
        """For each task and model the runs that find the learning rate."""
        cells = itertools.product(self.tasks, self.models)
        return [[Run(model=model, task=task, lr=lr, seed=self.seeds[0]) for lr in self.lrs] for task, model in cells]

    def _repeats(self, tries: Sequence[Run], done: Done) -> list[Run]:
        """The best of the tries with the other seeds; none before all are done."""
        best = _best_of(tries, done)
        return [replace(best, seed=seed) for seed in self.seeds[1:]] if best else []


def _has_model(record: RunRecord) -> bool:
    return record.state == "diverged" or record.folder is not None


def _best_of(tries: Sequence[Run], done: Done) -> Run | None:
    if not all(run in done for run in tries):
        return None
    best = best_try(done[run] for run in tries)
    return replace(tries[0], lr=best.lr) if best else None
