"""Made-up results of a fine-tuning, and a worth of them, written as the commands write them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from student_train.finetune import records
from student_train.finetune.records import ModelRecord, Recipe, Results, read_results
from student_train.worth.records import Speed, Speeds, write_worth
from student_train.worth.worth import make_worth
from teacher_cache.format import documents
from teacher_cache.storage.store import Store
from tests.student_train.finetune import made

LR = 3e-5
METRICS = {"CoLA": "matthews_correlation", "SST-2": "accuracy", "STS-B": "pearson", "RTE": "accuracy"}
SCORES: dict[str, dict[str, Sequence[float]]] = {
    "teacher": {"CoLA": (56, 57, 58), "SST-2": (92, 93, 94), "STS-B": (88, 89, 90), "RTE": (68, 69, 70)},
    "six layers": {"CoLA": (50, 51, 52), "SST-2": (91, 91, 92), "STS-B": (86, 87, 87), "RTE": (59, 60, 62)},
    "three layers": {"CoLA": (30, 33, 35), "SST-2": (86, 87, 88), "STS-B": (70, 75, 76), "RTE": (55, 56, 57)},
}
SIZES = {"teacher": (12, 109_482_240), "six layers": (6, 66_362_880), "three layers": (3, 45_099_264)}


def write_results(
    folder: Path,
    scores: Mapping[str, Mapping[str, Sequence[float | None]]] = SCORES,
    *,
    paths: Mapping[str, str] | None = None,
    reference: str | None = None,
) -> Results:
    """Scores by model, task and seed, all of one learning rate; None is a run that diverged. Without another reference
    it is the first model."""
    store, tasks = Store(str(folder)), list(next(iter(scores.values())))
    recipe = Recipe(
        training={},
        models=list(scores),
        reference=reference or next(iter(scores)),
        tasks=tasks,
        lrs=[LR],
        seeds=[1, 2, 3],
    )
    store.replace(records.RECIPE_KEY, documents.dump(vars(recipe)))
    for model, by_task in scores.items():
        records.write(store, model_record(model, (paths or {}).get(model, model)))
        for task, values in by_task.items():
            for seed, score in enumerate(values, start=1):
                records.write(store, made.run_of(model, task, LR, seed, score))
    for task in tasks:
        records.write(store, made.task_of(task, metrics=[METRICS.get(task, "accuracy")]))
    return read_results(store)


def write_made_up_worth(
    folder: Path, scores: Mapping[str, Mapping[str, Sequence[float | None]]] = SCORES, **options: Any
) -> str:
    """A worth with speeds, as `student-train worth` writes it; where it lies."""
    results = write_results(folder, scores, **options)
    place = f"{folder}/worth"
    write_worth(Store(place), make_worth(str(folder), results, speeds(list(scores))))
    return place


def model_record(name: str, path: str) -> ModelRecord:
    num_layers, num_parameters = SIZES.get(name, (6, 66_362_880))
    return made.model_of(
        name,
        path=path,
        num_layers=num_layers,
        width=768,
        num_parameters=num_parameters,
        num_bytes=4 * num_parameters,
    )


def speeds(names: Sequence[str] = tuple(SCORES), *, load_per_core: float = 0.02) -> Speeds:
    """Of models of which each is twice as fast as the one before, at two settings on CPU and one on a GPU."""
    settings = [("cpu", "float32", 1, 128), ("cpu", "float32", 32, 128), ("NVIDIA H200", "bfloat16", 32, 512)]
    return Speeds(
        of_models={name: [_speed(*setting, 2.0**place) for setting in settings] for place, name in enumerate(names)},
        load_per_core=load_per_core,
        machine={"processor": "AMD EPYC", "cores": 2, "threads": 2},
        versions={"torch": "2.13.0"},
    )


def _speed(device: str, dtype: str, batch: int, length: int, speedup: float) -> Speed:
    margin = 0.02 if speedup > 1 else 0.0
    return Speed(
        device=device,
        dtype=dtype,
        batch_sequences=batch,
        sequence_length=length,
        num_rounds=20,
        batch_s=0.08 * batch / speedup,
        speedup=speedup,
        speedup_low=speedup - margin,
        speedup_high=speedup + margin,
    )
