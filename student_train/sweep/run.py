"""The Ray Tune shell of a sweep: Tune gives each trial a process with its resources, and starts it again when it dies.

What is done, what is to be done and from where is read from the students' run folders, never from Tune's own state.
"""

import functools
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from ray import cloudpickle, tune
from ray.tune.error import TuneError
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler

from student_train.config import StudentSpec
from student_train.console import say
from student_train.launch import check, with_absolute_paths
from student_train.run_folder import RUN_KEY, HeldOutReport, RunDescription, read_records, write_records
from student_train.sweep import records
from student_train.sweep.config import SweepConfig
from student_train.sweep.halving import Rungs
from student_train.sweep.records import Criterion, Outcome
from student_train.sweep.trials import Trial, check_evaluations, trials
from student_train.worker import run_worker
from teacher_cache.errors import StoreError, UserError
from teacher_cache.shell.ray_session import gpus_each, ray_session
from teacher_cache.shell.settings import parse, to_dict
from teacher_cache.storage.store import Store, normal_url

TUNE_SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",  # it prints its tables to standard output, whatever `verbose` says
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a run folder has its logs
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # it would wait for the trials that are running
}


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """What a sweep gave."""

    ok: bool
    """Whether no trial failed."""
    output: str
    compared_by: Criterion
    trials: list[Outcome]
    """The best first, where they can be compared."""


def sweep(config: SweepConfig) -> SweepResult:
    """Trains all students of a sweep, or those that are missing in `config.output`.

    Raises:
        UserError: bad input of any trial, found before one starts; or the output holds another sweep.
    """
    every = [replace(trial, spec=with_absolute_paths(trial.spec)) for trial in trials(config)]
    store = Store(normal_url(config.output))
    record = records.read_sweep(store, config)
    missing = []
    for trial in every:
        if records.has_ended(trial):
            records.check_caches(trial)
        else:
            missing.append(trial)
    say(f"{len(every)} students, {len(every) - len(missing)} of them done before")
    num_views = {trial.name: _checked(config, trial) for trial in missing}
    record = record or records.begin_sweep(store, config, num_views)
    by = records.criterion(every)
    errors = _train_all(config, every, missing, record.num_views, by) if missing else {}
    outcomes = [records.outcome(trial, error=errors.get(trial.name)) for trial in every]
    ok = all(outcome.state != "failed" for outcome in outcomes)
    return SweepResult(ok=ok, output=store.url, compared_by=by, trials=records.ranked(outcomes, by))


def _checked(config: SweepConfig, trial: Trial) -> int:
    """Views that a trial is to read."""
    try:
        checked = check(trial.spec)
    except UserError as error:
        raise UserError(f"trial {trial.name}: {error}") from None
    if config.scheduler == "asha":
        check_evaluations(trial.name, trial.spec, checked.num_steps)
    return checked.num_views


def _train_all(
    config: SweepConfig, every: list[Trial], missing: list[Trial], num_views: dict[str, int], by: Criterion
) -> dict[str, str]:
    """Trains what is missing; why each failed trial did, by name."""
    execution = missing[0].spec.execution
    num_cpus = max(trial.spec.execution.cpus_per_worker for trial in missing) * (config.max_concurrent or 1)
    by_name = {trial.name: trial for trial in missing}
    progress = _Progress(by_name)
    halving = _Halving(records.recorded_rungs(every, by), by, by_name) if config.scheduler == "asha" else None
    os.environ |= TUNE_SETTINGS
    with ray_session(address=execution.address, num_cpus=num_cpus, log_to_driver=False):
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a trial's failure is one of our lines
        tuner = tune.Tuner(
            tune.with_resources(_train_one, _resources),
            param_space={"trial": tune.grid_search([_for_worker(trial, num_views) for trial in missing])},
            tune_config=_tune_config(config, halving),
            run_config=_run_config(Store(config.output), progress, max_failures=execution.max_failures),
        )
        try:
            tuner.fit()
        except TuneError as error:  # of this process, as when the store does not answer: a traceback as text
            reason = str(error).strip().rpartition("\n")[2]
            raise UserError(f"the sweep ended; run it again to go on\n{reason}") from None
    return progress.errors


def _tune_config(config: SweepConfig, halving: "_Halving | None") -> tune.TuneConfig:
    return tune.TuneConfig(
        scheduler=halving,
        max_concurrent_trials=config.max_concurrent,
        trial_name_creator=_name_of,
        trial_dirname_creator=_name_of,
    )


def _run_config(store: Store, progress: "_Progress", *, max_failures: int) -> tune.RunConfig:
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    return tune.RunConfig(
        # A name of its own for each attempt: Tune's record of a killed one may be torn.
        name=f"attempt-{time.time_ns()}",
        storage_path=f"{store.root}/ray",
        storage_filesystem=None if store.is_local else PyFileSystem(FSSpecHandler(store.fs)),
        failure_config=tune.FailureConfig(max_failures=max_failures),
        callbacks=[progress],
        verbose=0,
    )


def _for_worker(trial: Trial, num_views: dict[str, int]) -> dict[str, Any]:
    """A trial in plain values, with the resources that it needs on the connected cluster."""
    execution = trial.spec.execution
    return {
        "name": trial.name,
        "spec": to_dict(trial.spec),
        "num_views": num_views.get(trial.name),
        "num_cpus": execution.cpus_per_worker,
        "num_gpus": gpus_each(execution.gpus_per_worker, 1),
    }


def _resources(values: dict[str, Any]) -> tune.PlacementGroupFactory:
    trial = values["trial"]
    return tune.PlacementGroupFactory([{"CPU": trial["num_cpus"], "GPU": trial["num_gpus"]}])


def _name_of(trial: TuneTrial) -> str:
    name: str = trial.config["trial"]["name"]
    return name


def _train_one(values: dict[str, Any]) -> None:
    """A trial's process. What would happen again is its result; for what may pass, Tune starts it again."""
    trial = values["trial"]
    spec = parse(StudentSpec, trial["spec"])
    if not trial["num_gpus"]:
        torch.set_num_threads(spec.execution.cpus_per_worker)
    store = Store(spec.output)

    @functools.cache
    def num_steps() -> int:
        return read_records(store, RUN_KEY, RunDescription)[0].num_steps

    try:
        run_worker(
            spec,
            device=torch.device("cuda" if trial["num_gpus"] else "cpu"),
            show=lambda item: None,
            on_held_out=lambda report: tune.report({"report": report, "share": report.step / num_steps()}),
            num_views=trial["num_views"],
        )
    except StoreError:
        raise
    except UserError as error:
        tune.report({"error": str(error)})


class _Halving(FIFOScheduler):
    """Successive halving by what is held out; a trial is stopped once its folder says so."""

    _supports_buffered_results = False

    def __init__(self, rungs: Rungs, by: Criterion, by_name: dict[str, Trial]) -> None:
        super().__init__()
        self._rungs, self._by, self._by_name = rungs, by, by_name

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        report = result.get("report")
        if not isinstance(report, HeldOutReport):
            return self.CONTINUE
        figures = {**report.losses, "accuracy": report.accuracy}
        name = _name_of(trial)
        if self._rungs.goes_on(name, share=result["share"], score=records.score(figures, self._by)):
            return self.CONTINUE
        write_records(Store(self._by_name[name].spec.output), records.STOPPED_KEY, [report])
        return self.STOP


def reason(trial: TuneTrial) -> str:
    """Why a trial failed. It is in the driver's own folder: Tune copies that to the storage later."""
    if trial.pickled_error_file:
        error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
        cause = getattr(error, "cause", None) or error
        return f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}".removesuffix(": ")
    text = Path(trial.error_file).read_text() if trial.error_file else ""
    return text.strip().rpartition("\n")[2] or "it ended without a word"


class _Progress(tune.Callback):
    """Says what became of each trial, and keeps why the failed ones did."""

    def __init__(self, by_name: dict[str, Trial]) -> None:
        self.errors: dict[str, str] = {}
        self._by_name = by_name
        self._num_ended = 0

    def on_trial_complete(self, iteration: int, trials: Sequence[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._ended(_name_of(trial), (trial.last_result or {}).get("error"))

    def on_trial_error(self, iteration: int, trials: Sequence[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._ended(_name_of(trial), reason(trial))

    def _ended(self, name: str, error: str | None) -> None:
        if error:
            error = self.errors[name] = " ".join(error.split())
        self._num_ended += 1
        done = records.line(records.outcome(self._by_name[name], error=error))
        say(f"{done}  ({self._num_ended}/{len(self._by_name)})")
