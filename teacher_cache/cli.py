"""`teacher-cache`: the command line. Each command imports what it works with, so that none waits for another's."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from teacher_cache.errors import UserError
from teacher_cache.fidelity import NUM_POSITIONS
from teacher_cache.shell import command, settings
from teacher_cache.shell.submit import arguments as submission

NUM_PATHS_SHOWN = 3
TARGETS = ("masking", "keep", "soft_labels", "hidden")
EXECUTION_HELP = "how the work is done, as under `execution` in a configuration: num_workers=2"


def main(arguments: Sequence[str] | None = None) -> int:
    options = command.parse(_parser(), arguments)
    work, render = _COMMANDS[options.command]
    return command.run(lambda: work(options), as_json=options.json, render=render)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="teacher-cache", description="Ask a masked-LM teacher once.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    build = _add(commands, "build", "build a cache, or finish one")
    build.add_argument("config", metavar="CONFIG", help="YAML file of a cache")
    build.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for example keep.unmasked=0.2 views=1")
    submission.add_arguments(_add(commands, "submit", "build a cache on a Ray cluster, as a job"))
    plan = _add(commands, "plan", "what a cache will weigh, take and cost, and after how many students it pays")
    plan.add_argument("config", metavar="CONFIG", help="YAML file of a cache, which is not begun")
    plan.add_argument("--prices", metavar="FILE", help="YAML file of prices; without it, physical amounts alone")
    plan.add_argument(
        "--teacher-tokens-per-s",
        type=natural_number,
        metavar="N",
        help="what one worker does, encoding included, as measured elsewhere (default: as measured here)",
    )
    plan.add_argument(
        "--tokens",
        type=natural_number,
        metavar="N",
        help="of the corpus of which the text is a sample; give it 200,000 tokens or more",
    )
    plan.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for build")
    extend = _add(commands, "extend", "add views to a cache, from what it holds itself")
    extend.add_argument("url", metavar="URL", help="folder or s3:// URL of a cache")
    extend.add_argument("--views", type=natural_number, required=True, help="how many there are to be")
    extend.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=EXECUTION_HELP)
    for name, help_text in (
        ("info", "what a cache is and holds"),
        ("verify", "read everything and check every digest"),
        ("show", "rows as text: the input, and what the teacher said"),
        ("fidelity", "how true a cache is to its teacher, run anew on a sample"),
    ):
        _add(commands, name, help_text).add_argument("url", metavar="URL", help="folder or s3:// URL of a cache")
    copy = _add(commands, "copy", "copy a cache's sealed views to another store, checked on both sides")
    copy.add_argument("url", metavar="URL", help="folder or s3:// URL of a cache")
    copy.add_argument("target", metavar="TARGET", help="where to; a copy that was cut short goes on")
    gc = _add(commands, "gc", "list, or delete, what nothing in the cache refers to and is older than a day")
    gc.add_argument("url", metavar="URL", help="folder or s3:// URL of a cache")
    gc.add_argument("--delete", action="store_true", help="without it nothing is deleted")
    commands.choices["verify"].add_argument(
        "--teacher", action="store_true", help="run the teacher anew on a sample, and report the difference"
    )
    commands.choices["verify"].add_argument(
        "--repair", action="store_true", help="ask the teacher again about units that are damaged"
    )
    commands.choices["verify"].add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=EXECUTION_HELP)
    show = commands.choices["show"]
    show.add_argument("--view", type=natural_number, default=0)
    show.add_argument("--start", type=natural_number, default=0, help="first sequence id (default 0)")
    show.add_argument("--rows", type=natural_number, default=3, help="how many sequences (default 3)")
    fidelity = commands.choices["fidelity"]
    fidelity.add_argument(
        "--positions",
        type=natural_number,
        default=NUM_POSITIONS,
        help="masked positions to compare (default %(default)s)",
    )
    fidelity.add_argument("--plot", metavar="FILE.png", help="write a figure, too")
    return parser


def _add(commands: Any, name: str, help_text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help_text, description=help_text)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def natural_number(text: str) -> int:
    """For argparse, which names the function in its message."""
    if not text.isdecimal():
        raise ValueError
    return int(text)


def _build(options: argparse.Namespace) -> dict[str, Any]:
    from teacher_cache.config import load

    spec = load(options.config, options.overrides)
    from teacher_cache.pipeline import build

    return asdict(build(spec, progress=not options.json))


def _submit(options: argparse.Namespace) -> dict[str, Any]:
    from teacher_cache.config import spec_type
    from teacher_cache.shell.submit.command import run
    from teacher_cache.shell.submit.job import Command

    return run(
        options,
        spec_type,
        Command(module="teacher_cache.cli", name="build"),
        places=lambda spec: {"cache": [spec.cache], **spec.places},
    )


def _plan(options: argparse.Namespace) -> dict[str, Any]:
    from teacher_cache.config import CacheSpec, load
    from teacher_cache.plan.prices import Prices

    spec = load(options.config, options.overrides)
    if not isinstance(spec, CacheSpec):
        raise UserError("plan knows caches of a corpus alone; a task's is small and asked about once: build it")
    prices = settings.load(Prices, options.prices) if options.prices else None
    from teacher_cache.plan.plan import plan

    return asdict(
        plan(
            spec,
            prices=prices,
            teacher_tokens_per_s=options.teacher_tokens_per_s,
            num_tokens=options.tokens,
            progress=not options.json,
        )
    )


def _info(options: argparse.Namespace) -> dict[str, Any]:
    from teacher_cache.inspect import info

    return info(options.url)


def _extend(options: argparse.Namespace) -> dict[str, Any]:
    from teacher_cache.config import ExecutionConfig

    execution = settings.from_overrides(ExecutionConfig, options.overrides)
    from teacher_cache.pipeline import extend

    return asdict(extend(options.url, views=options.views, execution=execution, progress=not options.json))


def _verify(options: argparse.Namespace) -> dict[str, Any]:
    from teacher_cache.config import ExecutionConfig

    execution = settings.from_overrides(ExecutionConfig, options.overrides)
    if options.repair:
        from teacher_cache.pipeline import repair

        return asdict(repair(options.url, execution=execution, ask_teacher=options.teacher, progress=not options.json))
    from teacher_cache.format.cache import open_cache
    from teacher_cache.verify import verify

    return asdict(verify(open_cache(options.url), ask_teacher=options.teacher))


def _copy(options: argparse.Namespace) -> dict[str, Any]:
    from teacher_cache.format.cache import open_cache
    from teacher_cache.upkeep.copies import copy

    return asdict(copy(open_cache(options.url), options.target))


def _gc(options: argparse.Namespace) -> dict[str, Any]:
    from teacher_cache.format.cache import open_cache
    from teacher_cache.upkeep.garbage import gc

    return asdict(gc(open_cache(options.url), dry_run=not options.delete))


def _show(options: argparse.Namespace) -> list[dict[str, Any]]:
    from teacher_cache import inspect
    from teacher_cache.format.cache import open_cache

    stop = options.start + options.rows
    return inspect.show(open_cache(options.url), view=options.view, start=options.start, stop=stop)


def _fidelity(options: argparse.Namespace) -> dict[str, Any]:
    from teacher_cache.fidelity import compare, report
    from teacher_cache.format.cache import open_cache

    if options.plot:
        report.check_plot_path(options.plot)
    cache = open_cache(options.url)
    result = asdict(compare.compare(cache, num_positions=options.positions, progress=not options.json))
    if options.plot:
        report.plot(result, options.plot)
    return result


def _render_info(result: dict[str, Any]) -> str:
    head = {name: result[name] for name in ("cache", "fingerprint", "num_views", "units_committed_in_next_view")}
    corpus = {"corpus": _few(result["notes"].get("corpus", []))}
    targets = {name: result["spec"].get(name) for name in TARGETS}
    views = [command.pairs(view) for view in result["views"]]
    return "\n\n".join([command.pairs(head | result["notes"] | corpus | targets), *views])


def _few(paths: list[str]) -> str:
    """How many there are, and the first of them."""
    shown = ", ".join(paths[:NUM_PATHS_SHOWN])
    return f"{len(paths):,} files: {shown}{', …' if len(paths) > NUM_PATHS_SHOWN else ''}"


def _render_gc(result: dict[str, Any]) -> str:
    head = command.pairs({name: value for name, value in result.items() if name != "objects"})
    return "\n".join([head, *(f"  {key}" for key in result["objects"])])


def _render_verification(result: dict[str, Any]) -> str:
    problems = "\n".join(f"  {problem}" for problem in result["problems"])
    head = command.pairs({name: value for name, value in result.items() if name != "problems"})
    if result["bad_units"]:
        problems += f"\nto ask the teacher again about these: teacher-cache verify {result['cache']} --repair"
    return f"{head}\nproblems:\n{problems}" if problems else head


def _render_rows(result: Any) -> str:
    from teacher_cache.inspect import render_rows

    return render_rows(result)


def _render_plan(result: dict[str, Any]) -> str:
    from teacher_cache.plan.report import render

    return render(result)


def _render_fidelity(result: dict[str, Any]) -> str:
    from teacher_cache.fidelity.report import render

    return render(result)


_COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], Any], command.Render]] = {
    "build": (_build, command.pairs),
    "submit": (_submit, command.pairs),
    "plan": (_plan, _render_plan),
    "extend": (_extend, command.pairs),
    "info": (_info, _render_info),
    "copy": (_copy, command.pairs),
    "gc": (_gc, _render_gc),
    "verify": (_verify, _render_verification),
    "show": (_show, _render_rows),
    "fidelity": (_fidelity, _render_fidelity),
}


if __name__ == "__main__":
    sys.exit(main())
