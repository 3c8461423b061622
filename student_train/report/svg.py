"""matplotlib's SVG, made fit to stand in a page beside others.

Colours stand in for the page's own, so that it can have a light and a dark side.
"""

import re
import xml.etree.ElementTree as ET

INK, GRID = "#010101", "#020202"
FILE_INK, FILE_GRID = "#59616b", "#dfdcd6"
"""As the page has them by day, and of series:"""
FILE_COLOURS = ("#1f6fb4", "#c8501e", "#0d8265", "#7b55b8", "#c2417c", "#8a6d00", "#5b6b7b", "#8a5a3c")
NUM_COLOURS = len(FILE_COLOURS)
_STAND_INS = {INK: "var(--ink-soft)", GRID: "var(--rule)"}
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_REFERENCE = re.compile(r"url\(#")
_COLOUR = re.compile(r"#0[0-9a-f]{5}")


def series_colour(place: int) -> str:
    """What stands in for the colour of the student at a place, from 0."""
    return f"#0a00{place % NUM_COLOURS:02x}"


def file_colour(place: int) -> str:
    """Of the student at a place, where no page decides."""
    return FILE_COLOURS[place % NUM_COLOURS]


def page_colour(place: int) -> str:
    """How the page calls the colour of the student at a place."""
    return f"var(--series-{place % NUM_COLOURS})"


def for_page(text: str, *, key: str, title: str) -> str:
    """An element that scales with its place, has a name for who cannot see it, and whose ids begin with `key`."""
    root = ET.fromstring(text)
    _drop(root, f"{{{_SVG}}}metadata", f"{{{_SVG}}}style")
    for element in root.iter():
        for name, value in element.attrib.items():
            element.set(name, _adapted(name, value, key))
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"role": "img", "aria-label": title, "id": key}
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    return ET.tostring(root, encoding="unicode")


def _drop(root: ET.Element, *tags: str) -> None:
    for parent in root.iter():
        for child in [child for child in parent if child.tag in tags]:
            parent.remove(child)


def _adapted(name: str, value: str, key: str) -> str:
    if name == "id":
        return f"{key}-{value}"
    if name == f"{{{_XLINK}}}href":
        return value.replace("#", f"#{key}-", 1)
    return _COLOUR.sub(_from_stand_in, _REFERENCE.sub(f"url(#{key}-", value))


def _from_stand_in(match: re.Match[str]) -> str:
    colour = match[0]
    if colour.startswith("#0a00"):
        return page_colour(int(colour[5:], 16))
    return _STAND_INS.get(colour, colour)
