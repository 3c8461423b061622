"""Scores by seed → what a model is worth on tasks beside its reference. Plain arithmetic."""

from collections.abc import Mapping, Sequence
from statistics import fmean, median

from student_train.worth.records import Average, Score


def score_of(scores: Sequence[float], reference: Sequence[float] | None = None) -> Score:
    """Of a model's scores by seed, in per cent; `reference` are the reference's on the same task, None for itself.

    Retention is the median over the reference's median. Its spread is over all pairs of a seed of each, and so holds
    both models' luck. Scores that may fall to 0 and below, as correlations do, give no ratio there.
    """
    middle = median(scores)
    spread = {"median": middle, "least": min(scores), "most": max(scores)}
    if not reference or median(reference) <= 0:
        return Score(**spread, num_seeds=len(scores))
    pairs = [100 * score / other for score in scores for other in reference] if min(reference) > 0 else []
    return Score(
        **spread,
        num_seeds=len(scores),
        retention=100 * middle / median(reference),
        retention_least=min(pairs, default=None),
        retention_most=max(pairs, default=None),
    )


def average_of(scores: Mapping[str, Score], reference: Mapping[str, Score]) -> Average | None:
    """Over the tasks that both have scores of; None if there are none.

    Average retention is the average score over the reference's, as DistilBERT's 97 % are 77.0 / 79.5 (arXiv 1910.01108,
    table 1), and no mean of the tasks' retentions.
    """
    shared = [task for task in reference if task in scores]
    if not shared:
        return None
    own, other = (fmean(of[task].median for task in shared) for of in (scores, reference))
    return Average(tasks=shared, score=own, reference=other, retention=100 * own / other if other > 0 else None)
