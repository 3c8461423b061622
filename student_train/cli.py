"""`student-train`: the command line."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict

from student_train.config import StudentSpec
from teacher_cache.shell import command, settings


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="student-train", description="Distil students from a teacher cache.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="train a student, or go on with the run in its output")
    run.add_argument("config", metavar="CONFIG", help="YAML file of a student")
    run.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for example loss.temperature=4 steps=1000")
    run.add_argument("--json", action="store_true", help="print the result as JSON")
    debug = commands.add_parser("debug-batch", help="tell which sequences a run diverged on")
    debug.add_argument("output", metavar="DIR", help="a run's output")
    debug.add_argument("--json", action="store_true", help="print the result as JSON")
    options = command.parse(parser, arguments)
    if options.command == "debug-batch":
        return command.run(lambda: _examine(options.output), as_json=options.json, render=_render_examined)

    def work() -> dict[str, object]:
        spec = settings.load(StudentSpec, options.config, options.overrides)
        from student_train.launch import train

        return asdict(train(spec))

    return command.run(work, as_json=options.json, render=command.pairs)


def _examine(output: str) -> dict[str, object]:
    from student_train.diverged import examine

    return examine(output)


def _render_examined(found: dict[str, object]) -> str:
    from student_train.diverged import render

    return render(found)


if __name__ == "__main__":
    sys.exit(main())
