"""Records and results, made without fine-tuning anything."""

from typing import Any

from student_train.finetune.records import ModelRecord, Results, RunRecord, TaskRecord


def run_of(model: str, task: str, lr: float, seed: int, score: float | None) -> RunRecord:
    """A record of a run; without a score it diverged."""
    return RunRecord(
        model=model,
        task=task,
        lr=lr,
        seed=seed,
        state="diverged" if score is None else "finished",
        score=score,
        metrics={} if score is None else {"accuracy": score},
        seconds=1.5,
        num_steps=10,
        folder=None,
    )


def model_of(name: str, **changes: Any) -> ModelRecord:
    values: dict[str, Any] = {
        "path": f"/models/{name}", "model_type": "bert", "num_layers": 2, "width": 32, "num_parameters": 1000,
        "num_bytes": 4000, "content_sha256": "0" * 64,
    }  # fmt: skip
    return ModelRecord(name=name, **values | changes)


def task_of(name: str, **changes: Any) -> TaskRecord:
    values: dict[str, Any] = {
        "kind": "classification", "labels": ["0", "1"], "metrics": ["accuracy"], "num_train": 100, "num_dev": 10,
        "files": [], "content_sha256": "0" * 64, "config": {"layout": "SST-2", "folder": "/data"},
    }  # fmt: skip
    return TaskRecord(name=name, **values | changes)


def results_of(runs: list[RunRecord], *, lrs: tuple[float, ...] = (1e-5,), seeds: tuple[int, ...] = (1,)) -> Results:
    """Results of all models and tasks that runs name; the first model is the reference."""
    models, tasks = (list(dict.fromkeys(getattr(run, key) for run in runs)) for key in ("model", "task"))
    return Results(
        reference=models[0],
        models=[model_of(name) for name in models],
        tasks=[task_of(name) for name in tasks],
        lrs=list(lrs),
        seeds=list(seeds),
        runs=runs,
    )
