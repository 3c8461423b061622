"""Which students to stop early: asynchronous successive halving (Li et al. 2018, arXiv 1810.05934, algorithm 2).

Ray Tune's own scheduler knows what one of its runs has reported. A sweep that goes on after a kill compares with all
that was reported before, by the students' names, so that the rule is here. Its stopping variant: who is not among the
best at a rung ends there.
"""

import math

RUNGS = (1 / 9, 1 / 3)
"""Shares of a student's own steps: compared at the same share, students are at the same place of their schedule."""
REDUCTION = 3
"""One in so many goes on from a rung."""


class Rungs:
    """What students scored when they first passed each rung; the lower the better."""

    def __init__(self) -> None:
        self.scores: dict[float, dict[str, float]] = {rung: {} for rung in RUNGS}

    def goes_on(self, name: str, *, share: float, score: float) -> bool:
        """Notes a student's score after a share of its steps; False: it is to be stopped.

        A student is judged once a rung, so whoever comes first goes on.
        """
        passed = [rung for rung in RUNGS if rung <= share]
        if not passed or share >= 1 or name in self.scores[passed[-1]]:
            return True
        scores = self.scores[passed[-1]]
        scores[name] = score
        better = sum(other < score for other in scores.values())
        return better < math.ceil(len(scores) / REDUCTION)
