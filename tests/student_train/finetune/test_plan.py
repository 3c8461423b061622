"""Which runs there are, and which come next."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from student_train.finetune.plan import Plan, Run, done_of
from student_train.finetune.records import RunRecord
from tests.student_train.finetune.made import run_of

LRS, SEEDS = (1e-5, 2e-5, 3e-5), (7, 8)
PLAN = Plan(models=("a", "b"), tasks=("x", "y"), lrs=LRS, seeds=SEEDS)


def record_of(run: Run, score: float | None) -> RunRecord:
    return run_of(**vars(run), score=score)


def test_first_each_rate_is_tried_with_the_first_seed_then_the_best_with_the_others():
    plan = replace(PLAN, models=("a",), tasks=("x",))
    tries = [Run(model="a", task="x", lr=lr, seed=7) for lr in LRS]
    assert plan.known({}) == tries
    done = {run: record_of(run, score) for run, score in zip(tries, (50.0, 60.0, 60.0), strict=True)}
    assert plan.known(dict(list(done.items())[:2])) == tries
    assert plan.known(done) == [*tries, Run(model="a", task="x", lr=2e-5, seed=8)]
    assert plan.losers(done) == [tries[0], tries[2]]
    assert plan.num_runs == len(plan.known(done))


def test_a_wanted_model_that_was_deleted_is_made_again():
    plan = replace(PLAN, models=("a",), tasks=("x",))
    tries = plan.known({})
    done = {run: record_of(run, score) for run, score in zip(tries, (50.0, 60.0, None), strict=True)}
    repeat = Run(model="a", task="x", lr=2e-5, seed=8)
    assert plan.missing({tries[0]: done[tries[0]]}, keep_models=False) == tries[1:]
    assert plan.missing(done, keep_models=False) == [tries[1], repeat]
    done[tries[1]] = replace(done[tries[1]], folder="/there")
    assert plan.missing(done, keep_models=False) == [repeat]
    assert plan.missing(done, keep_models=True) == [tries[0], repeat]


def test_a_rate_that_diverged_is_not_the_best_and_where_all_did_there_is_none():
    plan = replace(PLAN, models=("a",), tasks=("x",))
    tries = plan.known({})
    done = {run: record_of(run, score) for run, score in zip(tries, (None, -3.0, None), strict=True)}
    assert plan.known(done)[3:] == [Run(model="a", task="x", lr=2e-5, seed=8)]
    nothing = {run: record_of(run, None) for run in tries}
    assert plan.known(nothing) == tries
    assert plan.losers(nothing) == []


@given(st.lists(st.one_of(st.none(), st.floats(-100, 100)), min_size=20, max_size=20), st.randoms())
def test_in_whatever_order_runs_end_each_is_made_once(scores, draw):
    """As many at a time as there are; a kill at any moment loses nothing but what was running."""
    values, done = iter(scores), {}
    while left := [run for run in PLAN.known(done) if run not in done]:
        for run in draw.sample(left, draw.randint(1, len(left))):
            done[run] = record_of(run, next(values))
    assert len(done) <= PLAN.num_runs
    assert set(PLAN.known(done)) == set(done)
    assert PLAN.known(done_of(done.values())) == PLAN.known(done)
