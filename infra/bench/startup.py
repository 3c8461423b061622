"""How long the commands take to start: whole processes, against one that imports pyarrow.parquet.

    python -m infra.bench.startup [--quick] [--json]

`import pyarrow.parquet` is what any reader of Parquet pays before it reads. Processes take turns, so that other work on
the machine harms both of a pair; modules are compiled beforehand, as after an installation. `info` is of a small cache
in a local folder.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infra.bench import output, tiny_caches
from student_train import measuring

ROUNDS, QUICK_ROUNDS = 40, 3
BASELINE = ("-c", "import pyarrow.parquet")


def commands(cache: str) -> dict[str, tuple[str, ...]]:
    """Arguments of the Python processes that are timed, by name."""
    return {
        "teacher-cache --help": ("-m", "teacher_cache.cli", "--help"),
        "student-train --help": ("-m", "student_train.cli", "--help"),
        "teacher-cache info": ("-m", "teacher_cache.cli", "info", cache),
    }


def seconds(arguments: Sequence[str]) -> float:
    """Of a whole process, from its start to its end."""
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}  # set, it would have all modules compiled each time
    command = [sys.executable, *arguments]
    return measuring.timed(lambda: subprocess.run(command, check=True, capture_output=True, env=environment))


def compare(arguments: Sequence[str], rounds: int) -> dict[str, Any]:
    """A process and the baseline in turns, after one of each."""
    pairs = [(seconds(arguments), seconds(BASELINE)) for _ in range(rounds + 1)][1:]
    ratios = [ours / baseline for ours, baseline in pairs]
    return {
        "ratio": statistics.median(ratios),
        "interval_95": measuring.interval(ratios),
        "seconds": statistics.median(ours for ours, _ in pairs),
        "baseline_seconds": statistics.median(baseline for _, baseline in pairs),
    }


def measure(folder: Path, *, quick: bool) -> dict[str, Any]:
    cache = tiny_caches.make(folder)["coded"].url
    found = {}
    for name, arguments in commands(cache).items():
        found[name] = compare(arguments, QUICK_ROUNDS if quick else ROUNDS)
        output.say(f"{name}: {found[name]['seconds']:.3f} s")
    return {
        "name": "startup" + (" (quick: few rounds)" if quick else ""),
        "ratios": {f"{name} / import pyarrow.parquet": part["ratio"] for name, part in found.items()},
        "figures": found,
        "machine": output.machine(),
        "versions": output.versions(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="seconds: few rounds")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), quick=arguments.quick)
    output.show(found, output.table_of(found), as_json=arguments.json)


if __name__ == "__main__":
    main()
