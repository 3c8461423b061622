"""A report in a real browser, on a phone and on a desk, in the light and in the dark."""

import json
from pathlib import Path
from typing import Any

import pytest

from student_train.report.page import write_report
from tests.student_train.report import records
from tests.student_train.worth.records import SCORES, write_made_up_worth

pytestmark = pytest.mark.integration

PHONE, DESK = (375, 812), (1280, 900)
HOSTILE = "<img src=x onerror=alert(1)>"
CONTRAST = """
const numbers = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map(Number);
const light = (colour) => numbers(colour).map((v) => v / 255)
  .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const paper = light(getComputedStyle(document.querySelector("figure")).backgroundColor);
const ratio = (colour) => (Math.max(light(colour), paper) + 0.05) / (Math.min(light(colour), paper) + 0.05);
const texts = [...document.querySelectorAll("figure text")].map((text) => getComputedStyle(text).fill);
const lines = [...document.querySelectorAll(".legend line")].map((line) => getComputedStyle(line).stroke);
return [Math.min(...texts.map(ratio)), Math.min(...lines.map(ratio))];
"""
"""Least contrast of letters and of curves to the figures' ground, as WCAG 2 counts it."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 4 students and one with a hostile name, and of what three are worth."""
    folder = tmp_path_factory.mktemp("report")
    records.write_four(folder / "runs")
    records.write_run(folder / "runs" / HOSTILE, num_layers=4, num_parameters=52_780_000, floor=2.0, step_s=2.2)
    worth = write_made_up_worth(folder / "tasks", SCORES | {HOSTILE: SCORES["six layers"]})
    write_report([str(folder / "runs")], output=str(folder / "report.html"), worth=worth)
    return folder / "report.html"


def opened(browser: Any, page: Path, size: tuple[int, int], scheme: str = "light") -> Any:
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get("about:blank")
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # of pages before
    browser.get(page.as_uri())
    return browser


def requests(browser: Any) -> list[str]:
    """URLs that the page asked for."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]


@pytest.mark.parametrize("size", [PHONE, DESK])
def test_nothing_is_wider_than_the_window(browser, page, size):
    opened(browser, page, size)
    assert browser.execute_script("return innerWidth") == size[0]
    assert browser.execute_script("return document.documentElement.scrollWidth") <= size[0]
    for figure in browser.find_elements("css selector", "figure svg"):
        box = figure.rect
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= size[0]


@pytest.mark.parametrize("size", [PHONE, DESK])
def test_all_students_and_figures_are_there(browser, page, size):
    opened(browser, page, size)
    expected = {"six-layers", "six-layers-T4", "three-layers", "three-layers-wide-random-lr-2e-3", HOSTILE}
    cells = [cell.text.splitlines()[0] for cell in browser.find_elements("css selector", "#students tbody th")]
    assert set(cells) == expected
    legend = [item.text for item in browser.find_elements("css selector", ".legend li")]
    assert all(any(line.startswith(name) for line in legend) for name in expected)
    figures = browser.find_elements("css selector", "figure svg")
    assert len(figures) == 11
    assert all(figure.rect["width"] > 250 and figure.rect["height"] > 180 for figure in figures)
    assert len(browser.find_elements("css selector", "#training-loss g[id*=-series-]")) == 5


@pytest.mark.parametrize("size", [PHONE, DESK])
def test_what_students_are_worth_is_there(browser, page, size):
    opened(browser, page, size)
    section = browser.find_element("css selector", "#worth")
    assert section.find_element("css selector", "h2").text == "What students are worth"
    first = [cell.text for cell in section.find_elements("css selector", "table:first-of-type tbody th")]
    assert {"teacher", "six layers", "three layers", HOSTILE} == set(first)
    assert len(section.find_elements("css selector", "figure svg")) == 3
    legend = [text.text for text in section.find_elements("css selector", "#worth-retention text")]
    assert {"six layers", "three layers", "CoLA", "RTE"} <= set(legend)


def test_no_letter_of_a_figure_is_cut_off(browser, page):
    opened(browser, page, DESK)
    outside = browser.execute_script("""
        return [...document.querySelectorAll("figure svg")].flatMap((svg) => {
          const frame = svg.getBoundingClientRect();
          const isOutside = (box) => box.left < frame.left - 1 || box.right > frame.right + 1
            || box.top < frame.top - 1 || box.bottom > frame.bottom + 1;
          return [...svg.querySelectorAll("text")].filter((text) => isOutside(text.getBoundingClientRect()))
            .map((text) => text.textContent);
        });
    """)
    assert outside == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_letters_and_curves_stand_out_from_their_ground(browser, page, scheme):
    opened(browser, page, DESK, scheme)
    letters, lines = browser.execute_script(CONTRAST)
    assert letters >= 4
    assert lines >= 3


def test_the_page_asks_for_nothing_and_complains_of_nothing(browser, page):
    opened(browser, page, DESK)
    assert browser.get_log("browser") == []
    assert requests(browser) == [page.as_uri()]
    assert browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)") == []
    assert browser.find_elements("css selector", "script, img, iframe, link[rel=stylesheet]") == []
