"""Runs and results for a person to read."""

from typing import Any

from pydantic import TypeAdapter

from student_train.finetune.plan import Run
from student_train.finetune.records import Results, RunRecord
from student_train.finetune.results import Cell, average, cell, retention
from teacher_cache.shell.command import table

NOTHING = "-"
NOT_AVERAGED = " (not averaged)"


def line(run: Run, outcome: RunRecord | str, metric: str) -> str:
    """A run that has ended; `metric` is its score's name."""
    return f"{run.model}  {run.task}  lr {run.lr:g}  seed {run.seed}  {_ended(outcome, metric)}"


def _ended(outcome: RunRecord | str, metric: str) -> str:
    if isinstance(outcome, str):
        return f"failed: {outcome}"
    if outcome.score is None:
        return f"diverged after {outcome.num_steps} steps"
    return f"{metric} {outcome.score:.1f}  {outcome.seconds:.0f} s"


def render(result: dict[str, Any]) -> str:
    """A `FinetuneResult` in plain values: where it lies, its tables, and which runs failed."""
    failed = [f"{key} failed: {reason}" for key, reason in result["errors"].items()]
    results = TypeAdapter(Results).validate_python(result["results"])
    return "\n\n".join([result["output"], tables(results), *_folders(results), *failed])


def _folders(results: Results) -> list[str]:
    rows = [[run.model, run.task, f"{run.lr:g}", str(run.seed), run.folder] for run in results.runs if run.folder]
    return [table(["fine-tuned", "task", "lr", "seed", "lies in"], rows)] if rows else []


def tables(results: Results) -> str:
    """Scores, and what of the reference's each model keeps."""
    header = ["model", *(f"{task.name}{'' if task.averaged else NOT_AVERAGED}" for task in results.tasks), "average"]
    scores = [[model.name, *_scores(results, model.name)] for model in results.models]
    kept = [[model.name, *_kept(results, model.name)] for model in results.models if model.name != results.reference]
    how = f"median of {len(results.seeds)} seed(s) ± half of their range, the best learning rate each"
    parts = [f"score on dev in per cent: {how}\n{table(header, scores)}"]
    parts += [f"in per cent of {results.reference}\n{table(header, kept)}"] if kept else []
    return "\n\n".join(parts + _gaps(results))


def _scores(results: Results, model: str) -> list[str]:
    mean = average(results, model)
    cells = [cell(results, model, task.name) for task in results.tasks]
    return [*(_score(found, len(results.seeds)) for found in cells), f"{mean.score:.1f}" if mean else NOTHING]


def _score(found: Cell | None, num_seeds: int) -> str:
    if not found:
        return NOTHING
    num_there = len(found.scores)
    spread = f" ±{(found.most - found.least) / 2:.1f}" if num_there > 1 else ""
    return f"{found.median:.1f}{spread}" + (f" ({num_there} of {num_seeds})" if num_there < num_seeds else "")


def _kept(results: Results, model: str) -> list[str]:
    mean = average(results, model)
    shares = [retention(results, model, task.name) for task in results.tasks]
    return [NOTHING if share is None else f"{share:.1f}" for share in [*shares, mean and mean.retention]]


def _gaps(results: Results) -> list[str]:
    """What averages leave out, of a model and of the reference beside it."""
    pairs = [(model.name, task.name) for model in results.models for task in results.tasks]
    names = ", ".join(f"{model} on {task}" for model, task in pairs if cell(results, model, task) is None)
    return [f"no score of {names}: left out of averages, and of the reference's beside them"] if names else []
