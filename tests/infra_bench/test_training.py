"""The benchmarks of training and of start-up, in their quick form: they run, and print one object."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def run(name: str, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", f"infra.bench.{name}", "--quick", "--json", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert set(found) == {"name", "ratios", "figures", "machine", "versions"}
    assert all(ratio >= 0 for ratio in found["ratios"].values())
    return found


def test_loss():
    found = run("loss")
    assert {name.split(":")[0] for name in found["ratios"]} == {"replay", "bucket"}
    assert all(found["figures"][f"{way}: gradient error"] < 1e-5 for way in ("replay", "bucket"))


def test_online(tmp_path):
    (figures,) = run("online", "--cache", str(tmp_path))["figures"].values()
    # The teacher of the quick form is small, but it is there: 4 layers of 128 beside 6 of 64.
    assert figures["online, peak bytes"] > figures["cache, peak bytes"]


def test_startup():
    figures = run("startup")["figures"]
    assert len(figures) == 3
    assert all(part["seconds"] > 0 and part["baseline_seconds"] > 0 for part in figures.values())


@pytest.mark.integration
@pytest.mark.usefixtures("ceph_gateway")  # skips where there is none
def test_reader(tmp_path):
    found = run("reader", "--cache", str(tmp_path))
    assert len(found["ratios"]) == 2
    assert all(part["wait_share"] < 0.5 for part in found["figures"].values())
