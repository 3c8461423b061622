"""A worth → what each figure shows, as numbers: nothing here draws."""

from collections.abc import Callable, Sequence

from student_train.report.figures import Figure, Series
from student_train.worth.records import ModelWorth, Worth

FIGURE_KEYS = ("worth-retention", "worth-parameters", "worth-latency")
"""Of all figures that there may be."""
STEP, SPREAD = 0.2, 0.7
"""Between students' points at a task, and of all of them at most; tasks are 1 apart."""


def figures(worth: Worth) -> list[Figure]:
    """No figure that would be empty."""
    made = [_by_task(worth), _against_parameters(worth), _against_latency(worth)]
    return [figure for figure in made if figure.series]


def _by_task(worth: Worth) -> Figure:
    tasks = [task.name for task in worth.tasks if any(_share(model, task.name) for model in worth.students)]
    places = [
        place for place, model in enumerate(worth.students, start=1) if any(_share(model, task) for task in tasks)
    ]
    step = min(STEP, SPREAD / max(len(places), 1))
    shifts = {place: (number - (len(places) - 1) / 2) * step for number, place in enumerate(places)}
    return Figure(
        key="worth-retention",
        title="Retention by task",
        x_label="",
        y_label="of the reference's score",
        series=tuple(_task_series(worth, place, tasks, shift) for place, shift in shifts.items()),
        is_scatter=True,
        is_share=True,
        x_names=tuple(tasks),
        y_line=1.0,
    )


def _task_series(worth: Worth, place: int, tasks: Sequence[str], shift: float) -> Series:
    model = worth.models[place]
    points = [(x + shift, *share) for x, task in enumerate(tasks) if (share := _share(model, task))]
    return Series(
        place=place,
        name=model.name,
        xs=tuple(x for x, *_ in points),
        ys=tuple(y for _, y, _, _ in points),
        is_sound=True,
        y_spans=tuple((low, high) for _, _, low, high in points),
    )


def _share(model: ModelWorth, task: str) -> tuple[float, float, float] | None:
    """Retention, its least and its most, as shares; None where there is none."""
    score = model.scores.get(task)
    if score is None or score.retention is None:
        return None
    middle, low, high = (
        (score.retention if value is None else value) / 100
        for value in (score.retention, score.retention_least, score.retention_most)
    )
    return middle, low, high


def _against_parameters(worth: Worth) -> Figure:
    return _tradeoff(worth, "parameters", "Retention and size", "parameters", lambda model: model.num_parameters)


def _against_latency(worth: Worth) -> Figure:
    """On CPU, of the first setting."""
    of_models = worth.speeds.of_models if worth.speeds else {}
    first = {name: speeds[0] for name, speeds in of_models.items() if speeds}
    told = next((f"{speed.batch_sequences} × {speed.sequence_length} tokens" for speed in first.values()), "")

    def latency_ms(model: ModelWorth) -> float | None:
        return 1000 * first[model.name].batch_s if model.name in first else None

    return _tradeoff(worth, "latency", "Retention and latency", f"ms on CPU, {told}", latency_ms)


def _tradeoff(worth: Worth, key: str, title: str, x_label: str, cost: Callable[[ModelWorth], float | None]) -> Figure:
    """Average retention over a cost; hollow where it is not over all tasks."""
    series = []
    for place, model in enumerate(worth.models):
        x, retention = cost(model), model.average.retention if model.average else None
        if x is not None and model.average and retention is not None:
            is_whole = len(model.average.tasks) == worth.num_averaged
            series.append(Series(place=place, name=model.name, xs=(x,), ys=(retention / 100,), is_sound=is_whole))
    return Figure(
        key=f"worth-{key}",
        title=title,
        x_label=x_label,
        y_label="average retention",
        series=tuple(series) if len(series) > 1 else (),
        is_scatter=True,
        is_share=True,
    )
