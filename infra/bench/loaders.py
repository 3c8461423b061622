"""Rows a second and memory of our reader beside the loaders that people use, on the same payload.

Usage: `python -m infra.bench.loaders [--quick] [--json] [--cache DIR]`

MosaicML Streaming, LitData and Ray Data read what a cache holds, stored as a careful user of theirs would: arrays a
row, hidden states as float16. All hand over a student's micro-batches, hidden states as float32 on CPU. They read
in order and shuffled, as one and as two ranks at once, from the local disk and from S3, each time into new folders for
their copies. Before that, two ranks' rows are compared with the cache's, each row once. Every measurement is
a process of its own, contenders take turns, figures are medians. Peers are no dependencies of this project.
"""

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.bench.loading.checks import MismatchError, check_places
from infra.bench.loading.payload import FULL, QUICK, Size, bytes_per_row, make_caches, write_peer
from infra.bench.loading.places import bucket, upload
from infra.bench.loading.plan import PEERS, QUICK_PEERS, QUICK_SETTINGS, SETTINGS, Entry, Setting, entries
from infra.bench.loading.report import Findings, render, result
from infra.bench.loading.runs import Job, RunError, places_read, run
from infra.bench.output import say, show

ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What is measured, and where it lies."""

    size: Size
    folder: Path
    """Of the payload, and of all local copies."""
    entries: Sequence[Entry]
    settings: Sequence[Setting]
    num_rounds: int

    def measure(self) -> Findings:
        """Everything."""
        findings = Findings(bytes_per_row={entry.name: self._bytes_per_row(entry) for entry in self.entries})
        with self._sources() as (sources, findings.server):
            for setting in self.settings:
                for entry in self.entries:
                    self._check(entry, setting, sources, findings)
            for number in range(self.num_rounds):
                for setting in self.settings:
                    for entry in self.entries:
                        say(f"round {number + 1} of {self.num_rounds}, {setting}: {entry.name}")
                        self._time(entry, setting, sources, findings)
        return findings

    def make(self) -> None:
        """The payload, where it is not there."""
        make_caches(self.folder, self.size)
        for entry in self.entries:
            if not entry.is_ours:
                write_peer(entry.contender, entry.module, self.folder)

    def _bytes_per_row(self, entry: Entry) -> float:
        return bytes_per_row(self.folder / entry.folder, self.size.num_sequences)

    @contextmanager
    def _sources(self) -> Iterator[tuple[Mapping[tuple[str, str], str], str]]:
        """Where each storage has each entry's payload, by storage and folder; and what serves S3."""
        local = {("disk", entry.folder): str(self.folder / entry.folder) for entry in self.entries}
        with tempfile.TemporaryDirectory(dir=self.folder) as own, bucket(Path(own)) as (url, server):
            say(f"uploading to {server}")
            remote = {("S3", entry.folder): upload(self.folder / entry.folder, url) for entry in self.entries}
            yield local | remote, server

    def _check(
        self, entry: Entry, setting: Setting, sources: Mapping[tuple[str, str], str], findings: Findings
    ) -> None:
        """Compares the rows with the cache's; of one rank it would say nothing that two do not."""
        if setting.num_ranks == 1 and len(self.settings) > 1:
            return
        say(f"comparing, {setting}: {entry.name}")
        reference = str(self.folder / "float16")
        try:
            read = places_read(self._job(entry, setting, sources, reference), self.folder)
            check_places(read, self.size.num_sequences)
        except (RunError, MismatchError) as error:
            _note(findings, entry, setting, error)

    def _time(self, entry: Entry, setting: Setting, sources: Mapping[tuple[str, str], str], findings: Findings) -> None:
        if (entry.name, setting) in findings.failures:
            return
        try:
            taken = run(self._job(entry, setting, sources), self.folder)
        except RunError as error:
            _note(findings, entry, setting, error)
            return
        rates = f"{taken.rows_per_s:,.0f} rows/s, steady {taken.steady_rows_per_s:,.0f}"
        say(f"  {rates}, {taken.peak_bytes / 2**20:,.0f} MiB")
        findings.runs.setdefault((entry.name, setting), []).append(taken)

    def _job(
        self,
        entry: Entry,
        setting: Setting,
        sources: Mapping[tuple[str, str], str],
        reference: str | None = None,
    ) -> Job:
        return Job(
            module=entry.module,
            source=sources[setting.storage, entry.folder],
            is_shuffled=setting.is_shuffled,
            num_ranks=setting.num_ranks,
            reference=reference,
            tolerance=entry.tolerance,
        )


def _note(findings: Findings, entry: Entry, setting: Setting, error: Exception) -> None:
    say(f"  failed: {error}")
    findings.failures[entry.name, setting] = str(error)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="a small payload, two settings, one round, without Ray Data"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, and the table to stderr")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep the payload there, and use what is there")
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help="default %(default)s; quick: 1")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.cache or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        measure_and_show(
            folder.resolve(),
            quick=options.quick,
            num_rounds=1 if options.quick else options.rounds,
            as_json=options.json,
        )


def measure_and_show(folder: Path, *, quick: bool, num_rounds: int, as_json: bool) -> None:
    found, said = entries(QUICK_PEERS if quick else PEERS)
    settings = QUICK_SETTINGS if quick else SETTINGS
    size = QUICK if quick else FULL
    bench = Bench(size=size, folder=folder, entries=found, settings=settings, num_rounds=num_rounds)
    bench.make()
    findings = bench.measure()
    name = "loaders (quick: a small payload)" if quick else "loaders"
    show(result(findings, found, settings, name), render(findings, found, settings, said), as_json=as_json)


if __name__ == "__main__":
    main()
