"""Evaluation on rows held out: the true figures, for any number of workers, and no part of training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing

from student_train.config import StudentSpec
from student_train.loop import Trainer
from student_train.rank import Rank
from student_train.run_folder import HELD_OUT_KEY, HeldOutReport, StepReport, read_records
from student_train.worker import run_worker
from teacher_cache.format.cache import Cache
from teacher_cache.format.row import Row
from teacher_cache.shell.settings import parse, to_dict
from teacher_cache.storage.store import Store
from teacher_cache.targets.batching import pad
from tests.student_train import runs
from tests.student_train.online import OnlineDistillation, labels_of

HELD_OUT = 13
"""Of shards of 8: a shard and a part of a second one, whose other rows are read by nobody."""
DROPOUT = {"dropout": 0.3}


def spec_of(cache: Cache, output: Path | str = "unused", **overrides: Any) -> StudentSpec:
    return runs.make_spec(cache, output, **({"held_out_sequences": HELD_OUT, "student": DROPOUT} | overrides))


def rows_held_out(trainer: Trainer) -> list[Row]:
    rows = list(trainer.caches[0].rows(0))
    return [rows[8 * shard + row] for shard, row in trainer._held_out.rows.tolist()]


def test_figures_are_those_of_a_plain_computation(exact_cache):
    trainer = runs.make_trainer(spec_of(exact_cache))
    rows = rows_held_out(trainer)
    with torch.no_grad():
        trainer.model.vocab_projector.bias[rows[0].label_ids[0]] += 20  # ranked first everywhere, right somewhere
    report = trainer.evaluate()
    trainer.modules.eval()
    expected, _ = OnlineDistillation.of(exact_cache).gradients(trainer.modules, rows)
    assert report.losses == pytest.approx(expected, rel=1e-5)
    assert report.num_sequences == len(rows) == HELD_OUT
    input_ids, attention_mask = pad([row.input_ids for row in rows], 0)
    with torch.no_grad():
        said = trainer.model(input_ids=input_ids, attention_mask=attention_mask).logits.flatten(0, 1).argmax(dim=-1)
    labels = labels_of(rows, input_ids.shape[1])
    right = (said == labels)[labels != -100]
    assert 0 < right.sum() < len(right), "a figure that anything would give"
    assert report.accuracy == pytest.approx(float(right.float().mean()), rel=1e-6)


def test_micro_batches_do_not_matter(default_cache):
    reports = []
    for tokens in (1, 60, 10_000):
        execution = runs.make_execution(micro_batch_tokens=tokens)
        reports.append(runs.make_trainer(spec_of(default_cache, execution=execution)).evaluate())
    for report in reports[1:]:
        assert report.losses == pytest.approx(reports[0].losses, rel=1e-5)
        assert report.accuracy == pytest.approx(reports[0].accuracy)


def evaluate_one_rank(rank: int, folder: str, values: dict[str, Any]) -> None:
    """One of two processes: evaluates twice."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    trainer = Trainer(parse(StudentSpec, values), device=runs.CPU, rank=Rank.of_process())
    torch.save([trainer.evaluate(), trainer.evaluate(), trainer._held_out_batch.counts], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_find_what_one_finds(default_cache, tmp_path):
    spec = spec_of(default_cache)
    multiprocessing.spawn(evaluate_one_rank, (str(tmp_path), to_dict(spec)), nprocs=2)
    alone = runs.make_trainer(spec).evaluate()
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)]
    assert sorted(int(counts[0]) for *_, counts in found) == [6, 7]
    for report in (report for *reports, _ in found for report in reports):
        assert report.num_sequences == HELD_OUT
        assert report.losses == pytest.approx(alone.losses, rel=2e-6)
        assert report.accuracy == pytest.approx(alone.accuracy)


def test_dropout_is_off(default_cache):
    expected = runs.make_trainer(spec_of(default_cache, student={"dropout": 0.0})).evaluate()
    assert runs.make_trainer(spec_of(default_cache)).evaluate() == expected


def test_evaluations_do_not_touch_training(default_cache):
    """Dropout is on: a draw more or less would change every parameter."""
    ends, steps, evaluations = [], [], []
    for every in (1, 1000):
        execution = runs.make_execution(evaluation_steps=every)
        trainer = runs.make_trainer(spec_of(default_cache, steps=6, execution=execution))
        reports: list[StepReport] = []
        looks: list[HeldOutReport] = []
        trainer.train(reports.append, looks.append)
        ends.append(runs.parameters_of(trainer))
        steps.append([(report.losses, report.grad_norm, report.rows_digest) for report in reports])
        evaluations.append(looks)
    assert [look.step for look in evaluations[0]] == [1, 2, 3, 4, 5, 6]
    assert [look.step for look in evaluations[1]] == [6]
    assert evaluations[0][-1].losses == evaluations[1][-1].losses
    assert steps[0] == steps[1]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_an_evaluation_leaves_no_trace(default_cache):
    trainer = runs.make_trainer(spec_of(default_cache))
    before, drawn = runs.parameters_of(trainer), torch.get_rng_state()
    first = trainer.evaluate()
    assert trainer.evaluate() == first
    assert trainer.model.training
    assert all(parameter.grad is None for parameter in trainer.modules.parameters())
    assert torch.equal(drawn, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in runs.parameters_of(trainer).items())


def test_rows_held_out_are_never_learned_from(default_cache):
    trainer = runs.make_trainer(spec_of(default_cache, epochs=3))
    aside = {row.sequence_id for row in rows_held_out(trainer)}
    make_batch, read = trainer.batch, []

    def noting(rows: list[Row], epoch: int) -> Any:
        read.append({row.sequence_id for row in rows})
        return make_batch(rows, epoch)

    trainer.batch = noting  # type: ignore[method-assign]
    trainer.train(runs.ignore)
    (evaluated,) = [ids for ids in read if ids == aside]
    read.remove(evaluated)
    learned = set().union(*read)
    blocks = {8 * shard + row for shard in trainer._held_out.blocks for row in range(8)}
    assert aside <= blocks
    assert learned == set(range(50)) - blocks


@pytest.mark.parametrize("execution", [{"checkpoint_steps": 1}, {"evaluation_steps": 1, "checkpoint_steps": 2}])
def test_no_evaluation_is_lost_with_an_interruption(default_cache, tmp_path, monkeypatch, execution):
    """The first time it is killed while it evaluates the last step, or just after a checkpoint."""
    spec = spec_of(default_cache, tmp_path, steps=4, execution=runs.make_execution(**execution))
    evaluate = Trainer.evaluate

    def killed(trainer: Trainer) -> HeldOutReport:
        if trainer.progress.step == spec.steps:
            raise runs.KilledError
        return evaluate(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "evaluate", killed)
        with pytest.raises(runs.KilledError):
            run_worker(spec, device=runs.CPU, show=runs.ignore)
    summary = run_worker(spec, device=runs.CPU, show=runs.ignore)
    reports = read_records(Store(spec.output), HELD_OUT_KEY, HeldOutReport)
    every = spec.execution.evaluation_steps
    assert [report.step for report in reports] == [step for step in range(1, 5) if step % every == 0 or step == 4]
    assert summary.held_out == reports[-1].losses | {"accuracy": reports[-1].accuracy}


def test_nothing_held_out_is_never_evaluated(default_cache):
    looks: list[HeldOutReport] = []
    trainer = runs.make_trainer(
        runs.make_spec(default_cache, steps=2, execution=runs.make_execution(evaluation_steps=1))
    )
    trainer.train(runs.ignore, looks.append)
    assert looks == []
