"""Runs as medians, ratios and a table."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from infra.bench.loading.plan import Entry, Setting, installed_version
from infra.bench.loading.runs import Run
from infra.bench.output import machine, versions

RATES = {
    "rows_per_s": "rows/s",
    "steady_rows_per_s": "steady rows/s",
    "undecoded_rows_per_s": "steady rows/s before decode_hidden",
}
"""Of `Run`, and what they are called."""


@dataclass(kw_only=True)
class Findings:
    """Of all rounds."""

    runs: dict[tuple[str, Setting], list[Run]] = field(default_factory=dict)
    """By a contender's name and the setting."""
    failures: dict[tuple[str, Setting], str] = field(default_factory=dict)
    bytes_per_row: dict[str, float] = field(default_factory=dict)
    server: str = ""
    """What served S3."""

    def median(self, name: str, setting: Setting) -> Run | None:
        """Each figure's own median; None where a run failed."""
        found = self.runs.get((name, setting))
        if not found or (name, setting) in self.failures:
            return None
        values: dict[str, Any] = {key: median(asdict(run)[key] for run in found) for key in asdict(found[0])}
        return Run(**values)


def ratios(findings: Findings, entries: Sequence[Entry], settings: Sequence[Setting]) -> dict[str, float]:
    """Of our rows a second to the best peer's, and of our memory to the least of a peer's; less than 1 MiB is noise."""
    found = {}
    for setting in settings:
        peers = [run for entry in entries if not entry.is_ours and (run := findings.median(entry.name, setting))]
        for entry in entries:
            ours = findings.median(entry.name, setting) if entry.is_ours else None
            if ours and peers:
                for rate, label in RATES.items():
                    fastest = max(getattr(run, rate) for run in peers)
                    found[f"{setting}: {label}, {entry.name} / best peer"] = getattr(ours, rate) / fastest
                smallest = min(run.peak_bytes for run in peers)
                found[f"{setting}: memory, {entry.name} / best peer"] = ours.peak_bytes / max(2**20, smallest)
    return found


def render(findings: Findings, entries: Sequence[Entry], settings: Sequence[Setting], said: Sequence[str]) -> str:
    """A table a setting."""
    lines = [f"S3 is {findings.server}.", *said]
    for setting in settings:
        lines += ["", f"{setting}:", "", *_table(findings, entries, setting)]
    lines += ["", *(f"{entry.name}: {entry.contender.SETTINGS}." for entry in entries if entry.folder != "float16")]
    return "\n".join([*lines, "", *_NOTES])


_NOTES = (
    "rows/s: the first epoch, from opening to the last batch, without local copies. steady: the second, from its first",
    "batch to the first of the third. before decode_hidden: the same without its time, which a GPU takes off a reader.",
    "Memory: the most (PSS, children included) beyond that of the process when it had imported its library; for Ray",
    "Data, beyond a running local cluster. The teacher's weights are random: tokens foretell its states better than a",
    "real one's, so that the transform code takes fewer bytes a row here than elsewhere.",
)
_HEAD = ["", "rows/s", "steady", "before decode_hidden", "first batch", "memory", "bytes a row"]


def _table(findings: Findings, entries: Sequence[Entry], setting: Setting) -> list[str]:
    rows = [_HEAD, ["---"] * len(_HEAD)]
    for entry in entries:
        run = findings.median(entry.name, setting)
        rows.append([entry.name, *(_cells(run) if run else _failed(findings, entry, setting))])
        rows[-1].append(f"{findings.bytes_per_row[entry.name]:,.0f}")
    return [f"| {' | '.join(row)} |" for row in rows]


def _cells(run: Run) -> list[str]:
    return [
        f"{run.rows_per_s:,.0f}",
        f"{run.steady_rows_per_s:,.0f}",
        f"{run.undecoded_rows_per_s:,.0f}",
        f"{run.first_batch_s:.2f} s",
        f"{run.peak_bytes / 2**20:,.0f} MiB",
    ]


def _failed(findings: Findings, entry: Entry, setting: Setting) -> list[str]:
    last = findings.failures.get((entry.name, setting), "not run").splitlines()[-1:]
    return [f"failed: {' '.join(last)}", *[""] * 4]


def result(findings: Findings, entries: Sequence[Entry], settings: Sequence[Setting], name: str) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "name": name,
        "ratios": ratios(findings, entries, settings),
        "figures": {
            "medians": _medians(findings, entries, settings),
            "failures": {f"{name}: {setting}": said for (name, setting), said in findings.failures.items()},
            "bytes_per_row": findings.bytes_per_row,
            "settings": {entry.name: entry.contender.SETTINGS for entry in entries},
            "s3": findings.server,
        },
        "machine": machine(),
        "versions": versions() | _versions(entries),
    }


def _medians(findings: Findings, entries: Sequence[Entry], settings: Sequence[Setting]) -> dict[str, Mapping[str, Any]]:
    found = {}
    for setting in settings:
        runs = {entry.name: findings.median(entry.name, setting) for entry in entries}
        rounds = {name: [asdict(run) for run in findings.runs.get((name, setting), [])] for name in runs}
        found[str(setting)] = {name: {**asdict(run), "rounds": rounds[name]} for name, run in runs.items() if run}
    return found


def _versions(entries: Sequence[Entry]) -> dict[str, str]:
    return {entry.contender.PACKAGE: found for entry in entries if (found := installed_version(entry))}
