"""What both command lines share: results for people or as JSON, one message and a status for errors."""

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from teacher_cache.errors import UserError

Render = Callable[[Any], str]

QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}
"""Environment of a command, unless the user set it: the libraries read it when they are imported, if they are."""


def run(work: Callable[[], Any], *, as_json: bool, render: Render) -> int:
    """Runs a command and prints its result; the exit status.

    0 done; 1 a check found damage (the result's `ok` is False); 2 the user's to mend; 130 interrupted, by Ctrl-C or
    SIGTERM. Results go to standard output, messages to standard error.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # where Ray says that a worker died
            result = work()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(str(stop) or "interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    print(json.dumps(result, indent=2) if as_json else render(result), flush=True)
    return 0 if not isinstance(result, dict) or result.get("ok", True) else 1


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses a command line in which options and KEY=VALUE overrides may be mixed, which argparse alone refuses."""
    options, others = parser.parse_known_args(arguments)
    refused = [word for word in others if word.startswith("-") or not hasattr(options, "overrides")]
    if refused:
        parser.error(f"unrecognized arguments: {' '.join(refused)}")
    if others:
        options.overrides = [*options.overrides, *others]
    return options


def pairs(result: dict[str, Any]) -> str:
    """A result as aligned lines of name and value."""
    width = max(map(len, result))
    return "\n".join(f"{name.replace('_', ' '):{width}}  {_readable(value)}" for name, value in result.items())


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, the first to the left and all others to the right; nothing for no rows."""
    if not rows:
        return ""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return "\n".join(_aligned(row, widths) for row in (header, *rows))


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = row
    cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
    return "  ".join(cells).rstrip()


def number(value: float) -> str:
    """With four digits, or all of a large one."""
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def size(num_bytes: float) -> str:
    """In powers of 1,000, as stores charge."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if num_bytes < 1000:
            return f"{num_bytes:.4g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.4g} PB"


def _readable(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {_readable(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_readable, value))
    return str(value)
