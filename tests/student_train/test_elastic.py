"""A cluster that grows and shrinks under a run: it goes on with the workers that there is room for."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.bench import resume_work
from infra.bench.processes import RunningCommand
from infra.bench.resume_checks import expected_digests, largest_error, num_wrong_steps, read_student, steps_of
from student_train.launch import train
from teacher_cache.shell.settings import to_dict

PATIENCE_S = 180.0
NUM_EPOCHS = 25
"""Of 10 steps: the run has to outlast the start of a node."""


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head on which no worker has room."""
    from ray.cluster_utils import Cluster

    running = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield running
    running.shutdown()


def wait_for(happened: Callable[[], bool], run: RunningCommand) -> None:
    limit = time.monotonic() + PATIENCE_S
    while not happened():
        assert not run.has_ended(), f"the run ended before: {run.last_words()}"
        assert time.monotonic() < limit, f"it did not happen in {PATIENCE_S:g} s: {run.messages()[-3:]}"
        time.sleep(0.1)


def num_workers(output: Path) -> int:
    """Of the present group; 0 before the first."""
    try:
        return int(json.loads((output / "run.json").read_text())["num_workers"])
    except FileNotFoundError:
        return 0


def trains_on(output: Path) -> Callable[[], bool]:
    """Whether a checkpoint was written since."""
    before = set((output / "checkpoints").glob("*/state.json"))
    return lambda: bool(set((output / "checkpoints").glob("*/state.json")) - before)


@pytest.mark.slow
def test_a_run_grows_and_shrinks_with_its_cluster(cluster, tmp_path, capsys):
    work = resume_work.make(tmp_path)
    train(work.spec("alone", num_workers=0, num_epochs=NUM_EPOCHS))
    values = to_dict(work.spec("elastic", num_workers=0, num_epochs=NUM_EPOCHS))
    values["execution"] |= {"num_workers": [1, 2], "resize_check_s": 1.0, "address": cluster.address}
    configuration, output = tmp_path / "elastic.yaml", work.output("elastic")
    configuration.write_text(json.dumps(values))
    cluster.add_node(num_cpus=1)
    run = RunningCommand("student_train.cli", "run", str(configuration), "--json")
    moments = {}
    try:
        for change in ("start", "grow", "shrink"):
            if change == "grow":
                second = cluster.add_node(num_cpus=1)
            elif change == "shrink":
                cluster.remove_node(second, allow_graceful=False)
            began, expected = run.seconds, 2 if change == "grow" else 1
            wait_for(lambda expected=expected: num_workers(output) == expected, run)
            wait_for(trains_on(output), run)
            moments[change] = run.seconds - began
        assert run.wait(run.seconds + 3 * PATIENCE_S), run.messages()[-3:]
        assert run.summary() is not None, run.last_words()
    finally:
        run.close()
    with capsys.disabled():
        print({change: f"{seconds:.0f} s" for change, seconds in moments.items()}, f"whole run {run.seconds:.0f} s")
    digests = expected_digests(work.cache, batch_sequences=resume_work.BATCH_SEQUENCES, num_epochs=NUM_EPOCHS)
    assert num_wrong_steps(steps_of(output), digests) == 0
    assert largest_error(read_student(output), read_student(work.output("alone"))) < 1e-4
