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
    _add_finetune(commands)
    _add_debug_batch(commands)
    _add_compare(commands)
    _add_report(commands)
    _add_worth(commands)
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
    kinds = submit.add_mutually_exclusive_group()
    kinds.add_argument("--sweep", action="store_true", help="CONFIG is a sweep's")
    kinds.add_argument("--finetune", action="store_true", help="CONFIG is one of fine-tuning")
    submit.add_argument("--json", action="store_true", help="print the result as JSON")
    submit.set_defaults(work=_submit, render=command.pairs)


def _submit(options: argparse.Namespace) -> dict[str, Any]:
    from teacher_cache.shell.submit.command import run
    from teacher_cache.shell.submit.job import Command

    if options.sweep:
        from student_train.sweep.config import SweepConfig
        from student_train.sweep.trials import places as sweep_places

        sweep = Command(module="student_train.cli", name="sweep", address_key="student.execution.address")
        return run(options, lambda _: SweepConfig, sweep, places=sweep_places)
    if options.finetune:
        from student_train.finetune.config import FinetuneConfig, places

        finetune = Command(module="student_train.cli", name="finetune")
        return run(options, lambda _: FinetuneConfig, finetune, places=places)
    from student_train.config import StudentSpec

    return run(
        options,
        lambda _: StudentSpec,
        Command(module="student_train.cli", name="run"),
        places=lambda spec: {**spec.reads, "output": [spec.output]},
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


def _add_finetune(commands: Any) -> None:
    help_text = "fine-tune and evaluate models on tasks, or go on with it"
    finetune = commands.add_parser("finetune", help=help_text, description=help_text)
    finetune.add_argument("config", metavar="CONFIG", help="YAML file of models and tasks")
    finetune.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="for example epochs=2 execution.num_workers=4"
    )
    finetune.add_argument("--json", action="store_true", help="print the result as JSON")
    finetune.set_defaults(work=_finetune, render=_render_finetune)


def _finetune(options: argparse.Namespace) -> dict[str, Any]:
    from student_train.finetune.config import FinetuneConfig

    config = settings.load(FinetuneConfig, options.config, options.overrides)
    from student_train.finetune.run import finetune

    return asdict(finetune(config))


def _render_finetune(result: dict[str, Any]) -> str:
    from student_train.finetune.text import render

    return render(result)


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
    report.add_argument("--worth", metavar="DIR", help="what `student-train worth` wrote; also a URL")
    report.set_defaults(work=_report, render=command.pairs)


def _report(options: argparse.Namespace) -> dict[str, Any]:
    from student_train.report.page import write_report

    return asdict(write_report(options.runs, output=options.output, fidelity=options.fidelity, worth=options.worth))


def _add_worth(commands: Any) -> None:
    help_text = "fine-tuned models beside their reference: scores, retention, size, speed and cost"
    worth = commands.add_parser("worth", help=help_text, description=help_text)
    worth.add_argument("results", metavar="DIR", help="the output of `student-train finetune`; also a URL")
    worth.add_argument("--output", metavar="DIR", help="where records, tables and figures go; default DIR/worth")
    speed = worth.add_mutually_exclusive_group()
    speed.add_argument("--no-speed", action="store_true", help="measure no speeds")
    speed.add_argument("--bfloat16", action="store_true", help="measure speeds in bfloat16, too")
    worth.add_argument("--threads", type=positive_number, metavar="N", help="of speeds on CPU; default: one a core")
    worth.add_argument("--json", action="store_true", help="print the result as JSON")
    worth.set_defaults(work=_worth, render=_render_worth)


def positive_number(text: str) -> int:
    """For argparse, which names the function in its message."""
    if not text.isdecimal() or not int(text):
        raise ValueError
    return int(text)


def _worth(options: argparse.Namespace) -> dict[str, Any]:
    from student_train.worth.worth import find_worth

    dtypes = () if options.no_speed else ("float32", *(("bfloat16",) if options.bfloat16 else ()))
    return asdict(find_worth(options.results, output=options.output, dtypes=dtypes, threads=options.threads))


def _render_worth(result: dict[str, Any]) -> str:
    from student_train.worth.table import render

    return render(result)


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
