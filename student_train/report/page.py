"""Students and fidelities → one HTML page that needs nothing else."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from student_train.report import text
from student_train.report.compare import common_settings, compare, read_students
from student_train.report.draw import colour_round, draw
from student_train.report.fidelity import read_fidelity
from student_train.report.figures import Figure, curves, tradeoffs
from student_train.report.students import MAX_POINTS, Student
from student_train.report.svg import page_colour
from student_train.run_folder import CacheDescription
from student_train.worth import table
from student_train.worth.figures import figures as worth_figures
from student_train.worth.records import Worth, read_worth
from teacher_cache.errors import UserError
from teacher_cache.format.fidelity import Fidelity
from teacher_cache.shell import command
from teacher_cache.storage import local_files

LEGEND_DASHES = ("none", "6 3", "2 2.5", "6 2 2 2")
LEGEND_MARKS = ("M10 5a4 4 0 1 0 8 0a4 4 0 1 0-8 0", "M10 1h8v8h-8z", "M14 0l5 5-5 5-5-5z", "M14 0l5 9h-10z")
"""As SVG has `draw.DASHES` and `draw.MARKS`."""


@dataclass(frozen=True, kw_only=True)
class ReportSummary:
    """What was written."""

    report: str
    num_bytes: int
    num_runs: int
    warnings: list[str]


def write_report(
    places: Sequence[str], *, output: str, fidelity: Sequence[str] = (), worth: str | None = None
) -> ReportSummary:
    """Writes a page on the runs at these folders or URLs; `fidelity` names results of `teacher-cache fidelity --json`,
    `worth` what `student-train worth` wrote.

    Raises:
        UserError: there is no run or no worth, a fidelity is of no cache of the runs, or `output` cannot be written.
    """
    _check_output(output)
    fidelities = [read_fidelity(path) for path in fidelity]
    found = read_worth(worth) if worth else None
    students = read_students(places)
    _check_fidelities(fidelities, students)
    page = render(students, fidelities, found).encode(errors="replace")  # a path may be no UTF-8
    try:
        local_files.replace(str(Path(output).absolute()), page)
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error.strerror}") from None
    warnings = compare(students).warnings
    return ReportSummary(report=output, num_bytes=len(page), num_runs=len(students), warnings=warnings)


def _check_output(path: str) -> None:
    """Refuses a file that cannot be written, before anything is read."""
    if Path(path).suffix != ".html":
        raise UserError(f"--output {path} is no name of a web page; end it with .html")
    if not Path(path).absolute().parent.is_dir():
        raise UserError(f"--output {path} is in a folder that does not exist; make {Path(path).parent} first")


def _check_fidelities(fidelities: Sequence[Fidelity], students: Sequence[Student]) -> None:
    known = {cache.fingerprint for cache in caches_of(students)}
    for fidelity in fidelities:
        if fidelity.fingerprint not in known:
            raise UserError(
                f"--fidelity is of cache {text.short(fidelity.fingerprint)}, but the runs learned from "
                f"{', '.join(map(text.short, sorted(known)))}; give the result for one of these"
            )


def render(students: Sequence[Student], fidelities: Sequence[Fidelity] = (), worth: Worth | None = None) -> str:
    """The whole page."""
    comparison = asdict(compare(students))
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            students=students,
            states=states(students),
            comparison=comparison,
            rows=[text.cells(run) for run in comparison["runs"]],
            groups=[(group, len(list(names))) for group, names in groupby(group for group, _ in text.COLUMNS[:-1])],
            setting_rows=text.setting_rows(comparison["differences"]),
            common={key: text.setting(value) for key, value in common_settings(students).items()},
            caches=[_cache_facts(cache) for cache in caches_of(students)],
            fidelities=fidelities,
            curves=_drawn(curves(students)),
            tradeoffs=_drawn(tradeoffs(students)),
            worth=worth and _worth_facts(worth),
            not_held_out=[student.name for student in students if not student.newest],
        )
    )


def states(students: Sequence[Student]) -> list[str]:
    """How many students are how far, for example `2 finished`."""
    counts = {
        "finished": sum(student.is_sound for student in students),
        "unfinished": sum(not student.finished and not student.trouble for student in students),
        "diverged": sum(bool(student.trouble) for student in students),
    }
    return [f"{count} {state}" for state, count in counts.items() if count]


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("student_train.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "columns": text.COLUMNS,
        "max_points": MAX_POINTS,
        "colour": page_colour,
        "dashes": lambda place: LEGEND_DASHES[colour_round(place)],
        "mark": lambda place: LEGEND_MARKS[colour_round(place)],
    }
    environment.filters |= {"size": command.size, "short": text.short}
    return environment


def _drawn(figures: Sequence[Figure]) -> list[dict[str, Any]]:
    return [{"title": figure.title, "key": figure.key, "svg": draw(figure)} for figure in figures]


def _worth_facts(worth: Worth) -> dict[str, Any]:
    return {
        "heading": table.heading(worth),
        "headlines": table.headlines(worth),
        "results": worth.results,
        "tables": table.tables(worth),
        "notes": worth.notes,
        "figures": _drawn(worth_figures(worth)),
    }


def caches_of(students: Sequence[Student]) -> list[CacheDescription]:
    """Each cache once, as the run describes it that saw most views of it."""
    caches = [cache for student in students for cache in student.description.caches]
    most_views = sorted(caches, key=lambda cache: cache.num_views)
    return list({cache.fingerprint: cache for cache in most_views}.values())


def _cache_facts(cache: CacheDescription) -> dict[str, Any]:
    """A cache, and what a view of it costs."""
    total = cache.label_bytes + cache.hidden_bytes
    parts = {"token ids and soft labels": cache.label_bytes, "hidden states": cache.hidden_bytes}
    return asdict(cache) | {
        "num_bytes": total,
        "parts": [
            {
                "name": name,
                "num_bytes": size,
                "share": size / max(total, 1),
                "per_token": size / max(cache.num_tokens, 1),
                "per_kept": size / max(cache.num_kept, 1),
            }
            for name, size in (*parts.items(), ("together", total))
        ],
    }
