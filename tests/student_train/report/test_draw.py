"""Figures as SVG, of whatever numbers and names."""

import math
import re
import warnings
import xml.etree.ElementTree as ET
from importlib.resources import files
from typing import Any

import pytest

from student_train.report import svg
from student_train.report.draw import NAME_CHARACTERS, draw, shortened, to_file
from student_train.report.figures import Figure, Series


def series(place: int = 0, *, name: str = "a", points: list[tuple[float, float]], is_sound: bool = True) -> Series:
    xs, ys = zip(*points, strict=True)
    return Series(place=place, name=name, xs=xs, ys=ys, is_sound=is_sound)


def drawn(*shown: Series, **options: Any) -> ET.Element:
    figure = Figure(key="key", title="title", x_label="x", y_label="y", series=shown, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return ET.fromstring(draw(figure))


def texts(root: ET.Element) -> list[str]:
    return [(element.text or "").strip() for element in root.iter() if element.tag.endswith("}text")]


def ids(root: ET.Element) -> list[str]:
    return [element.attrib["id"] for element in root.iter() if "id" in element.attrib]


@pytest.mark.parametrize("worst", [math.inf, math.nan, 3e38, 0.0, -1.0])
def test_curves_of_any_numbers(worst):
    root = drawn(series(points=[(1, 3.0), (2, worst), (3, 2.0)]))
    assert "key-series-0" in ids(root)


def test_a_wide_range_is_logarithmic_and_says_so():
    assert "y, logarithmic" in texts(drawn(series(points=[(1, 100.0), (2, 1.0)])))
    assert "y" in texts(drawn(series(points=[(1, 3.0), (2, 1.0)])))
    assert "y" in texts(drawn(series(points=[(1, 0.01), (2, 0.9)]), is_share=True))


def test_only_the_end_of_a_run_that_is_not_sound_has_a_ring():
    sound = series(0, points=[(1, 3.0), (2, 2.0)])
    other = series(1, points=[(1, 3.0), (2, 4.0), (3, math.nan)], is_sound=False)
    assert [name for name in ids(drawn(sound, other)) if "ring" in name] == ["key-ring-1"]


def test_many_students_on_one_spot_get_no_names_on_top_of_each_other():
    crowd = [series(place, name=f"student-{place}", points=[(5.0, 5.0)]) for place in range(20)]
    named = [text for text in texts(drawn(*crowd, is_scatter=True)) if text.startswith("student-")]
    assert 1 <= len(named) < 20


@pytest.mark.parametrize("name", ["学生", "a\x01b", "\udcff", "$x^2$", "<b>&amp;</b>"])
def test_names_of_any_letters(name):
    assert shortened(name) in texts(drawn(series(name=name, points=[(1.0, 1.0)]), is_scatter=True))


def test_long_names_keep_both_ends():
    assert shortened("a" * NAME_CHARACTERS) == "a" * NAME_CHARACTERS
    name = shortened("six-layers-temperature-4-lr-2e-3")
    assert len(name) == NAME_CHARACTERS
    assert (name[:6], name[-6:]) == ("six-la", "r-2e-3")


def test_points_over_names_have_spans_a_line_and_a_legend():
    shown = [
        Series(place=place, name=name, xs=(0.1, 1.1), ys=(0.9, 0.8), is_sound=True, y_spans=((0.85, 0.95), (0.7, 0.8)))
        for place, name in enumerate(["_student", "$x^2$"])
    ]
    root = drawn(*shown, is_scatter=True, is_share=True, x_names=("CoLA", "$\\frac{a$"), y_line=1.0)
    assert {"_student", "$x^2$", "CoLA", "$\\frac{a$", "100.0%"} <= set(texts(root))
    assert {"key-series-0", "key-series-1"} <= set(ids(root))


def test_a_file_has_a_title_and_the_pages_colours_by_day():
    figure = Figure(
        key="key", title="title", x_label="x", y_label="y", series=(series(2, points=[(1, 2.0), (2, 1.0)]),)
    )
    text = to_file(figure, "svg").decode()
    assert "title" in texts(ET.fromstring(text))
    assert svg.file_colour(2) in text
    assert not re.search(r"#0a00|#0[12]0[12]", text), "no stand-in is left"
    assert to_file(figure, "png").startswith(b"\x89PNG")
    css = (files("student_train.report") / "page.css").read_text()
    assert tuple(re.findall(r"--series-\d: (#[0-9a-f]{6})", css)[: svg.NUM_COLOURS]) == svg.FILE_COLOURS
    assert re.findall(r"--(?:ink-soft|rule): (#[0-9a-f]{6})", css)[:2] == [svg.FILE_INK, svg.FILE_GRID]
