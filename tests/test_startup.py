"""What the commands import before they work: help and a user's mistakes wait for nothing heavy."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import caches

MODELS = ["torch", "ray", "transformers"]
LIBRARIES = ["fsspec", "matplotlib", "omegaconf", "pandas", "pydantic", "tqdm"]
RUN = """
import contextlib, importlib, json, sys
program, banned, *commands = json.loads(sys.argv[1])
main = importlib.import_module(f"{program}.cli").main
statuses = []
for command in commands:
    try:
        with contextlib.redirect_stdout(sys.stderr):
            statuses.append(main(command))
    except SystemExit as end:
        statuses.append(end.code)
print(json.dumps([statuses, [name for name in banned if name in sys.modules]]))
"""


def run(program: str, *commands: list[str], banned: list[str]) -> tuple[list[int], list[str], str]:
    """Exit statuses of commands run in one fresh process, the modules of `banned` that it imported, what it said."""
    arguments = json.dumps([program, banned, *commands])
    done = subprocess.run([sys.executable, "-c", RUN, arguments], capture_output=True, text=True, check=True)
    statuses, imported = json.loads(done.stdout)
    return statuses, imported, done.stderr


@pytest.mark.parametrize(
    ("program", "known"), [("teacher_cache", {"build", "info"}), ("student_train", {"run", "sweep", "debug-batch"})]
)
def test_help_imports_nothing_heavy(program: str, known: set[str]) -> None:
    banned = [*MODELS, *LIBRARIES, "numpy", "pyarrow"]
    statuses, imported, said = run(program, ["--help"], banned=banned)
    names = re.findall(r"^    ([a-z][a-z-]*)(?: |$)", said, re.MULTILINE)
    assert (statuses, imported) == ([0], [])
    assert known <= set(names)
    statuses, imported, said = run(program, *([name, "--help"] for name in names), banned=banned)
    assert (statuses, imported) == ([0] * len(names), [])
    assert said.count("usage: ") == len(names)


@pytest.mark.parametrize(
    ("program", "verb"),
    [("teacher_cache", "build"), *(("student_train", verb) for verb in ("run", "sweep", "finetune"))],
)
@pytest.mark.parametrize(
    ("content", "overrides", "message"),
    [
        (None, [], "does not exist"),
        ("a: [1\n", [], "cannot be read"),
        ("{}\n", ["views"], "must look like key.path=value"),
        ("colour: red\n", [], "colour: unknown key; valid keys here: "),
    ],
)
def test_a_refused_configuration_imports_no_models(
    program: str, verb: str, content: str | None, overrides: list[str], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_text(content)
    statuses, imported, said = run(program, [verb, str(path), *overrides], banned=[*MODELS, "matplotlib", "tqdm"])
    assert (statuses, imported) == ([2], [])
    assert message in said


def test_info_of_a_local_cache_imports_no_more_than_it_reads_with(tmp_path: Path) -> None:
    cache = caches.build_cache(tmp_path / "cache")
    statuses, imported, said = run("teacher_cache", ["info", cache.url], banned=[*MODELS, *LIBRARIES])
    assert (statuses, imported) == ([0], [])
    assert cache.fingerprint in said
