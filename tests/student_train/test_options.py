"""Settings that change how a student is trained: frozen embeddings, recomputed activations, numbers of workers."""

from pathlib import Path

import pytest
import torch

from student_train.config import StudentSpec
from student_train.launch import check, train
from student_train.loop import Trainer
from student_train.sources import idle_workers
from teacher_cache.errors import UserError
from teacher_cache.shell.settings import load, parse
from teacher_cache.storage.store import Store
from tests import caches, families
from tests.student_train import runs

FROZEN = {"dropout": 0.1, "frozen_embeddings": True}


def is_embedding(name: str) -> bool:
    return ".embeddings." in name


@pytest.mark.parametrize("family", families.FAMILIES)
def test_frozen_embeddings_stay_and_all_else_learns(family, tmp_path):
    teacher = families.save_pretrained(tmp_path / "teacher", family)
    cache = caches.build_cache(tmp_path / "cache", teacher=teacher)
    trainer = runs.make_trainer(runs.make_spec(cache, steps=3, student=FROZEN, optimizer={"weight_decay": 0.1}))
    before = runs.parameters_of(trainer)
    trainer.train(runs.ignore)
    after = runs.parameters_of(trainer)
    stayed = {name for name in before if torch.equal(before[name], after[name])}
    assert stayed == {name for name in before if is_embedding(name)}
    assert any("word_embeddings" in name for name in stayed)


def test_frozen_embeddings_are_no_part_of_the_optimiser(default_cache):
    trainer = runs.make_trainer(runs.make_spec(default_cache, student=FROZEN))
    trained = {id(value) for group in trainer.optimizer.param_groups for value in group["params"]}
    for name, value in trainer.modules.named_parameters():
        assert (id(value) in trained) != is_embedding(name), name


def test_a_run_with_frozen_embeddings_goes_on_as_if_never_stopped(default_cache, tmp_path):
    spec = runs.make_spec(default_cache, tmp_path, steps=6, student=FROZEN)
    whole = runs.make_trainer(spec)
    whole.train(runs.ignore)
    first = runs.make_trainer(spec)
    runs.train_until(first, 3)
    first.save(Store(spec.output))
    again = runs.make_trainer(spec)
    again.resume(Store(spec.output))
    assert again.progress.step == 3
    again.train(runs.ignore)
    expected = runs.parameters_of(whole)
    assert all(torch.equal(expected[name], value) for name, value in runs.parameters_of(again).items())


@pytest.mark.parametrize("family", [name for name in families.FAMILIES if name != "albert"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputed_activations_give_the_same_gradients(family, dropout, tmp_path):
    teacher = families.save_pretrained(tmp_path / "teacher", family)
    cache = caches.build_cache(tmp_path / "cache", teacher=teacher, num_documents=20)
    found, kept = [], []
    for checkpointing in (False, True):
        execution = runs.make_execution(gradient_checkpointing=checkpointing)
        trainer = runs.make_trainer(runs.make_spec(cache, student={"dropout": dropout}, execution=execution))
        kept.append(bytes_kept(trainer))
        losses, _ = trainer.gradients(trainer.batch(list(cache.rows()), 0))
        found.append((losses, runs.gradient_of(trainer)))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])
    assert kept[1] < kept[0] / 2, "activations were kept nevertheless"


def test_recomputing_is_refused_where_transformers_cannot(tmp_path):
    teacher = families.save_pretrained(tmp_path / "teacher", "albert")
    cache = caches.build_cache(tmp_path / "cache", teacher=teacher)
    with pytest.raises(UserError, match=r"execution\.gradient_checkpointing: transformers has none for albert"):
        runs.make_trainer(runs.make_spec(cache, execution=runs.make_execution(gradient_checkpointing=True)))


def bytes_kept(trainer: runs.Trainer) -> int:
    """Of tensors that a forward pass keeps for the backward pass, parameters left out."""
    own = {value.data_ptr() for value in trainer.modules.parameters()}
    sizes: dict[int, int] = {}

    def note(value: torch.Tensor) -> torch.Tensor:
        if value.data_ptr() not in own:
            sizes[value.data_ptr()] = value.untyped_storage().nbytes()
        return value

    ids = torch.randint(5, families.VOCAB_SIZE, (8, 24))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        hidden = trainer.model.base_model(input_ids=ids).last_hidden_state
    assert hidden.requires_grad
    return sum(sizes.values())


@pytest.mark.parametrize(("num_workers", "num_idle"), [(1, 0), (7, 0), (8, 1), (60, 53), (100, 93)])
def test_workers_without_a_shard_are_counted(default_cache, num_workers, num_idle):
    assert idle_workers([default_cache], num_workers) == num_idle


def test_there_are_no_more_workers_than_lanes(default_cache):
    assert idle_workers([default_cache] * 20, 64) == 4


@pytest.mark.parametrize("name", ["s3://bucket/teacher", "https://user:pw-secret@host/teacher"])
def test_a_url_of_starting_weights_is_refused(name):
    with pytest.raises(UserError, match="is a URL, and only a folder or a hub name is read here") as refused:
        parse(StudentSpec, {"caches": ["c"], "output": "o", "student": {"initial_weights": name}})
    assert "secret" not in str(refused.value)


def test_a_password_of_mlflow_is_refused_and_not_told(default_cache, tmp_path):
    execution = runs.make_execution(mlflow="http://me:pw-secret@127.0.0.1:9")
    with pytest.raises(
        UserError, match=r"execution\.mlflow: .* carries a password.*MLFLOW_TRACKING_USERNAME"
    ) as refused:
        train(runs.make_spec(default_cache, tmp_path / "run", steps=1, execution=execution))
    assert "secret" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_more_workers_than_lanes_are_told_of_lanes(default_cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("student_train.launch.idle_workers", lambda caches, num_workers: num_workers - 60)
    execution = runs.make_execution(num_workers=64)
    check(runs.make_spec(default_cache, tmp_path / "run", steps=1, execution=execution))
    assert "4 of 64 workers will have nothing to read: a run reads in 60 lanes; lower" in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_workers_without_a_shard_are_told_of(tmp_path, capsys):
    cache = caches.build_cache(tmp_path / "cache", unit_sequences=1000)
    execution = runs.make_execution(num_workers=2)
    train(runs.make_spec(cache, tmp_path / "run", steps=1, execution=execution))
    assert "1 of 2 workers will have nothing to read: a view has too few shards; lower" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("num_workers", "message"),
    [
        ("[2, 1]", r"num_workers must be \[min, max\] with min <= max"),
        ("[0, 2]", "num_workers"),
        ("[1, 2, 3]", "num_workers"),
        ("-1", "num_workers"),
    ],
)
def test_numbers_of_workers_that_make_no_sense_are_refused(num_workers, message, tmp_path):
    path = tmp_path / "student.yaml"
    path.write_text(f"caches: [unused]\noutput: unused\nexecution: {{num_workers: {num_workers}}}\n")
    with pytest.raises(UserError, match=message):
        load(runs.StudentSpec, str(path), [])


def test_workers_of_one_student_share_no_gpu(tmp_path):
    path = tmp_path / "student.yaml"
    path.write_text("caches: [unused]\noutput: unused\nexecution: {num_workers: [1, 2], gpus_per_worker: 0.5}\n")
    with pytest.raises(UserError, match=r"gpus_per_worker is 0\.5 for 2 workers of one student"):
        load(runs.StudentSpec, str(path), [])
    assert load(runs.StudentSpec, str(path), ["execution.num_workers=1"]).execution.gpus_per_worker == 0.5


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_asked_for_and_not_there_is_told(default_cache, tmp_path):
    with pytest.raises(UserError, match=r"gpus_per_worker is 1, but torch .* finds no GPU here; set it to 0"):
        train(runs.make_spec(default_cache, tmp_path, execution=runs.make_execution(gpus_per_worker=1)))


def test_a_micro_batch_too_large_for_a_gpu_is_one_message(default_cache, tmp_path, monkeypatch):
    def train_on_a_small_gpu(self: Trainer, *callbacks: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 9 GiB")

    monkeypatch.setattr(Trainer, "train", train_on_a_small_gpu)
    with pytest.raises(
        UserError, match=r"CUDA out of memory\. Tried .*lower execution\.micro_batch_tokens, which is 80"
    ):
        train(runs.make_spec(default_cache, tmp_path))


def test_what_a_student_reads_names_no_folder_that_happens_to_be_here(default_cache, tmp_path, monkeypatch):
    (tmp_path / "teacher").mkdir()
    monkeypatch.chdir(tmp_path)
    assert runs.make_spec(default_cache).reads["student.initial_weights"] == ()
    from_folder = runs.make_spec(default_cache, student={"initial_weights": "before/model"})
    assert from_folder.reads["student.initial_weights"] == ("before/model",)


def test_least_and_most_workers(tmp_path: Path):
    path = tmp_path / "student.yaml"
    path.write_text("caches: [unused]\noutput: unused\nexecution: {num_workers: [1, 3]}\n")
    execution = load(runs.StudentSpec, str(path), []).execution
    assert (execution.min_workers, execution.max_workers) == (1, 3)
    execution = load(runs.StudentSpec, str(path), ["execution.num_workers=2"]).execution
    assert (execution.min_workers, execution.max_workers) == (2, 2)
