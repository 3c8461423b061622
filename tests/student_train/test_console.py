"""What a person sees of a run: a bar on a terminal, lines anywhere else."""

import contextlib
import os
import pty
import re
import termios
import threading
from collections.abc import Callable
from pathlib import Path

from student_train.console import Console, held_out_line, step_line
from student_train.launch import train
from student_train.run_folder import HeldOutReport, StepReport
from tests.student_train import runs

EXECUTION = runs.make_execution(log_steps=2, evaluation_steps=3)


def seen_on_a_terminal(show: Callable[[], object]) -> str:
    """What is written to standard error where that is a terminal."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 160))
    data = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):  # the other side is closed, and all is read
            while chunk := os.read(master, 65536):
                data.extend(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(slave, "w") as stream, contextlib.redirect_stderr(stream):
        show()
    reader.join()
    os.close(master)
    return data.decode()


def report_of(step: int) -> StepReport:
    losses = {"soft_labels": 0.5, "masked_lm": 2.0, "cosine": 0.25, "total": 6.75}
    return StepReport(
        step=step,
        num_steps=4,
        epoch=0,
        losses=losses,
        grad_norm=1.0,
        lr=1e-3,
        num_sequences=30,
        num_tokens=300,
        rows_digest=1,
        step_s=2.0,
        wait_s=0.5,
        seconds=2.0 * step,
        peak_bytes=1,
    )


def test_a_line_tells_losses_speed_and_what_is_left():
    assert step_line(report_of(3)) == (
        "step 3/4  loss 6.750  soft labels 0.5000  masked-LM 2.000  cosine 0.2500  15 sequences/s  waited 25%  2 s left"
    )


def test_an_evaluation_is_a_line():
    losses = report_of(3).losses
    report = HeldOutReport(step=3, seconds=1.0, num_sequences=1200, losses=losses, accuracy=0.25)
    expected = "step 3  held out: loss 6.750  masked-LM 2.000  accuracy 25.0%  of 1,200 sequences"
    assert held_out_line(report) == expected


def test_without_a_terminal_there_are_lines(default_cache, tmp_path, capsys):
    train(runs.make_spec(default_cache, tmp_path, steps=5, held_out_sequences=8, execution=EXECUTION))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert [re.match(r"step (\d+)(/5|  held out)", line).groups() for line in lines] == [  # type: ignore[union-attr]
        ("2", "/5"),
        ("3", "  held out"),
        ("4", "/5"),
        ("5", "/5"),
        ("5", "  held out"),
    ]


def test_on_a_terminal_there_is_a_bar(default_cache, tmp_path):
    spec = runs.make_spec(default_cache, tmp_path, steps=5, held_out_sequences=8, execution=EXECUTION)
    seen = seen_on_a_terminal(lambda: train(spec))
    assert "100%" in seen
    assert re.search(r"5/5 .*loss \d+\.\d+", seen)
    assert seen.count("held out: loss") == 2
    assert "s left" not in seen


def test_a_run_that_goes_on_begins_its_bar_where_it_stood():
    def show() -> None:
        console = Console(every_steps=1)
        console.show(report_of(3))
        console.show("two workers are idle")
        console.show(report_of(4))
        console.close()

    seen = seen_on_a_terminal(show)
    assert "3/4" in seen
    assert "4/4" in seen
    assert "two workers are idle" in seen
    assert "2/4" in seen
    assert "0/4" not in seen


def test_nothing_is_shown_of_a_run_that_was_finished(default_cache, tmp_path: Path, capsys):
    spec = runs.make_spec(default_cache, tmp_path, steps=2, execution=EXECUTION)
    train(spec)
    capsys.readouterr()
    train(spec)
    assert "step " not in capsys.readouterr().err
