"""Builds killed again and again: whatever dies, each unit is in the sealed cache once, and none is computed twice.

Usage: `python -m infra.bench.chaos [--kills N] [--seed S] [--quick] [--json]`

Random processes of `teacher-cache build` (the driver, Ray's actors, its raylet, the raylet's agents or the GCS server)
get SIGKILL at random moments of a build's usual duration. The build is run again until it ends by itself, and so on
with a new cache until enough processes have died. A part of the builds works without Ray. Status 1 if anything is not
as it must be.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from infra.bench import chaos_work
from infra.bench.chaos_checks import Ledger, all_rows, num_committed, num_duplicates, num_mismatches
from infra.bench.chaos_work import NUM_VIEWS, UNITS_PER_VIEW, Work
from infra.bench.output import say
from infra.bench.processes import RunningCommand
from teacher_cache import open_cache
from teacher_cache.format.row import Row
from teacher_cache.verify import verify

KILLS, QUICK_KILLS = 100, 6
KINDS = {"driver": 4, "actor": 8, "raylet": 1, "agent": 1, "gcs": 1}
"""With weights."""
CLUSTER = ("raylet", "agent", "gcs")
IN_PROCESS_SHARE = 0.35
"""Of builds; the others run on Ray."""
MAX_CACHE_KILLS = 8
"""Then a cache is left to be finished."""
MAX_S, QUICK_MAX_S = 1500.0, 60.0
"""After which nothing more is killed."""
LOST_S, STUCK_S = 60.0, 300.0
"""How long a build may take to notice that its cluster is gone; how long it may take at all."""


@dataclass(kw_only=True)
class Counts:
    """What happened, and what should be 0."""

    kills: Counter[str] = field(default_factory=Counter)
    builds: int = 0
    sealed: int = 0
    duplicates: int = 0
    """Units listed twice, not at all, or not as they were committed."""
    mismatches: int = 0
    """Rows that are not those of an undisturbed build."""
    recomputed: int = 0
    """Units built beyond those that were not committed."""
    changed: int = 0
    """Commits and other objects that were not what they had been."""
    unverified: int = 0
    """Caches of which `verify` complains."""
    stuck: int = 0
    """Builds that did not end after their cluster's death, or at all."""
    unprovoked: int = 0
    """Builds that failed although nothing was killed."""
    ends: Counter[str] = field(default_factory=Counter)
    """What builds that failed said last."""
    undisturbed_s: dict[str, float] = field(default_factory=dict)
    wall_s: float = 0.0

    @property
    def ok(self) -> bool:
        wrong = (self.duplicates, self.mismatches, self.recomputed, self.changed, self.unverified, self.stuck)
        return self.sealed > 0 and not any(wrong) and not self.unprovoked


class Chaos:
    """Kills and counts; `reference` is built undisturbed."""

    def __init__(self, work: Work, *, kills: int, max_s: float, seed: int) -> None:
        self.counts = Counts()
        self._work, self._kills, self._draw = work, kills, random.Random(seed)
        self._start = time.monotonic()
        self._durations = {num_workers: self._undisturbed(num_workers) for num_workers in (0, 2)}
        self._end = time.monotonic() + max_s

    def run(self) -> Counts:
        while self._may_kill():
            self._one_cache(f"cache-{self.counts.sealed}")
        self.counts.wall_s = time.monotonic() - self._start
        return self.counts

    def _undisturbed(self, num_workers: int) -> float:
        """Seconds of a build without a kill; that without Ray is what others are compared with."""
        name = "reference" if num_workers == 0 else "undisturbed"
        build = start_build(self._work.configuration(name, num_workers=num_workers))
        try:
            ended, seconds = build.wait(STUCK_S), build.seconds
            if not ended or build.summary() is None:
                raise RuntimeError(f"a build that nothing disturbs does not succeed: {build.last_words()}")
        finally:
            build.close()
        self._check_sealed(name)
        self.counts.undisturbed_s[name] = seconds
        return seconds

    @cached_property
    def _reference(self) -> list[Row]:
        return all_rows(open_cache(str(self._work.cache("reference"))))

    def _may_kill(self) -> bool:
        return self.counts.kills.total() < self._kills and time.monotonic() < self._end

    def _one_cache(self, name: str) -> None:
        """Builds a cache through kills, and checks it."""
        ledger, before, ended = Ledger(self._work.cache(name)), self.counts.kills.total(), False
        while not ended:
            may_kill = self._may_kill() and self.counts.kills.total() < before + MAX_CACHE_KILLS
            ended = self._one_build(name, may_kill=may_kill)
            self.counts.changed += len(ledger.changed())
            done, state = num_committed(self._work.cache(name), NUM_VIEWS), "sealed" if ended else "cut short"
            say(f"{name}: {done} units, {state}; killed so far {_listed(self.counts.kills)}")
        self._check_sealed(name)
        self.counts.sealed += 1

    def _one_build(self, name: str, *, may_kill: bool) -> bool:
        """One run of the command; whether it came to its end."""
        num_workers = 0 if self._draw.random() < IN_PROCESS_SHARE else 2
        pending = NUM_VIEWS * UNITS_PER_VIEW - num_committed(self._work.cache(name), NUM_VIEWS)
        build = start_build(self._work.configuration(name, num_workers=num_workers))
        self.counts.builds += 1
        try:
            killed = self._kill_some(build, num_workers) if may_kill else []
            limit = build.seconds + LOST_S if set(CLUSTER) & set(killed) else STUCK_S
            if not build.wait(limit):
                self.counts.stuck += 1
                return False
            if summary := build.summary():
                self.counts.recomputed += max(0, summary["num_units_built"] - pending)
                return True
            self._note_failure(build, killed)
            return False
        finally:
            build.close()

    def _kill_some(self, build: RunningCommand, num_workers: int) -> list[str]:
        """Kills processes until the driver or the cluster is dead or the build has ended; their kinds."""
        duration, killed = self._durations[num_workers], list[str]()
        kinds = self._draw.choices([*KINDS], [*KINDS.values()], k=6) if num_workers else ["driver"]
        for moment, kind in zip(sorted(self._draw.uniform(0, duration) for _ in kinds), kinds, strict=True):
            if build.wait(moment) or not build.kill(kind, STUCK_S, self._draw):
                break
            killed.append(kind)
            self.counts.kills[kind if num_workers else "in process"] += 1
            if kind == "driver" or kind in CLUSTER:
                break
        return killed

    def _note_failure(self, build: RunningCommand, killed: Sequence[str]) -> None:
        if "driver" in killed:
            return
        end = f"{'+'.join(killed) or 'nothing'} killed, {build.last_words()}"
        say(end)
        self.counts.ends[end] += 1
        self.counts.unprovoked += not killed

    def _check_sealed(self, name: str) -> None:
        cache = open_cache(str(self._work.cache(name)))
        self.counts.duplicates += num_duplicates(cache, UNITS_PER_VIEW)
        self.counts.mismatches += num_mismatches(all_rows(cache), self._reference)
        found = verify(cache)
        self.counts.unverified += not found.ok
        if not found.ok or cache.num_views != NUM_VIEWS:
            say(f"{name}: {cache.num_views} views, {found.problems}")


def start_build(configuration: Path) -> RunningCommand:
    """`teacher-cache build`."""
    return RunningCommand("teacher_cache.cli", "build", str(configuration), "--json")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.bench.chaos", description="Kills builds at random moments.")
    parser.add_argument("--kills", type=int, default=KILLS, help="processes to kill (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_KILLS} kills, or {QUICK_MAX_S:g} s of them")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    kills, max_s = (QUICK_KILLS, QUICK_MAX_S) if options.quick else (options.kills, MAX_S)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        counts = Chaos(chaos_work.make(Path(folder)), kills=kills, max_s=max_s, seed=options.seed).run()
    print(render(counts, as_json=options.json))
    return 0 if counts.ok else 1


def render(counts: Counts, *, as_json: bool) -> str:
    """The counts as JSON, or as lines of name and value."""
    if as_json:
        return json.dumps(vars(counts), indent=2)
    values = vars(counts) | {"wall_s": round(counts.wall_s), "kills": _listed(counts.kills)}
    values["undisturbed_s"] = {name: round(seconds, 1) for name, seconds in counts.undisturbed_s.items()}
    del values["ends"]
    lines = [f"{name.replace('_', ' '):14}{value}" for name, value in values.items()]
    ends = [f"  {number} x {what}" for what, number in counts.ends.items()]
    return "\n".join([*lines, *(["failures:", *ends] if ends else []), "ok" if counts.ok else "NOT ok"])


def _listed(kills: Counter[str]) -> str:
    return f"{kills.total()}: " + ", ".join(f"{kind} {number}" for kind, number in kills.most_common())


if __name__ == "__main__":
    sys.exit(main())
