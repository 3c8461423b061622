"""Runs in a real MLflow store."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests

from student_train import tracking
from student_train.config import OptimizerConfig, StudentSpec
from student_train.launch import train, with_absolute_paths
from student_train.tracking import EXPERIMENT, flattened
from student_train.worker import run_worker
from teacher_cache.errors import UserError
from teacher_cache.format.cache import Cache
from tests.student_train import runs


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a store in a folder, which MLflow's newer versions have to be asked for."""
    pytest.importorskip("mlflow", reason="needs MLflow: pip install mlflow-skinny")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return (tmp_path / "mlflow").as_uri()


def spec_of(cache: Cache, output: Path, uri: str) -> StudentSpec:
    execution = runs.make_execution(mlflow=uri, checkpoint_steps=2, evaluation_steps=2)
    return runs.make_spec(cache, output, steps=4, held_out_sequences=8, execution=execution)


def client_of(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def runs_in(uri: str) -> list[Any]:
    client = client_of(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    return list(client.search_runs([experiment.experiment_id]))


def kill_at_checkpoint(spec: StudentSpec) -> None:
    """Runs up to the first checkpoint."""

    def kill(_: object) -> None:
        raise runs.KilledError

    with pytest.raises(runs.KilledError):
        run_worker(spec, device=runs.CPU, show=runs.ignore, on_checkpoint=kill)


def test_a_run_is_told_whole(default_cache, tmp_path, store):
    summary = train(spec_of(default_cache, tmp_path / "six-layers", store))
    (run,) = runs_in(store)
    assert (run.info.run_name, run.info.status) == ("six-layers", "FINISHED")
    parameters = run.data.params
    assert parameters["fingerprints"] == default_cache.fingerprint
    assert parameters["loss.temperature"] == "2.0"
    assert parameters["student.dropout"] == "0.0"
    assert parameters["num_parameters"] == str(summary.num_parameters)
    assert run.data.metrics["loss/total"] == pytest.approx(summary.losses["total"])
    assert run.data.metrics["held_out/accuracy"] == pytest.approx(summary.held_out["accuracy"])
    curve = client_of(store).get_metric_history(run.info.run_id, "loss/total")
    assert sorted(point.step for point in curve) == [1, 2, 3, 4]
    files = {item.path for item in client_of(store).list_artifacts(run.info.run_id, "model")}
    assert {"model/config.json", "model/model.safetensors", "model/README.md"} <= files


def test_a_run_that_diverges_has_failed(default_cache, tmp_path, store):
    with pytest.raises(UserError, match="is not finite"):
        train(replace(spec_of(default_cache, tmp_path / "run", store), optimizer=OptimizerConfig(lr=1e30)))
    (run,) = runs_in(store)
    assert (run.info.status, run.data.metrics["lr"] > 1) == ("FAILED", True)


def test_a_run_that_goes_on_is_the_same_run(default_cache, tmp_path, store):
    spec = spec_of(default_cache, tmp_path / "run", store)
    kill_at_checkpoint(spec)
    (before,) = runs_in(store)
    assert before.info.status == "RUNNING"
    assert len(client_of(store).get_metric_history(before.info.run_id, "loss/total")) == 2, "up to the checkpoint"
    train(spec)
    (after,) = runs_in(store)
    assert (after.info.run_id, after.info.status) == (before.info.run_id, "FINISHED")
    curve = client_of(store).get_metric_history(after.info.run_id, "loss/total")
    assert sorted(point.step for point in curve) == [1, 2, 3, 4]


def test_a_run_that_mlflow_does_not_know_any_more_is_a_new_one(default_cache, tmp_path, store):
    spec = spec_of(default_cache, tmp_path / "run", store)
    kill_at_checkpoint(spec)
    elsewhere = (tmp_path / "elsewhere").as_uri()
    train(replace(spec, execution=replace(spec.execution, mlflow=elsewhere)))
    assert [run.info.status for run in runs_in(elsewhere)] == ["FINISHED"]


def test_a_model_that_mlflow_refuses_does_not_end_a_run(default_cache, tmp_path, store, monkeypatch):
    from mlflow import MlflowClient

    def refuse(*_: Any, **__: Any) -> None:
        raise requests.HTTPError("413 Client Error: Request Entity Too Large")

    monkeypatch.setattr(MlflowClient, "log_artifacts", refuse)
    assert train(spec_of(default_cache, tmp_path / "run", store)).num_steps == 4
    assert [run.info.status for run in runs_in(store)] == ["FINISHED"]


def test_a_database_in_a_file_is_the_same_for_each_worker(default_cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for uri in ("sqlite:///runs.db", f"sqlite:///{tmp_path}/runs.db"):
        spec = with_absolute_paths(spec_of(default_cache, tmp_path / "run", uri))
        assert spec.execution.mlflow == f"sqlite:///{tmp_path}/runs.db"


def test_points_are_sent_while_a_run_goes_on(default_cache, tmp_path, store, monkeypatch):
    monkeypatch.setattr(tracking, "SEND_EVERY_S", 0.0)
    seen = []

    def look(report: object) -> None:
        (run,) = runs_in(store)
        seen.append(len(client_of(store).get_metric_history(run.info.run_id, "loss/total")))

    execution = runs.make_execution(mlflow=store, log_steps=1)
    run_worker(
        runs.make_spec(default_cache, tmp_path / "run", steps=3, execution=execution), device=runs.CPU, show=look
    )
    assert seen == [0, 1, 2, 3], "the first line tells of views"


def test_a_new_run_in_an_old_output_is_another(default_cache, tmp_path, store):
    """Before its first checkpoint a run has nothing to go on from."""
    spec = spec_of(default_cache, tmp_path / "run", store)

    def kill(_: object) -> None:
        raise runs.KilledError

    with pytest.raises(runs.KilledError):
        run_worker(spec, device=runs.CPU, show=kill)
    train(spec)
    assert sorted(run.info.status for run in runs_in(store)) == ["FINISHED", "RUNNING"]


def test_a_server_that_cannot_be_used_is_refused_by_name(default_cache, tmp_path):
    pytest.importorskip("mlflow", reason="needs MLflow: pip install mlflow-skinny")
    spec = spec_of(default_cache, tmp_path / "run", "nonsense://nowhere")
    with pytest.raises(UserError, match=r"execution\.mlflow: nonsense://nowhere cannot be used: "):
        train(spec)


def test_without_mlflow_it_is_asked_for(default_cache, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UserError, match=r"execution\.mlflow needs MLflow: pip install mlflow-skinny"):
        train(spec_of(default_cache, tmp_path / "run", "file:unused"))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_settings_are_flat_and_dotted():
    values = {"a": {"b": {"c": 1}, "d": None}, "e": [1, 2]}
    assert flattened(values) == {"a.b.c": "1", "a.d": "None", "e": "[1, 2]"}
