"""The results of a fine-tuning → a worth, written as records, tables and figures."""

from collections.abc import Sequence

from student_train.finetune.records import ModelRecord, Results, read_results
from student_train.finetune.results import average
from student_train.report.draw import to_file
from student_train.worth import quality
from student_train.worth.cost import cost_of
from student_train.worth.figures import FIGURE_KEYS, figures
from student_train.worth.records import MARKDOWN_KEY, ModelWorth, Speeds, TaskWorth, Worth, write_worth
from student_train.worth.table import markdown
from teacher_cache.errors import UserError
from teacher_cache.storage.store import Store

OUTPUT = "worth"
"""Below the results, unless another place is given."""


def find_worth(
    place: str, *, output: str | None = None, dtypes: Sequence[str] = ("float32",), threads: int | None = None
) -> Worth:
    """Holds all models of a fine-tuning, at a folder or URL, against their reference, and writes what it finds.

    Args:
        output: where to; below `place` if it is not given.
        dtypes: in which speeds are measured; none for no speeds.
        threads: of speeds on CPU; as many as torch takes if it is not given.

    Raises:
        UserError: there are no results, or none of the reference; or a model whose speed is wanted is not there.
    """
    results = read_results(Store(place))
    store = Store(output or f"{place.rstrip('/')}/{OUTPUT}")
    _check_reference(results)
    speeds = _measured(reference_first(results), dtypes, threads) if dtypes else None
    worth = make_worth(place, results, speeds)
    store.replace(MARKDOWN_KEY, markdown(worth).encode())
    for key in FIGURE_KEYS:  # of an earlier table
        store.delete_folder(f"{key}.svg")
        store.delete_folder(f"{key}.png")
    for figure in figures(worth):
        store.replace(f"{figure.key}.svg", to_file(figure, "svg"))
        store.replace(f"{figure.key}.png", to_file(figure, "png"))
    write_worth(store, worth)
    return worth


def _check_reference(results: Results) -> None:
    if not quality.scores_of(results, results.reference):
        raise UserError(
            f"no task has a score of the reference {results.reference!r}: nothing can be held against it; let "
            "`student-train finetune` finish"
        )


def reference_first(results: Results) -> list[ModelRecord]:
    return sorted(results.models, key=lambda model: model.name != results.reference)


def _measured(models: Sequence[ModelRecord], dtypes: Sequence[str], threads: int | None) -> Speeds:
    from student_train.worth.speed import measure  # loads torch

    return measure({model.name: model.path for model in models}, dtypes=dtypes, threads=threads)


def make_worth(place: str, results: Results, speeds: Speeds | None) -> Worth:
    return Worth(
        results=Store(place).url,
        reference=results.reference,
        tasks=[
            TaskWorth(
                name=task.name, kind=task.kind, metric=task.metrics[0], num_dev=task.num_dev, averaged=task.averaged
            )
            for task in results.tasks
        ],
        models=[_model_worth(results, model) for model in reference_first(results)],
        notes=quality.notes_of(results),
        speeds=speeds,
    )


def _model_worth(results: Results, model: ModelRecord) -> ModelWorth:
    return ModelWorth(
        name=model.name,
        path=model.path,
        model_type=model.model_type,
        num_layers=model.num_layers,
        width=model.width,
        num_parameters=model.num_parameters,
        num_bytes=model.num_bytes,
        scores=quality.scores_of(results, model.name),
        average=average(results, model.name),
        taught=quality.taught_tasks(results, model.name),
        cost=cost_of(model.path),
    )
