"""Steps, schedules and what may go wrong in them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from student_train.config import OptimizerConfig, StudentSpec
from student_train.optimizer import count_steps, make_optimizer, schedule
from student_train.run_folder import StepReport
from teacher_cache.errors import UserError
from tests.student_train import runs


def reports_of(spec: StudentSpec) -> list[StepReport]:
    reports: list[StepReport] = []
    runs.make_trainer(spec).train(reports.append)
    return reports


@pytest.mark.parametrize(
    ("num_steps", "warmup_share", "expected"),
    [
        (4, 0.0, [1, 3 / 4, 2 / 4, 1 / 4]),
        (4, 0.5, [1 / 3, 2 / 3, 1, 1 / 2]),
        (1, 0.05, [1 / 1.05]),
        (2, 0.9, [1 / 2.8, 2 / 2.8]),
    ],
)
def test_schedule_values(num_steps, warmup_share, expected):
    assert [schedule(step, num_steps, warmup_share) for step in range(num_steps)] == pytest.approx(expected)


@given(num_steps=st.integers(1, 500), warmup_share=st.floats(0, 0.99))
def test_schedule_rises_then_falls_and_every_step_learns(num_steps, warmup_share):
    values = [schedule(step, num_steps, warmup_share) for step in range(num_steps)]
    assert all(0 < value <= 1 for value in values)
    warmup = math.ceil(warmup_share * num_steps)
    assert values[:warmup] == sorted(values[:warmup])
    assert values[warmup:] == sorted(values[warmup:], reverse=True)


def test_published_schedule_reaches_its_peak_after_a_twentieth():
    values = [schedule(step, 1000, 0.05) for step in range(1000)]
    assert values[0] == pytest.approx(1 / 51)
    assert values.index(max(values)) == 50
    assert values[50] == 1
    assert values[-1] == pytest.approx(1 / 950)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, 3 * 4),
        ({"epochs": 2}, 2 * 4),
        ({"steps": 7}, 7),
        ({"epochs": 2, "batch_sequences": 25}, 2 * 2),
        ({"batch_sequences": 4000}, 3),
    ],
)
def test_count_steps(exact_cache, overrides, expected):
    assert count_steps(runs.make_spec(exact_cache, **overrides), 50) == expected


def test_epochs_go_through_the_views_in_turn(exact_cache):
    """Two views, three epochs of 16, 16 and 8 sequences: the third reads view 0 again, in another order."""
    trainer = runs.make_trainer(runs.make_spec(exact_cache, epochs=3))
    read: list[tuple[bytes, ...]] = []
    make_batch = trainer.batch

    def noting(rows, epoch):
        read.append(tuple(row.input_ids.tobytes() for row in rows))
        return make_batch(rows, epoch)

    trainer.batch = noting  # type: ignore[method-assign]
    trainer.train(runs.ignore)
    assert [len(batch) for batch in read] == [16, 16, 8] * 3
    epochs = [sum(read[start : start + 3], ()) for start in (0, 3, 6)]
    views = [sorted(row.input_ids.tobytes() for row in exact_cache.rows(view)) for view in (0, 1)]
    assert [sorted(epoch) for epoch in epochs] == [views[0], views[1], views[0]]
    assert epochs[0] != epochs[2]


def test_a_batch_larger_than_the_cache_is_an_epoch_a_step(default_cache):
    reports = reports_of(runs.make_spec(default_cache, batch_sequences=4000, epochs=2))
    assert [(report.step, report.epoch, report.num_sequences) for report in reports] == [(1, 0, 50), (2, 1, 50)]


def test_reports_tell_what_a_step_did(default_cache):
    reports = reports_of(runs.make_spec(default_cache, epochs=1, batch_sequences=50, optimizer={"lr": 1e-3}))
    (report,) = reports
    assert report.num_tokens == sum(len(row.input_ids) for row in default_cache.rows())
    values = report.losses
    expected = 5 * values["soft_labels"] + 2 * values["masked_lm"] + values["cosine"]
    assert values["total"] == pytest.approx(expected)
    assert report.lr == pytest.approx(1e-3 / 1.05)
    assert report.grad_norm > 0
    assert 0 < report.step_s <= report.seconds


def test_a_student_comes_nearer_to_its_teacher(default_cache):
    reports = reports_of(runs.make_spec(default_cache, steps=12, optimizer={"lr": 3e-3}, batch_sequences=50))
    first, last = reports[0].losses, reports[-1].losses
    for name in ("soft_labels", "cosine", "total"):
        assert last[name] < 0.7 * first[name], name
    assert last["masked_lm"] < first["masked_lm"]


def test_untaught_students_learn_from_labels_alone(labels_only_cache):
    weights = {"soft_labels": 0, "cosine": 0}
    reports = reports_of(runs.make_spec(labels_only_cache, loss={"weights": weights}, steps=2))
    assert all(report.losses["soft_labels"] == report.losses["cosine"] == 0 for report in reports)
    assert all(report.losses["total"] == pytest.approx(2 * report.losses["masked_lm"]) for report in reports)


def test_a_step_without_labels_or_kept_positions_changes_nothing_at_first(default_cache):
    """Of a short sequence, masking may choose nothing; then a batch of one has nothing to learn from."""
    rows = [row for row in default_cache.rows() if not len(row.label_positions) and not len(row.kept_positions)]
    assert rows, "the fixture has no such sequence"
    trainer = runs.make_trainer(runs.make_spec(default_cache))
    before = runs.parameters_of(trainer)
    losses, counts, norm = trainer.step(trainer.batch(rows[:1], 0))
    assert (losses["total"], norm) == (0, 0)
    assert counts.tolist()[:3] == [1, len(rows[0].input_ids), 0]
    after = runs.parameters_of(trainer)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_stops_the_run_and_changes_nothing(default_cache, value):
    trainer = runs.make_trainer(runs.make_spec(default_cache, steps=2))
    with torch.no_grad():
        next(trainer.model.base_model.parameters())[5, 0] = value
    before = runs.parameters_of(trainer)
    with pytest.raises(UserError, match=r"the gradient of step 1 is not finite .*lower optimizer\.lr"):
        trainer.train(runs.ignore)
    after = runs.parameters_of(trainer)
    assert all(torch.equal(before[name].nan_to_num(), after[name].nan_to_num()) for name in before)


def test_the_gradient_is_clipped(default_cache):
    trainer = runs.make_trainer(runs.make_spec(default_cache, optimizer={"clip_norm": 0.25}))
    _, _, norm = trainer.step(trainer.batch(list(default_cache.rows())[:16], 0))
    assert norm > 0.25
    assert float(runs.gradient_of(trainer).norm()) == pytest.approx(0.25, rel=1e-4)


def test_dropout_is_drawn_by_seed_and_step_not_by_chance(default_cache):
    spec = runs.make_spec(default_cache, student={"dropout": 0.3}, steps=3)
    losses = []
    for noise in (0, 1):
        trainer = runs.make_trainer(spec)
        torch.manual_seed(noise)
        reports: list[StepReport] = []
        trainer.train(reports.append)
        losses.append([report.losses for report in reports])
    assert losses[0] == losses[1]
    other = reports_of(runs.make_spec(default_cache, student={"dropout": 0.3}, steps=3, seed=1))
    assert other[0].losses != losses[0][0]


def test_matrices_decay_and_vectors_do_not():
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    optimizer = make_optimizer(module, OptimizerConfig(weight_decay=0.1, betas=(0.9, 0.98), eps=1e-6, lr=5e-4))
    decay = {parameter: group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    assert {parameter.ndim: value for parameter, value in decay.items()} == {2: 0.1, 1: 0.0}
    assert len(decay) == len(list(module.parameters()))
    assert optimizer.defaults["betas"] == (0.9, 0.98)


def test_bfloat16_computes_near_float32_and_keeps_float32_parameters(default_cache):
    near = []
    for dtype in ("float32", "bfloat16"):
        spec = runs.make_spec(default_cache, dtype=dtype, steps=1)
        near += reports_of(spec)
    assert near[1].losses["total"] == pytest.approx(near[0].losses["total"], rel=0.05)
    assert near[1].losses["total"] != near[0].losses["total"]
    trainer = runs.make_trainer(runs.make_spec(default_cache, dtype="bfloat16"))
    assert {parameter.dtype for parameter in trainer.modules.parameters()} == {torch.float32}
