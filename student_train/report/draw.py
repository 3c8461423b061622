"""Figures → SVG by matplotlib, in colours that the page decides; or files, in the page's colours by day."""

import io
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg  # needs no display
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter, StrMethodFormatter
from matplotlib.transforms import Bbox, BboxBase

from student_train.report import svg
from student_train.report.figures import Figure, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation

SIZE_INCHES = (5.0, 3.75)
"""360 × 270 units of the page: letters stay letters there, and keep their size on a phone."""
FONT_SIZE, NAME_SIZE = 11, 10.5
DASHES = ("-", "--", ":", "-.")
MARKS = ("o", "s", "D", "^")
MAX_POINTS_WITH_MARKS = 40
LOG_RATIO = 5
"""Of the largest value to the least, from which an axis is logarithmic."""
MIN_SHORTENED = 10_000
"""From here on an axis counts in k and M."""
NAME_CHARACTERS = 22
LEGEND_COLUMNS = 2
FILE_DPI = 160
NAME_PLACES = ((7, 0), (-7, 0), (0, 9), (0, -9), (7, 9), (-7, 9), (7, -9), (-7, -9), (0, 20), (0, -20))
"""Where a name may stand beside its point, in units of the page, best first."""


@dataclass(frozen=True, kw_only=True)
class Palette:
    ink: str
    grid: str
    series: Callable[[int], str]
    """Of the series at a place, from 0."""


PAGE = Palette(ink=svg.INK, grid=svg.GRID, series=svg.series_colour)
"""Stand-ins, which `svg.for_page` puts the page's own colours in place of."""
FILE = Palette(ink=svg.FILE_INK, grid=svg.FILE_GRID, series=svg.file_colour)


def draw(figure: Figure) -> str:
    """An `svg` element with no size of its own, whose ids begin with the figure's key."""
    with _canvas(figure, PAGE) as canvas:
        file = io.StringIO()
        canvas.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return svg.for_page(file.getvalue(), key=figure.key, title=figure.title)


def to_file(figure: Figure, form: Literal["svg", "png"]) -> bytes:
    """A picture that stands alone, on white."""
    with _canvas(figure, FILE) as canvas:
        canvas.suptitle(figure.title, color=svg.FILE_INK, fontsize=FONT_SIZE + 1)
        file = io.BytesIO()
        metadata = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
        canvas.savefig(file, format=form, dpi=FILE_DPI, metadata=metadata)
    return file.getvalue()


@contextmanager
def _canvas(figure: Figure, palette: Palette) -> Iterator[Canvas]:
    """The figure, filled."""
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}):
        matplotlib.rcParams["font.size"] = FONT_SIZE
        warnings.filterwarnings("ignore", message="Glyph")  # letters that matplotlib lacks, but browsers have
        canvas = Canvas(figsize=SIZE_INCHES, layout="constrained")
        FigureCanvasAgg(canvas)
        _fill(canvas, figure, palette)
        yield canvas


def _fill(canvas: Canvas, figure: Figure, palette: Palette) -> None:
    axes = canvas.subplots()
    _dress(axes, figure, palette)
    for series in figure.series:
        (_draw_points if figure.is_scatter else _draw_curve)(axes, series, palette)
    _scale(axes, figure)
    if figure.x_names:
        _name_series(canvas, figure, palette)
    elif figure.is_scatter:
        _name_points(canvas, axes, figure, palette)


def _dress(axes: "Axes", figure: Figure, palette: Palette) -> None:
    axes.set_xlabel(figure.x_label, color=palette.ink)
    axes.set_ylabel(figure.y_label, color=palette.ink)
    axes.grid(color=palette.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(color=palette.grid, labelcolor=palette.ink, which="both", length=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(palette.grid)
    if figure.y_line is not None:
        axes.axhline(figure.y_line, color=palette.ink, linewidth=1, linestyle="--")


def _draw_curve(axes: "Axes", series: Series, palette: Palette) -> None:
    marks = MARKS[colour_round(series.place)] if len(series.xs) <= MAX_POINTS_WITH_MARKS else ""
    (line,) = axes.plot(
        series.xs,
        series.ys,
        color=palette.series(series.place),
        linestyle=DASHES[colour_round(series.place)],
        linewidth=1.6,
        marker=marks,
        markersize=3.5,
    )
    line.set_gid(f"series-{series.place}")
    if not series.is_sound:
        _ring_last(axes, series, palette)


def _ring_last(axes: "Axes", series: Series, palette: Palette) -> None:
    x, y = next(pair for pair in zip(series.xs[::-1], series.ys[::-1], strict=True) if math.isfinite(pair[1]))
    colour = palette.series(series.place)
    (ring,) = axes.plot(x, y, marker="o", markersize=8, markerfacecolor="none", color=colour, linestyle="none")
    ring.set_gid(f"ring-{series.place}")


def _draw_points(axes: "Axes", series: Series, palette: Palette) -> None:
    colour, mark = palette.series(series.place), MARKS[colour_round(series.place)]
    for x, (low, high) in zip(series.xs, series.y_spans, strict=False):
        axes.plot([x, x], [low, high], color=colour, linewidth=1.6)
    (point,) = axes.plot(series.xs, series.ys, marker=mark, color=colour, markersize=7, linestyle="none")
    if not series.is_sound:
        point.set_markerfacecolor("none")
    point.set_gid(f"series-{series.place}")


def colour_round(place: int) -> int:
    """How often the colours were used up before the student at this place: decides its dashes and mark."""
    return place // svg.NUM_COLOURS % len(DASHES)


def _scale(axes: "Axes", figure: Figure) -> None:
    if figure.x_names:
        names = [shortened(name) for name in figure.x_names]
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right", parse_math=False)
        axes.set_xlim(-0.5, len(names) - 0.5)
    else:
        _scale_numbers(axes, figure)
    values = [y for series in figure.series for y in series.ys if math.isfinite(y)]
    if not figure.is_share and min(values) > 0 and max(values) > LOG_RATIO * min(values):
        axes.set_yscale("log")
        axes.set_ylabel(f"{figure.y_label}, logarithmic")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(PercentFormatter(1) if figure.is_share else StrMethodFormatter("{x:,g}"))


def _scale_numbers(axes: "Axes", figure: Figure) -> None:
    """Of x."""
    if figure.is_scatter:
        axes.margins(x=0.2, y=0.2)  # room for names
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 5, 10)))
    largest = max(x for series in figure.series for x in series.xs)
    axes.xaxis.set_major_formatter(EngFormatter(sep="") if largest >= MIN_SHORTENED else StrMethodFormatter("{x:,g}"))


def _name_series(canvas: Canvas, figure: Figure, palette: Palette) -> None:
    """A legend below the axes."""
    lines = [line for line in canvas.axes[0].lines if str(line.get_gid()).startswith("series-")]
    numbers = [str(series.place) for series in figure.series]  # for the names: one that begins with _ would be left out
    columns = min(len(lines), LEGEND_COLUMNS)
    legend = canvas.legend(
        lines, numbers, loc="outside lower center", ncols=columns, frameon=False, labelcolor=palette.ink
    )
    for text, series in zip(legend.get_texts(), figure.series, strict=True):
        text.set(text=shortened(series.name), parse_math=False)


def _name_points(canvas: Canvas, axes: "Axes", figure: Figure, palette: Palette) -> None:
    """Writes each name where it covers nothing; one for which there is no room is left to the legend."""
    canvas.draw_without_rendering()  # places the axes
    points = [axes.transData.transform((series.xs[0], series.ys[0])) for series in figure.series]
    taken: list[Bbox] = [_box_around(*point) for point in points]
    for series in figure.series:
        for offset in NAME_PLACES:
            name = _name(axes, series, offset, palette)
            box = name.get_window_extent()
            if not box.count_overlaps(taken) and _holds(axes.bbox, box):
                taken.append(box)
                break
            name.remove()


def _name(axes: "Axes", series: Series, offset: tuple[int, int], palette: Palette) -> "Annotation":
    right, up = offset
    return axes.annotate(
        shortened(series.name),
        (series.xs[0], series.ys[0]),
        xytext=offset,
        textcoords="offset points",
        color=palette.series(series.place),
        ha="center" if not right else "left" if right > 0 else "right",
        va="center" if not up else "bottom" if up > 0 else "top",
        fontsize=NAME_SIZE,
        parse_math=False,
        annotation_clip=False,
    )


def shortened(name: str) -> str:
    """A name with its middle left out if it is long: ends tell runs apart more often than beginnings."""
    printable = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name)  # or no XML
    half = NAME_CHARACTERS // 2
    return printable if len(name) <= NAME_CHARACTERS else f"{printable[: half - 1]}…{printable[-half:]}"


def _box_around(x: float, y: float) -> Bbox:
    return Bbox.from_bounds(x - 5, y - 5, 10, 10)


def _holds(outer: BboxBase, inner: BboxBase) -> bool:
    return bool(outer.x0 <= inner.x0 and inner.x1 <= outer.x1 and outer.y0 <= inner.y0 and inner.y1 <= outer.y1)
