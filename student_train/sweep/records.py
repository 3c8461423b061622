"""What a sweep leaves in its output, and reading it back. The students' own run folders are the truth.

| key | what it holds |
|---|---|
| `sweep.json` | `SweepRecord`, written before the first student starts |
| `<trial>/` | a student's run, see `run_folder` |
| `<trial>/stopped.json` | the `HeldOutReport` after which the trial was stopped early |
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from student_train.run_folder import (
    HELD_OUT_KEY,
    RUN_KEY,
    SUMMARY_KEY,
    HeldOutReport,
    RunDescription,
    TrainSummary,
    read_records,
)
from student_train.sweep.config import SweepConfig
from student_train.sweep.halving import Rungs
from student_train.sweep.trials import Trial, share_held_out_rows
from teacher_cache.errors import UserError
from teacher_cache.format import documents
from teacher_cache.format.cache import open_cache
from teacher_cache.shell.settings import to_dict
from teacher_cache.storage.store import Store

SWEEP_KEY, STOPPED_KEY = "sweep.json", "stopped.json"

State = Literal["finished", "stopped early", "failed"]
Criterion = Literal["total", "accuracy", "nothing"]


@dataclass(frozen=True, kw_only=True)
class SweepRecord:
    """Which sweep an output belongs to."""

    config: dict[str, Any]
    """Without what says where and how, which may change between attempts."""
    num_views: dict[str, int]
    """Views that each trial reads, by name: a cache may get more while the sweep goes on."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a trial."""

    name: str
    state: State
    step: int
    """The last one of which something is known."""
    held_out: dict[str, float]
    """Losses on the rows set aside and `accuracy`, after that step; empty where nothing was."""
    seconds: float
    """Training time, over all attempts."""
    output: str
    error: str | None = None
    """Why it failed."""


def identity(config: SweepConfig) -> dict[str, Any]:
    """What decides which students a sweep has and what they learn."""
    values = to_dict(config)
    student = {key: value for key, value in values["student"].items() if key not in ("caches", "execution")}
    # As a list: which number a trial has depends on the order of the keys, which canonical JSON sorts.
    return {
        "student": student,
        "space": [[key, value] for key, value in values["space"].items()],
        **{key: values[key] for key in ("num_samples", "scheduler", "seed")},
    }


def read_sweep(store: Store, config: SweepConfig) -> SweepRecord | None:
    """The record of the sweep in an output; None: there is none.

    Raises:
        UserError: it is of another sweep, or damaged.
    """
    name = f"{store.url}/{SWEEP_KEY}"
    try:
        record = TypeAdapter(SweepRecord).validate_python(documents.read(store, SWEEP_KEY))
    except FileNotFoundError:
        return None
    except ValidationError:
        raise UserError(f"{name} is of another version; choose another output") from None
    own = documents.parse(documents.dump(identity(config)), name=name)  # numbers as JSON has them
    if record.config != own:
        differing = [key for key in own if record.config.get(key) != own[key]]
        raise UserError(
            f"{store.url} holds another sweep, with other values of {', '.join(differing)}; "
            "choose another `output`, or delete that one"
        )
    return record


def begin_sweep(store: Store, config: SweepConfig, num_views: dict[str, int]) -> SweepRecord:
    """Writes the record of a new sweep; if another process was first, its record counts.

    Raises:
        UserError: that is of another sweep.
    """
    record = SweepRecord(config=identity(config), num_views=num_views)
    store.create(SWEEP_KEY, documents.dump(asdict(record)))
    return read_sweep(store, config) or record


def outcome(trial: Trial, *, error: str | None = None) -> Outcome:
    """What became of a trial, by its run folder; `error` where that does not say that it has ended."""
    store = Store(trial.spec.output)
    if summaries := read_records(store, SUMMARY_KEY, TrainSummary):
        done = summaries[0]
        return _outcome(trial, "finished", step=done.num_steps, held_out=done.held_out, seconds=done.seconds)
    if stopped := read_records(store, STOPPED_KEY, HeldOutReport):
        return _outcome_at(trial, "stopped early", stopped[0])
    reports = read_records(store, HELD_OUT_KEY, HeldOutReport)
    error = error or "it ended without a result"
    if not reports:
        return _outcome(trial, "failed", step=0, held_out={}, seconds=0.0, error=error)
    return _outcome_at(trial, "failed", reports[-1], error=error)


def _outcome_at(trial: Trial, state: State, report: HeldOutReport, *, error: str | None = None) -> Outcome:
    held_out = {**report.losses, "accuracy": report.accuracy}
    return _outcome(trial, state, step=report.step, held_out=held_out, seconds=report.seconds, error=error)


def _outcome(trial: Trial, state: State, **values: Any) -> Outcome:
    return Outcome(name=trial.name, state=state, output=trial.spec.output, **values)


def has_ended(trial: Trial) -> bool:
    """Whether a trial was finished or stopped early: it is not to be trained any more."""
    store = Store(trial.spec.output)
    return store.exists(SUMMARY_KEY) or store.exists(STOPPED_KEY)


def check_caches(trial: Trial) -> None:
    """Refuses caches that are not those which an ended trial learned from; caches that are gone cannot be compared.

    Raises:
        UserError: they are others.
    """
    descriptions = read_records(Store(trial.spec.output), RUN_KEY, RunDescription)
    try:
        now = [open_cache(url).fingerprint for url in trial.spec.caches]
    except UserError:
        return
    if descriptions and [cache.fingerprint for cache in descriptions[0].caches] != now:
        raise UserError(
            f"{trial.spec.output} learned from other caches than {', '.join(trial.spec.caches)}; "
            "choose another `output`, or delete that one"
        )


def criterion(trials: list[Trial]) -> Criterion:
    """What students are compared by on the rows held out; `nothing` where these are not the same rows. Where they
    differ in `loss`, their totals mean different things, and only the share of masked positions that they get right
    does not."""
    if not share_held_out_rows(trials):
        return "nothing"
    return "total" if all(trial.spec.loss == trials[0].spec.loss for trial in trials) else "accuracy"


def score(held_out: dict[str, float], by: Criterion) -> float:
    """The lower the better; what is not a number is worst."""
    if by == "nothing":
        return 0.0
    value = held_out["total"] if by == "total" else -held_out["accuracy"]
    return math.inf if math.isnan(value) else value


def ranked(outcomes: list[Outcome], by: Criterion) -> list[Outcome]:
    """Finished ones first, then stopped and failed ones; among them the best first, and by name without a score."""
    order: list[State] = ["finished", "stopped early", "failed"]

    def place(outcome: Outcome) -> tuple[int, bool, float, str]:
        known = bool(outcome.held_out)
        return order.index(outcome.state), not known, score(outcome.held_out, by) if known else 0.0, outcome.name

    return sorted(outcomes, key=place)


def recorded_rungs(trials: list[Trial], by: Criterion) -> Rungs:
    """The rungs as earlier attempts left them."""
    rungs = Rungs()
    for trial in trials:
        store = Store(trial.spec.output)
        descriptions = read_records(store, RUN_KEY, RunDescription)
        reports = read_records(store, HELD_OUT_KEY, HeldOutReport) + read_records(store, STOPPED_KEY, HeldOutReport)
        for report in reports if descriptions else []:
            figures = {**report.losses, "accuracy": report.accuracy}
            rungs.goes_on(trial.name, share=report.step / descriptions[0].num_steps, score=score(figures, by))
    return rungs


def line(outcome: Outcome) -> str:
    """One trial for a person to read."""
    shown = [f"held-out {name} {outcome.held_out[name]:.4g}" for name in ("total", "accuracy") if outcome.held_out]
    known = [f"step {outcome.step}", *shown, f"{outcome.seconds:.0f} s", *([outcome.error] if outcome.error else [])]
    return f"{outcome.name}  {outcome.state}  {'  '.join(known)}"


def table(result: dict[str, Any]) -> str:
    """A sweep's result for a person to read: a trial a line, as `ranked` has them."""
    lines = [line(Outcome(**trial)) for trial in result["trials"]]
    by = result["compared_by"]
    order = "not ranked, as other rows are held out from each" if by == "nothing" else f"best first by held-out {by}"
    return "\n".join([f"{result['output']}, {order}:", *lines])
