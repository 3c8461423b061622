"""Ctrl-C and SIGTERM of a run: one message, a status of its own, and nothing lost."""

import json
import signal

import pytest
import yaml

from teacher_cache.shell.settings import to_dict
from tests.student_train import runs
from tests.student_train.commands import newest_step, start, wait_until


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.ray)])
def test_an_interrupt_ends_a_run_quickly_and_the_same_command_goes_on(num_workers, default_cache, tmp_path):
    output, log, path = tmp_path / "run", tmp_path / "log", tmp_path / "student.yaml"
    execution = runs.make_execution(num_workers=num_workers, checkpoint_steps=2)
    spec = runs.make_spec(default_cache, output, steps=5000, execution=execution)
    path.write_text(yaml.safe_dump(to_dict(spec)))
    for interrupt in (signal.SIGINT, signal.SIGTERM):
        reached = newest_step(output)
        process = start("run", str(path), log)
        wait_until(lambda reached=reached: newest_step(output) > reached, process, log)
        process.send_signal(interrupt)
        out, _ = process.communicate(timeout=30)
        assert (process.returncode, out) == (130, b""), log.read_text()
        assert log.read_text().endswith("interrupted; run the same command again to go on\n")
        assert "Traceback" not in log.read_text()
    steps = [json.loads(line)["step"] for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= newest_step(output) > reached > 0
