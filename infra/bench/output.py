"""What benchmarks print: figures with the machine and versions that they belong to."""

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any

from student_train.measuring import machine, versions
from teacher_cache.errors import UserError

__all__ = ["errors", "machine", "say", "show", "table_of", "versions"]


def say(text: str) -> None:
    """To standard error: results alone go to standard output."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def errors() -> Iterator[None]:
    """Ends the process with one line and status 2 at a user's mistake."""
    try:
        yield
    except UserError as error:
        say(f"error: {error}")
        sys.exit(2)


def show(found: dict[str, Any], table: str, *, as_json: bool) -> None:
    """Prints the table, or with `as_json` the JSON, and the table to standard error."""
    if as_json:
        say(table)
        print(json.dumps(found))
    else:
        print(table)


def table_of(found: dict[str, Any]) -> str:
    """Ratios and figures, a line each."""
    lines = [found["name"], *(f"  {label}: {value:.4g}" for label, value in found["ratios"].items())]
    return "\n".join(lines + [f"    {label}: {_readable(value)}" for label, value in found["figures"].items()])


def _readable(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_readable(part)}" for name, part in value.items())
    if isinstance(value, tuple | list):
        return " to ".join(map(_readable, value))
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
