"""A killed run goes on as if nothing had happened, or says why it does not."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from student_train import checkpoint
from student_train.config import StudentSpec
from student_train.loop import Trainer
from teacher_cache.errors import UserError
from teacher_cache.storage.store import Store
from tests.student_train import runs

STEPS, SAVED = 6, 3
BATCH = 20
"""Of 50 sequences: epochs of 20, 20 and 10, so that step 3 ends the first and steps 2 and 4 stand amid one."""


def make_spec(cache, output: Path, **overrides) -> StudentSpec:
    return runs.make_spec(cache, output, steps=STEPS, batch_sequences=BATCH, **overrides)


def train_and_save(spec: StudentSpec, *steps: int) -> Trainer:
    """A run that made checkpoints after these steps, and was killed after the last of them."""
    trainer, store = runs.make_trainer(spec), Store(spec.output)
    for step in steps:
        runs.train_until(trainer, step)
        trainer.save(store)
    return trainer


def resumed(spec: StudentSpec) -> Trainer:
    """As a new process does it."""
    trainer = runs.make_trainer(spec)
    trainer.resume(Store(spec.output))
    return trainer


def assert_equal_parameters(trainer: Trainer, other: Trainer) -> None:
    ours, theirs = runs.parameters_of(trainer), runs.parameters_of(other)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize(("at", "dropout"), [(1, 0.0), (3, 0.0), (5, 0.0), (2, 0.2)])
def test_a_resumed_run_ends_as_one_that_was_never_stopped(default_cache, tmp_path, at, dropout):
    spec = make_spec(default_cache, tmp_path, student={"dropout": dropout})
    whole = runs.make_trainer(spec)
    whole.train(runs.ignore)
    train_and_save(spec, at)
    again = resumed(spec)
    assert again.progress.step == at
    seen: list[tuple[int, int]] = []
    again.train(lambda report: seen.append((report.step, report.num_sequences)))
    assert seen == list(enumerate([20, 20, 10, 20, 20, 10], start=1))[at:]
    assert_equal_parameters(again, whole)


def test_the_projection_is_resumed_too(default_cache, tmp_path):
    student = {"initial_weights": "random", "width": 16, "num_layers": 1, "dropout": 0.0}
    spec = make_spec(default_cache, tmp_path, student=student)
    killed = train_and_save(spec, 2)
    assert_equal_parameters(resumed(spec), killed)


def test_a_checkpoint_without_its_completion_record_is_ignored(default_cache, tmp_path):
    spec = make_spec(default_cache, tmp_path)
    train_and_save(spec, 1, 2)
    (tmp_path / "checkpoints" / "step-000000002" / "state.json").unlink()
    assert resumed(spec).progress.step == 1


def test_without_any_whole_checkpoint_a_run_starts_anew(default_cache, tmp_path):
    spec = make_spec(default_cache, tmp_path)
    train_and_save(spec, 2)
    (tmp_path / "checkpoints" / "step-000000002" / "state.json").unlink()
    assert resumed(spec).progress.step == 0


def test_the_two_newest_checkpoints_are_kept(default_cache, tmp_path):
    train_and_save(make_spec(default_cache, tmp_path), 1, 2, 3, 4)
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == ["step-000000003", "step-000000004"]


def test_torn_checkpoints_of_later_steps_never_push_out_whole_ones(default_cache, tmp_path):
    spec = make_spec(default_cache, tmp_path)
    train_and_save(spec, 1)
    for torn in (4, 5):
        (tmp_path / "checkpoints" / f"step-{torn:09d}").mkdir()
    again = resumed(spec)
    runs.train_until(again, 2)
    again.save(Store(spec.output))
    assert resumed(spec).progress.step == 2
    assert (tmp_path / "checkpoints" / "step-000000001" / "state.json").exists()


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [flip_a_byte, Path.unlink, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_a_damaged_file_is_refused_by_name(default_cache, tmp_path, name, damage: Callable[[Path], object]):
    spec = make_spec(default_cache, tmp_path)
    train_and_save(spec, 1)
    damage(tmp_path / "checkpoints" / "step-000000001" / name)
    with pytest.raises(UserError, match=rf"step-000000001/{name} is missing or damaged; delete .*step-000000001"):
        resumed(spec)


def test_a_damaged_completion_record_is_refused(default_cache, tmp_path):
    spec = make_spec(default_cache, tmp_path)
    train_and_save(spec, 1)
    state = tmp_path / "checkpoints" / "step-000000001" / "state.json"
    state.write_text(state.read_text().replace('"step":1', '"step":2'))
    with pytest.raises(UserError, match=r"state\.json is damaged"):
        resumed(spec)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"batch_sequences": 10},
        {"loss": {"temperature": 4}},
        {"student": {"dropout": 0.1}},
        {"optimizer": {"lr": 1e-3}},
    ],
)
def test_another_configuration_may_not_use_the_same_output(default_cache, tmp_path, change):
    train_and_save(make_spec(default_cache, tmp_path), 1)
    values = {"steps": STEPS, "batch_sequences": BATCH} | change
    with pytest.raises(UserError, match="holds checkpoints of another run"):
        resumed(runs.make_spec(default_cache, tmp_path, **values))


def test_another_cache_may_not_use_the_same_output(default_cache, exact_cache, tmp_path):
    train_and_save(make_spec(default_cache, tmp_path), 1)
    with pytest.raises(UserError, match="holds checkpoints of another run"):
        resumed(make_spec(exact_cache, tmp_path))


def test_another_way_to_do_the_work_goes_on(default_cache, tmp_path):
    train_and_save(make_spec(default_cache, tmp_path), 1)
    execution = runs.make_execution(micro_batch_tokens=1000, checkpoint_steps=2)
    assert resumed(make_spec(default_cache, tmp_path, execution=execution)).progress.step == 1


def test_tied_tensors_are_saved_once_and_come_back_tied(default_cache, tmp_path):
    spec = make_spec(default_cache, tmp_path)
    trainer = train_and_save(spec, 1)
    saved = checkpoint.load((tmp_path / "checkpoints" / "step-000000001" / "model.safetensors").read_bytes())
    assert sum(tensor.numel() for tensor in saved.values()) == sum(p.numel() for p in trainer.modules.parameters())
    again = resumed(spec).model
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
