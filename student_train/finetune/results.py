"""From the scores of runs to what a student keeps of its reference: pure arithmetic.

*Retention* of a model on a task is its median score over seeds by the reference's, in per cent. *Average retention* is
its average score by the reference's average over the same tasks, as DistilBERT's 97 % of BERT are 77.0 by 79.5 on GLUE
(arXiv 1910.01108, table 1); it is not the average of retentions.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mean, median

from student_train.finetune.records import Results, RunRecord


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What one model reached on one task with its best learning rate, in per cent."""

    lr: float
    scores: dict[int, float]
    """By seed; without seeds that diverged."""
    median: float
    least: float
    most: float


@dataclass(frozen=True, kw_only=True)
class Average:
    """A model against the reference over the tasks that count and that both have scores of."""

    tasks: list[str]
    score: float
    """Mean of the model's medians, in per cent."""
    reference_score: float
    """Mean of the reference's medians over the same tasks, in per cent."""
    retention: float | None
    """In per cent; None: the reference's average is not above 0."""


def best_try(runs: Iterable[RunRecord]) -> RunRecord | None:
    """The run with the highest score, the first of equal ones; None: all diverged."""
    return max((run for run in runs if run.score is not None), key=lambda run: run.score or 0.0, default=None)


def cell(results: Results, model: str, task: str) -> Cell | None:
    """None: no run of the first seed was finished."""
    runs = [run for run in results.runs if (run.model, run.task) == (model, task)]
    tries = {run.lr: run for run in runs if run.seed == results.seeds[0]}
    best = best_try(tries[lr] for lr in results.lrs if lr in tries)
    if best is None:
        return None
    found = {run.seed: run.score for run in runs if run.lr == best.lr and run.score is not None}
    scores = {seed: found[seed] for seed in results.seeds if seed in found}
    values = scores.values()
    return Cell(lr=best.lr, scores=scores, median=median(values), least=min(values), most=max(values))


def retention(results: Results, model: str, task: str) -> float | None:
    """In per cent; None: a score is missing, or the reference's is not above 0, where a ratio says nothing."""
    own, reference = cell(results, model, task), cell(results, results.reference, task)
    return _ratio(own.median, reference.median) if own and reference else None


def average(results: Results, model: str) -> Average | None:
    """None: there is no task that counts and that both have a score of."""
    names = [task.name for task in results.tasks if task.averaged]
    pairs = {name: (cell(results, model, name), cell(results, results.reference, name)) for name in names}
    medians = {name: (own.median, theirs.median) for name, (own, theirs) in pairs.items() if own and theirs}
    if not medians:
        return None
    score, reference = (mean(column) for column in zip(*medians.values(), strict=True))
    return Average(tasks=list(medians), score=score, reference_score=reference, retention=_ratio(score, reference))


def _ratio(score: float, reference: float) -> float | None:
    return 100 * score / reference if reference > 0 else None
