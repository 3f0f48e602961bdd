"""What all pictures share: colours, paper, and the way to PNG."""

import io
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from PIL import Image

FloatArray = npt.NDArray[np.float64]

DOTS_PER_INCH = 160  # a panel of 4.7 inches is sharp on a phone and on a desk
PANEL_INCHES = (4.7, 3.3)
NUM_COLOURS = 128
ALMOST_WHITE = 250  # few colours leave the paper a little grey
INK = "#222222"
FAINT = "#d9d9d9"
LONGEST_NAME = 28
LONGEST_TITLE = 40  # letters that fit over the axes
LEGEND_COLUMNS = 2
LEGEND_ROW_INCHES = 0.19
MOST_MARKERS = 12

# Okabe and Ito 2008, "Color Universal Design": told apart with every colour vision
MAIN_COLOUR = "#0072B2"
COMPARED_COLOURS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5C00")
MARKERS = ("s", "^", "D", "v", "P", "X")


@dataclass(frozen=True)
class Picture:
    """One picture of the report.

    Attributes:
        name: File name without its suffix.
        png: The file's bytes.
        alt: What it shows, for those who do not see it.
        width: In pixels.
        height: In pixels.
    """

    name: str
    png: bytes
    alt: str
    width: int
    height: int


@dataclass(frozen=True)
class Style:
    """How one forecast is drawn in every picture."""

    colour: str
    line: str = "-"
    marker: str = ""
    width: float = 1.6


@dataclass(frozen=True)
class Curve:
    """One line: `x` and `y` of one shape, NaN where there is nothing."""

    name: str
    style: Style
    x: FloatArray
    y: FloatArray


def styles_of(main: str, compared: Iterable[str], baselines: Iterable[str]) -> dict[str, Style]:
    """A style for each forecast: the main one blue and thick, baselines grey and broken."""
    styles = {main: Style(MAIN_COLOUR, "-", "o", 2.2)}
    for place, name in enumerate(compared):
        colour = COMPARED_COLOURS[place % len(COMPARED_COLOURS)]
        # the second round of colours differs by its line
        line = "-" if place < len(COMPARED_COLOURS) else "-."
        styles[name] = Style(colour, line, MARKERS[place % len(MARKERS)])
    for place, name in enumerate(baselines):
        styles[name] = Style("#555555", ("--", ":", "-.")[place % 3], "", 1.5)
    return styles


def new_panel(title: str, num_curves: int = 0) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, its title above, and room for a legend below."""
    width, height = PANEL_INCHES
    below = 0.52 + LEGEND_ROW_INCHES * -(-num_curves // LEGEND_COLUMNS)
    height += below - 0.52
    figure = Figure(figsize=(width, height), facecolor="white")
    box = (0.75 / width, below / height, 1.0 - 0.92 / width, 1.0 - (below + 0.4) / height)
    axes = figure.add_axes(box)
    size = 11.0 if len(title) <= LONGEST_TITLE else 11.0 * LONGEST_TITLE / len(title)
    axes.set_title(title, fontsize=size, fontweight="bold", color=INK, loc="left", parse_math=False)
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, colors=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def draw_curves(axes: Axes, curves: Iterable[Curve]) -> None:
    """Draws lines, and their legend below the axes; a line of nothing is left out."""
    handles = []
    for curve in curves:
        is_there = np.isfinite(curve.x) & np.isfinite(curve.y)
        if not is_there.any():
            continue
        style = curve.style
        x, y = curve.x[is_there], curve.y[is_there]
        # a single point shows only with a marker
        few = x.size <= MOST_MARKERS
        looks: dict[str, Any] = {
            "color": style.colour,
            "linestyle": style.line,
            "linewidth": style.width,
            "marker": (style.marker if few else "") or ("_" if x.size == 1 else ""),
            "markersize": 4.5,
            "zorder": 2.0 + style.width,  # the main forecast over the others
        }
        axes.plot(x, y, **looks)
        handles.append((Line2D([], [], **looks), curve.name))
    figure = axes.figure
    if not handles or not isinstance(figure, Figure):
        return
    legend = figure.legend(
        [line for line, _ in handles],
        [" "] * len(handles),
        loc="lower left",
        ncols=LEGEND_COLUMNS,
        fontsize=8.5,
        frameon=False,
        borderaxespad=0.2,
        columnspacing=1.2,
    )
    # set after the fact: names may hold $ and begin with _, which a legend would read
    for text, (_, name) in zip(legend.get_texts(), handles, strict=True):
        set_plain(text, name)


def set_plain(text: Text, words: str) -> None:
    """Sets words as they are, without mathematics, cut where they are too long."""
    text.set_parse_math(False)
    text.set_text(shorten(words))


def shorten(name: str) -> str:
    """A name that fits into a legend."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def lead_time_axis(axes: Axes, hours: FloatArray) -> None:
    """Days along x, or hours where all lead times are within a day and a half."""
    axes.set_xlabel("lead time (days)", fontsize=9.5, color=INK)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(nbins=10, steps=[1, 2, 5, 10]))
    last = float(hours.max()) / 24.0
    axes.set_xlim(-0.02 * last if last else -0.5, 1.02 * last if last else 0.5)


def to_picture(figure: Figure, name: str, alt: str) -> Picture:
    """Paints a figure; few colours make small files."""
    figure.set_dpi(DOTS_PER_INCH)
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        # a name may be written in letters that the font lacks; the page has it right
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        canvas.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    image = Image.fromarray(pixels).convert("RGB")
    image = image.quantize(NUM_COLOURS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    palette = np.array(image.getpalette())
    palette[palette >= ALMOST_WHITE] = 255
    image.putpalette(palette.astype(np.uint8).tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="png", compress_level=6)
    return Picture(name, buffer.getvalue(), alt, image.width, image.height)
