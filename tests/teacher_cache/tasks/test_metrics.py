"""Metrics, against their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacher_cache.tasks.metrics import measure

PAIRS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40)


@given(PAIRS)
@pytest.mark.filterwarnings("ignore:A single label was found")
def test_of_two_labels(pairs: list[tuple[bool, bool]]) -> None:
    truth, guess = np.array(pairs, dtype=int).T
    hits, misses = sum(truth & guess), sum(truth & ~guess & 1)
    false_alarms, rejections = sum(~truth & guess & 1), sum(~truth & ~guess & 1)
    spread = float((hits + false_alarms) * (hits + misses) * (rejections + false_alarms) * (rejections + misses))
    matthews = (hits * rejections - false_alarms * misses) / spread**0.5 if spread else 0
    either = 2 * hits + misses + false_alarms
    assert measure("accuracy", truth, guess) == pytest.approx(100 * np.mean(truth == guess))
    assert measure("f1", truth, guess) == pytest.approx(100 * 2 * hits / either if either else 0)
    assert measure("matthews", truth, guess) == pytest.approx(100 * matthews)


def test_macro_f1_is_the_mean_over_labels() -> None:
    truth, guess = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0])
    assert measure("macro_f1", truth, guess) == pytest.approx(100 * (1 / 2 + 2 / 3 + 0) / 3)


def test_correlations() -> None:
    truth = np.array([0.0, 1.0, 2.0, 4.0])
    assert measure("pearson", truth, 3 - truth / 2) == pytest.approx(-100)
    assert measure("spearman", truth, truth**3) == pytest.approx(100)
    assert measure("pearson", truth, truth**3) == pytest.approx(100 * np.corrcoef(truth, truth**3)[0, 1])
    assert measure("spearman", truth, np.array([0, 1, 4, 2])) == pytest.approx(80)


@pytest.mark.parametrize("metric", ["pearson", "spearman", "matthews"])
@pytest.mark.filterwarnings("error")
def test_a_constant_tells_nothing(metric: str) -> None:
    assert measure(metric, np.array([0, 1, 1]), np.array([1, 1, 1])) == 0


def test_unknown_metrics_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown metric 'bleu'"):
        measure("bleu", np.zeros(2), np.zeros(2))
