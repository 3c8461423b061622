"""`student-train`: the command line. Each command imports what it works with, so that none waits for another's."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from student_train.demo import command as demo
from student_train.export import command as export
from student_train.report import text
from teacher_cache.shell import command, settings
from teacher_cache.shell.submit import arguments as submission


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="student-train", description="Distil students from a teacher cache.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="train a student, or go on with the run in its output")
    run.add_argument("config", metavar="CONFIG", help="YAML file of a student")
    run.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for example loss.temperature=4 steps=1000")
    run.add_argument("--json", action="store_true", help="print the result as JSON")
    run.set_defaults(work=_run, render=command.pairs)
    _add_submit(commands)
    _add_sweep(commands)
    _add_debug_batch(commands)
    _add_compare(commands)
    _add_report(commands)
    _add_export(commands)
    _add_demo(commands)
    options = command.parse(parser, arguments)
    return command.run(lambda: options.work(options), as_json=options.json, render=options.render)


def _run(options: argparse.Namespace) -> dict[str, Any]:
    from student_train.config import StudentSpec

    spec = settings.load(StudentSpec, options.config, options.overrides)
    from student_train.launch import train

    return asdict(train(spec))


def _add_submit(commands: Any) -> None:
    help_text = "train a student, or many, on a Ray cluster, as a job"
    submit = commands.add_parser("submit", help=help_text, description=help_text)
    submission.add_arguments(submit)
    submit.add_argument("--sweep", action="store_true", help="CONFIG is a sweep's")
    submit.add_argument("--json", action="store_true", help="print the result as JSON")
    submit.set_defaults(work=_submit, render=command.pairs)


def _submit(options: argparse.Namespace) -> dict[str, Any]:
    from teacher_cache.shell.submit.command import run
    from teacher_cache.shell.submit.job import Command

    if options.sweep:
        from student_train.sweep.config import SweepConfig

        return run(
            options,
            SweepConfig,
            Command(module="student_train.cli", name="sweep", address_key="student.execution.address"),
            places=lambda config: {"student.caches": config.student.get("caches", ()), "output": [config.output]},
        )
    from student_train.config import StudentSpec

    return run(
        options,
        StudentSpec,
        Command(module="student_train.cli", name="run"),
        places=lambda spec: {"caches": spec.caches, "output": [spec.output]},
    )


def _add_sweep(commands: Any) -> None:
    help_text = "train many students from the same caches, or go on with them"
    sweep = commands.add_parser("sweep", help=help_text, description=help_text)
    sweep.add_argument("config", metavar="CONFIG", help="YAML file of a sweep")
    sweep.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for example max_concurrent=2 num_samples=8")
    sweep.add_argument("--json", action="store_true", help="print the result as JSON")
    sweep.set_defaults(work=_sweep, render=_render_sweep)


def _sweep(options: argparse.Namespace) -> dict[str, Any]:
    from student_train.sweep.config import SweepConfig

    config = settings.load(SweepConfig, options.config, options.overrides)
    from student_train.sweep.run import sweep

    return asdict(sweep(config))


def _render_sweep(result: dict[str, Any]) -> str:
    from student_train.sweep.records import table

    return table(result)


def _add_debug_batch(commands: Any) -> None:
    help_text = "tell which sequences a run diverged on"
    debug = commands.add_parser("debug-batch", help=help_text, description=help_text)
    debug.add_argument("output", metavar="DIR", help="a run's output")
    debug.add_argument("--json", action="store_true", help="print the result as JSON")
    debug.set_defaults(work=_debug_batch, render=_render_debug_batch)


def _debug_batch(options: argparse.Namespace) -> dict[str, Any]:
    from student_train.diverged import examine

    return examine(options.output)


def _render_debug_batch(found: dict[str, Any]) -> str:
    from student_train.diverged import render

    return render(found)


def _add_compare(commands: Any) -> None:
    help_text = "runs side by side: sizes, losses, speed, and the settings in which they differ"
    compare = commands.add_parser("compare", help=help_text, description=help_text)
    _take_runs(compare)
    compare.set_defaults(work=_compare, render=text.render)


def _compare(options: argparse.Namespace) -> dict[str, Any]:
    from student_train.report import compare

    return asdict(compare.compare(compare.read_students(options.runs)))


def _add_report(commands: Any) -> None:
    help_text = "runs, their caches and curves as one HTML page"
    report = commands.add_parser("report", help=help_text, description=help_text)
    _take_runs(report)
    report.add_argument("--output", metavar="FILE.html", default="report.html", help="default %(default)s")
    report.add_argument(
        "--fidelity",
        metavar="FILE.json",
        action="append",
        default=[],
        help="what `teacher-cache fidelity CACHE --json` printed; once for each cache",
    )
    report.set_defaults(work=_report, render=command.pairs)


def _report(options: argparse.Namespace) -> dict[str, Any]:
    from student_train.report.page import write_report

    return asdict(write_report(options.runs, output=options.output, fidelity=options.fidelity))


def _add_export(commands: Any) -> None:
    help_text = "a model as a folder for others: Hugging Face, ONNX, int8, sentence embeddings, the hub"
    parser = commands.add_parser("export", help=help_text, description=help_text)
    export.add_arguments(parser)
    parser.set_defaults(work=export.export, render=export.render)


def _add_demo(commands: Any) -> None:
    help_text = "a local web page: models side by side on a sentence, with the time of each answer"
    parser = commands.add_parser("demo", help=help_text, description=help_text)
    demo.add_arguments(parser)
    parser.set_defaults(work=demo.demo, render=demo.render, json=False)


def _take_runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="DIR", help="a run's output, or a folder of such outputs; also URLs")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


if __name__ == "__main__":
    sys.exit(main())
