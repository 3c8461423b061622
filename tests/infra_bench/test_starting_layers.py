"""Every choice of starting layers is held against the teacher, and the whole teacher is the teacher."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from infra.bench import starting_layers
from teacher_cache.format.cache import Cache
from tests import caches


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return caches.build_cache(tmp_path_factory.mktemp("starting") / "cache", num_documents=8)


def run(cache: str, text: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "infra.bench.starting_layers", "--cache", cache, "--text", str(text), *options]
    return subprocess.run(command, capture_output=True, text=True)


def test_choices_are_ranked_by_their_divergence_from_the_teacher(cache, tmp_path):
    text = tmp_path / "held-out.txt"
    caches.make_corpus(text)
    done = run(cache.url, text, "--layers", "2", "--json")
    assert done.returncode == 0, done.stderr
    teacher, *rows = json.loads(done.stdout)["figures"]
    assert (teacher["layers"], teacher["kl"]) == ([0, 1, 2, 3], 0)
    assert sorted(row["layers"] for row in rows) == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    assert [row["kl"] for row in rows] == sorted(row["kl"] for row in rows)
    assert all(row["kl"] > 0 for row in rows)
    assert [row["layers"] for row in rows if row["is_default"]] == [[0, 3]]


def test_all_layers_in_their_order_are_the_teacher_itself(cache, tmp_path):
    text = tmp_path / "held-out.txt"
    caches.make_corpus(text)
    teacher, student = starting_layers.measure(cache, text, 4)
    assert student["layers"] == [0, 1, 2, 3]
    assert student["kl"] == pytest.approx(0, abs=1e-5)
    assert student["masked_lm"] == pytest.approx(teacher["masked_lm"], abs=1e-4)


@pytest.mark.parametrize("number", ["-1", "0", "5"])
def test_more_layers_than_the_teacher_has_are_refused(number, cache, tmp_path):
    caches.make_corpus(tmp_path / "held-out.txt")
    done = run(cache.url, tmp_path / "held-out.txt", "--layers", number)
    assert done.returncode == 2
    assert f"error: --layers is {number}: of 4 teacher layers that are" in done.stderr
    assert "Traceback" not in done.stderr
