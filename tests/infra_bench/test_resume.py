"""The checks of killed students see what they are there to see; and a short run of it."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.bench import resume, resume_work
from infra.bench.resume_checks import (
    RUN_SEED,
    error_of_way,
    expected_digests,
    largest_error,
    largest_share,
    num_batches_that_differ,
    num_wrong_steps,
    read_student,
    steps_of,
)
from infra.bench.resume_counts import MAX_SHARE, Counts, render, result
from infra.bench.resume_work import BATCH_SEQUENCES, UNIT_SEQUENCES, Work
from student_train.batch import sequence_hash
from student_train.launch import train
from student_train.order import global_batches

NUM_EPOCHS, NUM_UNITS = 1, 60
STEPS_PER_EPOCH = -(-NUM_UNITS * UNIT_SEQUENCES // BATCH_SEQUENCES)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    folder = tmp_path_factory.mktemp("resume")
    return resume_work.make(folder, num_units=NUM_UNITS, views=1, hidden={"code": "float16"})


@pytest.fixture(scope="module")
def output(work: Work) -> Path:
    """Of a run of one epoch that nothing disturbed."""
    train(work.spec("run", num_workers=0, num_epochs=NUM_EPOCHS))
    return work.output("run")


def test_each_step_read_what_the_order_says_and_nothing_else_passes(work: Work, output: Path) -> None:
    digests = expected_digests(work.cache, batch_sequences=BATCH_SEQUENCES, num_epochs=NUM_EPOCHS)
    steps = steps_of(output)
    assert len(digests) == len(set(digests)) == STEPS_PER_EPOCH
    assert num_wrong_steps(steps, digests) == 0
    assert num_wrong_steps(steps[:-1], digests) == 1, "one is missing"
    assert num_wrong_steps([*steps, steps[-1]], digests) == 1, "one is there twice"
    assert num_wrong_steps([steps[1], steps[0], *steps[2:]], digests) == 2
    other = replace(steps[3], rows_digest=steps[3].rows_digest + 1)
    assert num_wrong_steps([*steps[:3], other, *steps[4:]], digests) == 1
    assert num_wrong_steps(steps, [*digests[1:], digests[0]]) == STEPS_PER_EPOCH


def test_digests_tell_a_sequence_read_twice(work: Work) -> None:
    batches = global_batches(work.cache, view=0, seed=RUN_SEED, epoch=0, batch_sequences=BATCH_SEQUENCES)
    ids = next(batches).tolist()
    digests = expected_digests(work.cache, batch_sequences=BATCH_SEQUENCES, num_epochs=1)
    assert sum(map(sequence_hash, ids)) % 2**62 == digests[0]
    assert sum(map(sequence_hash, [*ids[1:], ids[1]])) % 2**62 != digests[0]


def test_errors_are_relative_and_seen(work: Work, output: Path) -> None:
    student, spec = read_student(output), work.spec("run", num_workers=0)
    assert largest_error(student, student) == error_of_way(student, student, spec) == 0
    name = next(name for name, value in student.items() if value.ndim == 2)
    moved = student | {name: student[name] * (1 + 1e-3)}
    assert largest_error(moved, student) == pytest.approx(1e-3, rel=1e-3)
    assert error_of_way(moved, student, spec) > 1e-3, "training moves a tensor less than its size"
    assert largest_error({name: student[name]}, student) == float("inf")
    assert largest_error(student | {name: student[name] * torch.nan}, student) == float("inf")


def test_workers_share_batches_and_bytes(work: Work) -> None:
    cache = work.cache
    assert num_batches_that_differ(cache, batch_sequences=BATCH_SEQUENCES, num_epochs=2) == 0
    shares = [largest_share(cache.url, number, batch_sequences=BATCH_SEQUENCES) for number in (1, 2, 3, 4)]
    assert shares[0] == 1
    assert all(1 <= share <= MAX_SHARE for share in shares)
    # Of forty, some have two lanes and some have one: the check sees it.
    assert largest_share(cache.url, 40, batch_sequences=BATCH_SEQUENCES) > 1.2


def test_what_must_hold_decides() -> None:
    good = Counts(finished=1, shares={1: 1.0, 2: 1.05})
    assert good.ok
    for name in ("wrong_steps", "batches_that_differ", "stuck", "unprovoked"):
        wrong: dict[str, Any] = {name: 1}
        assert not replace(good, **wrong).ok
    assert not replace(good, largest_error=2e-4).ok
    assert not replace(good, largest_error=float("nan")).ok
    assert not replace(good, shares={3: 1.2}).ok
    assert not Counts().ok, "nothing was tried"


def test_counts_are_told() -> None:
    counts = Counts(kills=Counter({resume.WORKER: 2}), starts=Counter({3: 1}), shares={2: 1.0}, largest_error=1e-7)
    found = json.loads(json.dumps(result(counts)))
    assert found.keys() == {"name", "ratios", "figures", "machine", "versions"}
    assert (found["figures"]["kills"], found["figures"]["ok"]) == ({"Ray worker": 2}, False)
    assert found["ratios"]["largest relative error of a parameter tensor"] == 1e-7
    lines = render(counts)
    assert "2: 2 Ray worker" in lines
    assert lines.endswith("NOT ok")


@pytest.mark.ray
def test_killed_students_end_as_one_that_was_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert resume.main(["--quick", "--kills", "2", "--seed", "3", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert sum(figures["kills"].values()) == 2
    assert figures["finished"] >= 1
    assert figures["starts"].keys() - {"0"}, "none with Ray"
