"""The demo as its users see it: the command, the page in a real browser, Ctrl-C."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from student_train.cli import main
from tests.student_train.export import heads

TEXT = "the old man saw a small [MASK]"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A teacher and a student that fill masks, and two that classify."""
    folder = tmp_path_factory.mktemp("models")
    return [
        str(heads.save(folder / "teacher", family="bert")),
        str(heads.save(folder / "student")),
        str(heads.save(folder / "fine-teacher", "classification", "bert")),
        str(heads.save(folder / "fine-student", "classification")),
    ]


def start(*arguments: str) -> tuple[subprocess.Popen[str], str]:
    """The command as a process of its own, and the address that it tells."""
    process = subprocess.Popen(
        [sys.executable, "-m", "student_train.cli", "demo", *arguments],
        cwd=Path(__file__).parents[3], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ,
    )  # fmt: skip
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if found := re.fullmatch(r"the demo is at (http://127\.0\.0\.1:\d+); Ctrl-C ends it\n", line):
            return process, found[1]
    raise AssertionError("".join(said))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def address(models: list[str]) -> Iterator[str]:
    process, address = start(*models, "--port", str(free_port()))
    yield address
    process.send_signal(signal.SIGINT)
    out, rest = process.communicate(timeout=30)
    assert process.returncode == 0, rest
    assert out == f"the demo at {address} has ended\n"
    assert rest == ""


@pytest.fixture
def page(browser: Any, address: str) -> Any:
    from selenium.webdriver.support.wait import WebDriverWait

    browser.get("about:blank")
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # of pages before
    browser.get(address)
    WebDriverWait(browser, 30).until(lambda page: page.find_elements("css selector", "#masked textarea"))
    return browser


def ask(page: Any, name: str, text: str, box: str) -> None:
    """Types a text, presses the button, and waits for an answer or a message."""
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.wait import WebDriverWait

    field = page.find_element("css selector", f"#{box} textarea")
    WebDriverWait(page, 30).until(lambda page: field.is_displayed())
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(text or Keys.DELETE)
    page.find_element("css selector", f"#{name}-ask").click()
    WebDriverWait(page, 30).until(lambda page: shown(page, f"{name}-latency-0") or shown(page, f"{name}-notice"))


def shown(page: Any, name: str) -> str:
    return "".join(element.text for element in page.find_elements("css selector", f"#{name}"))


@pytest.mark.integration
def test_teacher_and_student_fill_the_mask_side_by_side(page, address, models):
    ask(page, "fill", TEXT, "masked")
    for place, name in enumerate(("teacher", "student")):
        answer = shown(page, f"fill-answer-{place}")
        assert answer.startswith(name)
        assert answer.count("%") == 5
        assert re.fullmatch(r"\d+\.\d ms, the median of 5 rounds", shown(page, f"fill-latency-{place}"))
    boxes = [page.find_element("css selector", f"#fill-answer-{place}").rect for place in (0, 1)]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]


@pytest.mark.integration
def test_classes_side_by_side(page):
    tabs = page.find_elements("css selector", "button[role=tab]")
    next(tab for tab in tabs if tab.is_displayed() and tab.text == "Classify").click()
    ask(page, "classify", "the old man", "text")
    for place in (0, 1):
        assert all(label in shown(page, f"classify-answer-{place}") for label in heads.LABELS.values())
        assert re.fullmatch(r"\d+\.\d ms, the median of 5 rounds", shown(page, f"classify-latency-{place}"))


@pytest.mark.integration
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("the old man", "The text has no [MASK]; write it once, in place of the word to guess."),
        ("old " * 80 + "[MASK]", "The text has 83 tokens, "),
        ("<img src=x onerror=alert(1)>", "The text has no [MASK]; write it once, in place of the word to guess."),
    ],
)
def test_a_text_that_cannot_be_answered_gets_one_message(text, message, page):
    ask(page, "fill", text, "masked")
    assert shown(page, "fill-notice").startswith(message)
    assert shown(page, "fill-latency-0") == shown(page, "fill-latency-1") == ""


@pytest.mark.integration
def test_the_page_asks_this_machine_alone(page, address):
    ask(page, "fill", TEXT, "masked")
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}
    assert asked
    assert all(url.startswith((f"{address}/", "data:", "blob:")) for url in asked)
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_models_that_the_demo_cannot_show_are_refused(tmp_path, capsys):
    model = str(heads.save(tmp_path, "tagging"))
    assert main(["demo", model]) == 2
    assert f"error: {model} does tagging; the demo shows masked LMs and classifiers" in capsys.readouterr().err


@pytest.mark.parametrize("taken", [True, False])
def test_ports_that_cannot_be_had_are_refused(taken, tmp_path, capsys):
    model = str(heads.save(tmp_path))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1] if taken else 70_000
        assert main(["demo", model, "--port", str(port)]) == 2
    message = f"error: --port {port} is taken or no port of this machine; name another, or leave it out"
    assert message in capsys.readouterr().err
