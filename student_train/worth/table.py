"""A worth as tables: for a terminal, to paste as Markdown, and cells that the report's page shows, too."""

import html
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from student_train.finetune.text import NOT_AVERAGED
from student_train.report.text import MISSING, duration
from student_train.worth.records import CacheCost, ModelWorth, Score, Speed, Speeds, TaskWorth, Worth, from_plain
from teacher_cache.shell import command

UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class Table:
    title: str
    note: str
    header: list[str]
    rows: list[list[str]]


def render(result: dict[str, Any]) -> str:
    """All of a `Worth`, given as plain values, for a terminal."""
    worth = from_plain(result)
    parts = [(table.title, command.table(table.header, table.rows), table.note) for table in tables(worth)]
    blocks = ["\n".join(line for line in lines if line) for lines in parts]
    told = "\n".join([heading(worth), *headlines(worth)])
    return "\n\n".join([told, *blocks, *(f"note: {note}" for note in worth.notes)])


def markdown(worth: Worth) -> str:
    """To paste into a README or a model card."""
    blocks = [_listed(headlines(worth))]
    for table in tables(worth):
        blocks += [f"**{_escaped(table.title)}**", _pipes(table), _escaped(table.note)]
    blocks.append(_listed(worth.notes))
    return "\n\n".join(block for block in blocks if block) + "\n"


def _listed(lines: Sequence[str]) -> str:
    return "\n".join(f"- {_escaped(line)}" for line in lines)


def _pipes(table: Table) -> str:
    lines = [table.header, ["---", *(["--:"] * (len(table.header) - 1))], *table.rows]
    return "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines)


def _escaped(text: str) -> str:
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")


def heading(worth: Worth) -> str:
    names = ", ".join(model.name for model in worth.students) or "no student"
    return f"{names} beside {worth.reference}, on {len(worth.tasks)} task{'s' if len(worth.tasks) > 1 else ''}"


def headlines(worth: Worth) -> list[str]:
    """Each student in a sentence."""
    return [f"{model.name} {_headline(model, worth)}" for model in worth.students]


def _headline(model: ModelWorth, worth: Worth) -> str:
    reference = worth.models[0]
    kept = model.average.retention if model.average else None
    if kept is None:
        return f"has no average score to hold against {reference.name}'s"
    share = model.num_parameters / max(reference.num_parameters, 1)
    parameters = f"{100 * abs(1 - share):.0f} % {'fewer' if share <= 1 else 'more'} parameters"
    speeds = worth.speeds.of_models[model.name] if worth.speeds and worth.speeds.is_quiet else []
    fast = [f"{speed.speedup:.2f} times as fast on CPU ({_batch(speed)} tokens)" for speed in speeds[:1]]
    is_finished = all(score.is_finished for of in (model, reference) for score in of.scores.values())
    keeps = f"{'keeps' if is_finished else 'so far keeps'} {kept:.1f} % of {reference.name}'s average score"
    return ", ".join([f"{keeps}{_of_tasks(model, worth)} with {parameters}", *fast])


def tables(worth: Worth) -> list[Table]:
    """None that would be empty."""
    speeds = _speed_tables(worth.models, worth.speeds) if worth.speeds else []
    return [table for table in (_scores(worth), _retention(worth), _sizes(worth), *speeds, _costs(worth)) if table.rows]


def _scores(worth: Worth) -> Table:
    return Table(
        title="Scores, per cent",
        note="On dev: median of the seeds (least to most); the average is that of the medians.",
        header=["model", *(f"{_task(task)}, {task.metric.replace('_', ' ')}" for task in worth.tasks), "average"],
        rows=[
            [model.name, *(_score(model.scores.get(task.name)) for task in worth.tasks), _average_score(model, worth)]
            for model in worth.models
        ],
    )


def _task(task: TaskWorth) -> str:
    return task.name if task.averaged else f"{task.name}{NOT_AVERAGED}"


def _score(score: Score | None) -> str:
    return MISSING if score is None else _with_spread(score.median, score.least, score.most)


def _average_score(model: ModelWorth, worth: Worth) -> str:
    return MISSING if model.average is None else f"{model.average.score:.1f}{_of_tasks(model, worth)}"


def _retention(worth: Worth) -> Table:
    return Table(
        title=f"Retention, per cent of {worth.reference}",
        note="Median by median (least to most over all pairs of seeds); average score by average score, over the same "
        "tasks.",
        header=["model", *(_task(task) for task in worth.tasks), "average"],
        rows=[
            [
                model.name,
                *(_retained(model.scores.get(task.name)) for task in worth.tasks),
                _average_retention(model, worth),
            ]
            for model in worth.students
        ],
    )


def _retained(score: Score | None) -> str:
    if score is None or score.retention is None:
        return MISSING
    return _with_spread(score.retention, score.retention_least, score.retention_most)


def _average_retention(model: ModelWorth, worth: Worth) -> str:
    if model.average is None or model.average.retention is None:
        return MISSING
    return f"{model.average.retention:.1f}{_of_tasks(model, worth)}"


def _of_tasks(model: ModelWorth, worth: Worth) -> str:
    """Said where an average is not over all tasks that count."""
    num_shared = len(model.average.tasks) if model.average else 0
    return "" if num_shared == worth.num_averaged else f" ({num_shared} of {worth.num_averaged} tasks)"


def _with_spread(value: float, least: float | None, most: float | None) -> str:
    if least is None or most is None or least == most:
        return f"{value:.1f}"
    return f"{value:.1f} ({least:.1f} to {most:.1f})"


def _sizes(worth: Worth) -> Table:
    reference = worth.models[0]
    return Table(
        title="Size",
        note="Of the encoder, without a head; weights in float32.",
        header=["model", "layers × width", "parameters", f"of {reference.name}", "weights"],
        rows=[
            [
                model.name,
                f"{model.num_layers} × {model.width}",
                f"{model.num_parameters:,}",
                f"{model.num_parameters / max(reference.num_parameters, 1):.1%}",
                command.size(model.num_bytes),
            ]
            for model in worth.models
        ],
    )


def _speed_tables(models: Sequence[ModelWorth], speeds: Speeds) -> list[Table]:
    """One for each device and dtype."""
    places = groupby(enumerate(speeds.of_models[models[0].name]), key=lambda item: (item[1].device, item[1].dtype))
    found = []
    for (device, dtype), items in places:
        chosen = [place for place, _ in items]
        rows = {model.name: [speeds.of_models[model.name][place] for place in chosen] for model in models}
        found.append(
            Table(
                title=f"Speed on {_device(device, speeds)}, {dtype}",
                note="",
                header=["model", *(cell for speed in rows[models[0].name] for cell in _speed_header(speed))],
                rows=[[name, *(cell for speed in row for cell in _speed_cells(speed))] for name, row in rows.items()],
            )
        )
    return [*found[:-1], *(replace(last, note=_speed_note(models[0].name, speeds)) for last in found[-1:])]


def _device(device: str, speeds: Speeds) -> str:
    machine = speeds.machine
    return f"{machine['processor']}, {machine['threads']} threads" if device == "cpu" else device


def _speed_header(speed: Speed) -> tuple[str, str]:
    unit = "ms" if speed.batch_sequences == 1 else "sequences/s"
    return f"{_batch(speed)}, {unit}", "speed-up"


def _batch(speed: Speed) -> str:
    return f"{speed.batch_sequences} × {speed.sequence_length}"


def _speed_cells(speed: Speed) -> tuple[str, str]:
    figure = 1000 * speed.batch_s if speed.batch_sequences == 1 else speed.batch_sequences / speed.batch_s
    interval = (
        f" ({speed.speedup_low:.2f} to {speed.speedup_high:.2f})" if speed.speedup_low < speed.speedup_high else ""
    )
    return command.number(figure), f"{speed.speedup:.2f}{interval}"


def _speed_note(reference: str, speeds: Speeds) -> str:
    told = (
        f"Sequences × tokens of a batch, none of it padding, with a classifier's head; medians. Speed-up: the time of "
        f"{reference} by the model's in the same rounds (95 % interval)."
    )
    load = f"Load of the machine before: {speeds.load_per_core:.2f} a core"
    return f"{told} {load}{'.' if speeds.is_quiet else '; other work ran beside, and nothing here is promised.'}"


def _costs(worth: Worth) -> Table:
    return Table(
        title="What it took to make them",
        note="Training by the clock. Caches: the views that were read. Teachers: for how long they were asked for "
        "these, of all workers together. Fine-tuning and caches of tasks are not counted.",
        header=["model", "training", "on", "steps", "tokens", "caches", "teachers"],
        rows=[[model.name, *_cost_cells(model)] for model in worth.students],
    )


def _cost_cells(model: ModelWorth) -> list[str]:
    cost = model.cost
    if cost is None:
        return [UNKNOWN] + 5 * [MISSING]
    return [
        duration(cost.training_s),
        f"{cost.num_workers} × {cost.device}",
        f"{cost.num_steps:,}",
        f"{cost.num_tokens:,}",
        command.size(sum(cache.num_bytes for cache in cost.caches)),
        _teachers_time(cost.caches),
    ]


def _teachers_time(caches: Sequence[CacheCost]) -> str:
    known = [cache.teacher_s for cache in caches if cache.teacher_s is not None]
    return duration(sum(known)) if len(known) == len(caches) else UNKNOWN
