"""Students killed again and again: the run ends with the parameters of one that was never stopped.

Usage: `python -m infra.bench.resume [--kills N] [--seed S] [--quick] [--json]`

`student-train run` is killed with SIGKILL at random steps and moments: the process of a run without Ray, one of Ray
Train's workers, or the driver with all of its Ray. It is started again with another number of workers until it has
finished, and so on with a new run until as many have died. Status 1 if a step read other sequences than the pure order
says, if the student differs from the undisturbed one by more than rounding, or if anything hangs or fails unprovoked.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

from infra.bench import resume_work
from infra.bench.output import say, show
from infra.bench.processes import POLL_S, RunningCommand
from infra.bench.resume_checks import (
    NUMBERS_OF_WORKERS,
    error_of_way,
    expected_digests,
    largest_error,
    largest_share,
    num_batches_that_differ,
    num_wrong_steps,
    read_student,
    steps_of,
)
from infra.bench.resume_counts import Counts, listed, render, result
from infra.bench.resume_work import BATCH_SEQUENCES, NUM_EPOCHS, NUM_UNITS, Work

KILLS, QUICK_KILLS = 20, 4
QUICK_UNITS = 60
IN_PROCESS, WORKER, DRIVER = "process without Ray", "Ray worker", "driver with Ray"
IN_PROCESS_SHARE, WORKER_SHARE = 0.35, 0.5
"""Of starts without Ray; of kills with Ray."""
MAX_STEPS_BETWEEN = 12
START_S, STEP_S = 6.0, 0.5
"""Within which a kill falls that comes before a first step, and one that comes after a certain step."""
STUCK_S = 300.0
REFERENCE = "undisturbed"


class Resume:
    """Kills and counts."""

    def __init__(self, work: Work, *, kills: int, seed: int) -> None:
        self.counts = Counts()
        self._work, self._kills, self._draw = work, kills, Random(seed)
        self._digests = expected_digests(work.cache, batch_sequences=BATCH_SEQUENCES, num_epochs=NUM_EPOCHS)

    def run(self) -> Counts:
        start = time.monotonic()
        self.check_order()
        self._undisturbed()
        while self._may_kill():
            name = f"run-{self.counts.finished}"
            while not self._one_start(name):
                pass
            self._check_finished(name)
        self.counts.wall_s = time.monotonic() - start
        return self.counts

    def check_order(self) -> None:
        """What needs no run."""
        cache = self._work.cache
        self.counts.batches_that_differ = num_batches_that_differ(
            cache, batch_sequences=BATCH_SEQUENCES, num_epochs=NUM_EPOCHS
        )
        for num_workers in NUMBERS_OF_WORKERS:
            share = largest_share(cache.url, num_workers, batch_sequences=BATCH_SEQUENCES)
            self.counts.shares[num_workers] = share

    def _undisturbed(self) -> None:
        running = self._start(REFERENCE, num_workers=0)
        try:
            if not running.wait(STUCK_S) or running.summary() is None:
                raise RuntimeError(f"a run that nothing disturbs does not succeed: {running.last_words()}")
        finally:
            running.close()

    def _start(self, name: str, *, num_workers: int) -> RunningCommand:
        configuration = self._work.configuration(name, num_workers=num_workers)
        return RunningCommand("student_train.cli", "run", str(configuration), "--json")

    def _may_kill(self) -> bool:
        return self.counts.kills.total() < self._kills

    def _one_start(self, name: str) -> bool:
        """One run of the command, killed if more kills are wanted; whether the run is finished."""
        num_workers = 0 if self._draw.random() < IN_PROCESS_SHARE else self._draw.choice(NUMBERS_OF_WORKERS)
        self.counts.starts[num_workers] += 1
        running = self._start(name, num_workers=num_workers)
        try:
            killed = self._kill_some(running, num_workers)
            ended = running.wait(running.seconds + STUCK_S)
            self.counts.steps_done += steps_seen(running)
            if ended and running.summary() is not None:
                return True
            self.counts.stuck += not ended
            if ended and killed not in (DRIVER, IN_PROCESS):
                self.counts.unprovoked += 1
                say(f"{name} with {num_workers} workers failed: {running.last_words()}")
            return False
        finally:
            running.close()

    def _kill_some(self, running: RunningCommand, num_workers: int) -> str:
        """Kills processes until the driver is dead or the run has finished; the kind of the last one."""
        last = ""
        while self._may_kill():
            kind = self._kind(num_workers)
            if not self._await_moment(running) or not self._kill(running, kind):
                break
            last = kind
            self.counts.kills[kind] += 1
            say(f"killed a {kind} after {steps_seen(running)} steps; so far {listed(self.counts.kills)}")
            if kind != WORKER:
                break
        return last

    def _kind(self, num_workers: int) -> str:
        if num_workers == 0:
            return IN_PROCESS
        return WORKER if self._draw.random() < WORKER_SHARE else DRIVER

    def _await_moment(self, running: RunningCommand) -> bool:
        """Waits for so many steps more and a random part of one; False if the run ended before."""
        before, ahead = steps_seen(running), self._draw.randint(0, MAX_STEPS_BETWEEN)
        limit = running.seconds + STUCK_S
        while steps_seen(running) < before + ahead and running.seconds < limit:
            if running.wait(running.seconds + POLL_S):
                return False
        return not running.wait(running.seconds + self._draw.uniform(0, STEP_S if ahead else START_S))

    def _kill(self, running: RunningCommand, kind: str) -> bool:
        return running.kill("trainer" if kind == WORKER else "driver", running.seconds + STUCK_S, self._draw)

    def _check_finished(self, name: str) -> None:
        output, spec = self._work.output(name), self._work.spec(name, num_workers=0)
        student, reference = read_student(output), read_student(self._work.output(REFERENCE))
        wrong = num_wrong_steps(steps_of(output), self._digests)
        error, of_way = largest_error(student, reference), error_of_way(student, reference, spec)
        say(f"{name} has finished: {wrong} wrong steps, error {error:.1e}, {of_way:.1e} of the way")
        self.counts.finished += 1
        self.counts.steps += len(self._digests)
        self.counts.wrong_steps += wrong
        self.counts.largest_error = max(self.counts.largest_error, error)
        self.counts.error_of_way = max(self.counts.error_of_way, of_way)


def steps_seen(running: RunningCommand) -> int:
    """Steps that a run has told of."""
    return sum(line.startswith("step ") and "held out" not in line for line in running.messages())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.bench.resume", description="Kills training at random.")
    parser.add_argument("--kills", type=int, help=f"processes to kill (default {KILLS}, with --quick {QUICK_KILLS})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true", help="print JSON, and the table to standard error")
    options = parser.parse_args(arguments)
    kills = options.kills or (QUICK_KILLS if options.quick else KILLS)
    num_units = QUICK_UNITS if options.quick else NUM_UNITS
    with tempfile.TemporaryDirectory(prefix="resume-") as folder:
        counts = Resume(resume_work.make(Path(folder), num_units=num_units), kills=kills, seed=options.seed).run()
    show(result(counts), render(counts), as_json=options.json)
    return 0 if counts.ok else 1


if __name__ == "__main__":
    sys.exit(main())
