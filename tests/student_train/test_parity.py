"""The central proof: learning from a cache is learning from the live teacher.

The reference is `online`.
"""

from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing
from torch.nn import functional as F

from student_train import losses
from student_train.batch import Batch
from student_train.config import StudentSpec
from student_train.loop import Trainer
from student_train.rank import Rank
from student_train.reader import Reader
from teacher_cache.format.cache import Cache
from teacher_cache.format.row import Row
from teacher_cache.shell.settings import parse, to_dict
from tests import caches, families
from tests.student_train import runs
from tests.student_train.online import OnlineDistillation, relative_error

TOLERANCE = 1e-5
NUM_STEPS = 50
NEVER_CLIP = 1e9
"""A norm that no gradient reaches."""


class ComparedTrainer(Trainer):
    """A real run that is compared, before each step and at its parameters, with online distillation."""

    def __init__(self, spec: StudentSpec, reference: OnlineDistillation) -> None:
        super().__init__(spec, device=runs.CPU, rank=Rank())
        self.reference = reference
        self.rows: dict[tuple[tuple[tuple[int, int], ...], int], list[Row]] = {}
        self.gradient_errors: list[float] = []
        self.loss_errors: list[float] = []

    def batch(self, rows: list[Row], epoch: int) -> Batch:
        self.rows[tuple((row.source, row.sequence_id) for row in rows), epoch] = rows
        return super().batch(rows, epoch)

    def step(self, batch: Batch) -> tuple[dict[str, float], torch.Tensor, float]:
        expected, gradient = self.reference.gradients(self.modules, self.rows[tuple(batch.sequences), batch.epoch])
        outcome = super().step(batch)
        self.gradient_errors.append(relative_error(runs.gradient_of(self), gradient))
        self.loss_errors += [abs(outcome[0][name] - expected[name]) / expected[name] for name in expected]
        return outcome


def compare(cache: Cache, *, steps: int, **overrides: Any) -> ComparedTrainer:
    """Trains, without clipping, so that the gradients of a step are still there after it."""
    spec = runs.make_spec(cache, steps=steps, optimizer={"clip_norm": NEVER_CLIP}, **overrides)
    trainer = ComparedTrainer(spec, OnlineDistillation.of(cache))
    before = runs.parameters_of(trainer)
    trainer.train(runs.ignore)
    assert len(trainer.gradient_errors) == steps
    after = runs.parameters_of(trainer)
    assert all(not torch.equal(before[name], after[name]) for name in before), "a parameter did not learn"
    return trainer


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK_POSITIONS", 13)


@pytest.mark.parametrize(("way", "top_k"), [("replay", 8), ("bucket", families.VOCAB_SIZE)])
def test_every_step_equals_online_distillation(way, top_k, tmp_path, record_testsuite_property):
    soft_labels = {"top_k": top_k, "temperatures": [2]}
    exact = caches.EXACT | {"soft_labels": {"code": "float32", **soft_labels}}
    cache = caches.build_cache(tmp_path / "cache", views=3, **exact)
    trainer = compare(cache, steps=NUM_STEPS, loss={"soft_labels": way}, batch_sequences=15)
    record_testsuite_property(f"{way}: gradient_error", max(trainer.gradient_errors))
    record_testsuite_property(f"{way}: loss_error", max(trainer.loss_errors))
    assert max(trainer.gradient_errors) <= TOLERANCE
    assert max(trainer.loss_errors) <= TOLERANCE


@pytest.mark.parametrize("family", [name for name in families.FAMILIES if name != "bert"])
def test_every_family_equals_online_distillation(family, tmp_path):
    teacher = families.save_pretrained(tmp_path / "teacher", family)
    cache = caches.build_cache(tmp_path / "cache", teacher=teacher, **caches.EXACT)
    trainer = compare(cache, steps=3)
    # Float32's rounding against float64 depends on the batches; ALBERT's shared layers add it up.
    assert max(trainer.gradient_errors + trainer.loss_errors) <= 2 * TOLERANCE


def test_student_of_another_width_equals_online_distillation(exact_cache):
    student = {"initial_weights": "random", "width": 48, "num_layers": 2, "dropout": 0.0}
    trainer = compare(exact_cache, steps=5, student=student)
    assert "projection" in trainer.modules
    assert max(trainer.gradient_errors + trainer.loss_errors) <= TOLERANCE


def first_batches(cache: Cache, spec: StudentSpec, num_batches: int, rank: Rank) -> list[list[Row]]:
    """This rank's rows of the first global batches."""
    reader = Reader([cache], view=0, layers=(-1,))
    batches = reader.batches(
        seed=spec.seed,
        epoch=0,
        batch_sequences=spec.batch_sequences,
        rank=rank.index,
        num_ranks=rank.size,
    )
    return [next(batches) for _ in range(num_batches)]


def test_no_micro_batch_split_changes_the_step(default_cache):
    outcomes = {}
    for tokens in (1, 30, 80, 16384):  # from a sequence a time to all at once
        spec = runs.make_spec(default_cache, execution=runs.make_execution(micro_batch_tokens=tokens))
        trainer = runs.make_trainer(spec)
        (rows,) = first_batches(default_cache, spec, 1, Rank())
        values, _ = trainer.gradients(trainer.batch(rows, 0))
        outcomes[tokens] = values, runs.gradient_of(trainer)
    whole_losses, whole_gradient = outcomes.pop(16384)
    for values, gradient in outcomes.values():
        assert values == pytest.approx(whole_losses, rel=2e-6)
        assert relative_error(gradient, whole_gradient) < 2e-6


NUM_RANKS = 2
GLOBAL_BATCHES = {16: 2, 1: 1}
"""Sequences of a batch to how many are compared; of one sequence, a rank has none."""


def distributed_gradients(rank: int, folder: str, values: dict[str, Any]) -> None:
    """One of two processes: the summed gradients and losses of some global batches, into `<folder>/<rank>.pt`."""
    torch.set_num_threads(1)
    losses.CHUNK_POSITIONS = 13
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=NUM_RANKS)
    torch.save(all_gradients(parse(StudentSpec, values)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def all_gradients(spec: StudentSpec) -> list[tuple[int, dict[str, float], torch.Tensor]]:
    """Of each of `GLOBAL_BATCHES`: number of own rows, losses, gradient."""
    rank = Rank.of_process()
    outcomes = []
    for batch_sequences, num_batches in GLOBAL_BATCHES.items():
        spec = parse(StudentSpec, to_dict(spec) | {"batch_sequences": batch_sequences})
        trainer = Trainer(spec, device=runs.CPU, rank=rank)
        for rows in first_batches(trainer.caches[0], spec, num_batches, rank):
            trainer.modules.zero_grad(set_to_none=True)
            values, _ = trainer.gradients(trainer.batch(rows, 0))
            outcomes.append((len(rows), values, runs.gradient_of(trainer)))
    return outcomes


def test_two_processes_take_the_same_step_as_one(default_cache, tmp_path):
    spec = runs.make_spec(default_cache)
    arguments = (str(tmp_path), to_dict(spec))
    multiprocessing.spawn(distributed_gradients, arguments, nprocs=NUM_RANKS)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(NUM_RANKS)]
    sizes = []
    for (num_rows, values, gradient), *shares in zip(all_gradients(spec), *ranks, strict=True):
        sizes.append([size for size, *_ in shares])
        assert sum(sizes[-1]) == num_rows
        for _, shared_values, shared_gradient in shares:
            assert shared_values == pytest.approx(values, rel=2e-6)
            assert relative_error(shared_gradient, gradient) < 2e-6
    assert all(min(size) > 0 for size in sizes[:-1])
    assert min(sizes[-1]) == 0, "no rank was without rows"


def test_sampled_positions_give_the_dense_loss_and_gradient_in_expectation(tmp_path):
    """Each sequence of each view draws its positions by itself, so that the mean over them has a standard error."""
    overrides: dict[str, Any] = {"num_documents": 150, "views": 2, "hidden": {"code": "float32"}}
    dense = caches.build_cache(tmp_path / "dense", keep={"unmasked": 1.0}, **overrides)
    teacher = tmp_path / "dense-teacher"
    sparse = caches.build_cache(tmp_path / "sparse", teacher=teacher, keep={"unmasked": 0.3}, **overrides)
    # A student that knows nothing yet: its losses are of like size at all positions.
    student = {"initial_weights": "random", "num_layers": 1, "dropout": 0.0}
    trainers = [runs.make_trainer(runs.make_spec(cache, student=student)) for cache in (dense, sparse)]
    pairs = [pair for view in range(2) for pair in zip(dense.rows(view), sparse.rows(view), strict=True)]
    trainers[0].gradients(trainers[0].batch([row for row, _ in pairs[:100]], 0))
    direction = F.normalize(runs.gradient_of(trainers[0]), dim=0)
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in ("soft_labels", "cosine", "gradient")}
    for rows in pairs:
        assert (rows[0].input_ids == rows[1].input_ids).all()
        outcomes = [figures_of(trainer, row, direction) for trainer, row in zip(trainers, rows, strict=True)]
        for name in figures:
            figures[name].append((outcomes[1][name] - outcomes[0][name], outcomes[0][name]))
        assert outcomes[0]["masked_lm"] == pytest.approx(outcomes[1]["masked_lm"], rel=1e-5)
    for name, values in figures.items():
        differences, expected = torch.tensor(values, dtype=torch.float64).T
        standard_error = float(differences.std() / len(differences) ** 0.5)
        assert abs(float(differences.mean())) < 3 * standard_error, name
        # The bound is worth something: an error of a tenth would be seen.
        assert 3 * standard_error < 0.1 * float(expected.mean()), name


def figures_of(trainer: Trainer, row: Row, direction: torch.Tensor) -> dict[str, float]:
    """Losses of one sequence, and its gradient along a direction."""
    trainer.modules.zero_grad(set_to_none=True)
    values, _ = trainer.gradients(trainer.batch([row], 0))
    return values | {"gradient": float(runs.gradient_of(trainer) @ direction)}
