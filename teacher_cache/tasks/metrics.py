"""Metrics of classification and regression, from scikit-learn and scipy."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[Any]
MEAN = "mean"
"""The unweighted mean of a task's other metrics: GLUE's score of a task that has several."""


def measure(metric: str, truth: Values, guess: Values) -> float:
    """A metric of predicted against true values [N], in per cent.

    `f1` is that of label 1, `macro_f1` the mean over labels. A correlation with a constant, which is undefined, counts
    as 0.
    """
    from scipy import stats
    from sklearn import metrics

    match metric:
        case "accuracy":
            value = metrics.accuracy_score(truth, guess)
        case "f1":
            value = metrics.f1_score(truth, guess, zero_division=0)
        case "macro_f1":
            value = metrics.f1_score(truth, guess, average="macro", zero_division=0)
        case "matthews":
            value = metrics.matthews_corrcoef(truth, guess)
        case "pearson" | "spearman" if np.ptp(truth) == 0 or np.ptp(guess) == 0:
            value = 0.0
        case "pearson":
            value = stats.pearsonr(truth, guess).statistic
        case "spearman":
            value = stats.spearmanr(truth, guess).statistic
        case _:
            raise ValueError(f"unknown metric {metric!r}")
    return 100 * float(value)
