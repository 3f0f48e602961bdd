"""The scorecard: quantities down, lead times across, colours for better and worse."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, Colormap, to_hex
from matplotlib.figure import Figure

from jigsaw_forecast.verify.report.pictures import INK, Picture, shorten, to_picture
from jigsaw_forecast.verify.report.quantities import Quantity, lead_label, variable_label

FloatArray = npt.NDArray[np.float64]

# per cent of the other forecast's RMSE; the middle class is "about equal"
BOUNDS = (-50.0, -20.0, -10.0, -5.0, -2.0, 2.0, 5.0, 10.0, 20.0, 50.0)
NOTHING_COLOUR = "#b9b9b9"
DARK_PERCENT = 20.0  # from here on the colours are too dark for black
ROW_INCHES = 0.2
WIDTH_INCHES = 6.6
MOST_LABELS = 14


@dataclass(frozen=True)
class Card:
    """Relative RMSE differences of the main forecast against another one.

    Attributes:
        other: Name of the other forecast.
        region: Name of the region.
        quantities: Rows.
        hours: Lead times, columns.
        percent: Difference in per cent of the other's RMSE, negative is better, shape
            [rows, columns], NaN where there is none.
        is_significant: Shape [rows, columns].
        is_tested: Shape [rows, columns].
    """

    other: str
    region: str
    quantities: tuple[Quantity, ...]
    hours: FloatArray
    percent: FloatArray
    is_significant: npt.NDArray[np.bool_]
    is_tested: npt.NDArray[np.bool_]


def colours() -> tuple[Colormap, BoundaryNorm]:
    """Blue for better, red for worse, in classes; told apart with every colour vision."""
    return colormaps["RdBu_r"], BoundaryNorm(BOUNDS, ncolors=256, extend="both")


def class_colours() -> list[tuple[str, bool]]:
    """Colour of each class as #rrggbb, best first, and whether it is too dark for black text."""
    cmap, norm = colours()
    middles = [2 * BOUNDS[0], *(np.array(BOUNDS[1:]) + BOUNDS[:-1]) / 2, 2 * BOUNDS[-1]]
    return [(to_hex(cmap(norm(one))), abs(one) >= DARK_PERCENT) for one in middles]


def draw_scorecard(card: Card, main: str, name: str) -> Picture:
    """Draws one card."""
    rows = len(card.quantities)
    header, footer, left = 0.75, 0.95, 1.15
    height = header + rows * ROW_INCHES + footer
    figure = Figure(figsize=(WIDTH_INCHES, height), facecolor="white")
    axes = figure.add_axes(
        (
            left / WIDTH_INCHES,
            footer / height,
            1.0 - (left + 0.15) / WIDTH_INCHES,
            rows * ROW_INCHES / height,
        )
    )
    _draw_cells(axes, card)
    title = f"{shorten(main)} against {shorten(card.other)}"
    figure.text(
        0.02, 1 - 0.25 / height, title, fontsize=12, fontweight="bold", color=INK, parse_math=False
    )
    words = f"RMSE, {card.region}; blue: lower (better), dot: significant at 95 %, grey: no value"
    figure.text(0.02, 1 - 0.5 / height, words, fontsize=9.5, color=INK, parse_math=False)
    bar = figure.add_axes((0.2, 0.42 / height, 0.7, 0.12 / height))
    cmap, norm = colours()
    drawn = figure.colorbar(
        ScalarMappable(norm=norm, cmap=cmap),
        cax=bar,
        orientation="horizontal",
        ticks=BOUNDS,
        extend="both",
    )
    drawn.ax.tick_params(labelsize=8, colors=INK, length=2)
    drawn.set_label("difference of RMSE (%)", fontsize=8.5, color=INK)
    alt = (
        f"Scorecard of {main} against {card.other}, {card.region}: relative difference of RMSE "
        f"for {rows} quantities by lead time; the tables below it hold the numbers."
    )
    return to_picture(figure, name, alt)


def _draw_cells(axes: Axes, card: Card) -> None:
    rows, columns = card.percent.shape
    cmap, norm = colours()
    axes.set_facecolor(NOTHING_COLOUR)
    masked = np.ma.masked_invalid(card.percent)
    edges_x, edges_y = np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5
    line = 0.4 if columns <= 60 else 0.0
    axes.pcolormesh(
        edges_x, edges_y, masked, cmap=cmap, norm=norm, edgecolors="white", linewidth=line
    )
    y, x = np.nonzero(card.is_significant & np.isfinite(card.percent))
    size = min(9.0, 900.0 / max(columns, 1) ** 1.5)
    dots = np.where(np.abs(card.percent[y, x]) >= DARK_PERCENT, "white", "black")
    axes.scatter(x, y, s=size, c=dots.tolist(), linewidths=0)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_yticks(range(rows), [one.short for one in card.quantities])
    every = -(-columns // MOST_LABELS)
    whole_days = [place for place, hours in enumerate(card.hours) if hours % 24 == 0]
    if columns > MOST_LABELS and len(whole_days) >= 3:
        every_day = -(-len(whole_days) // MOST_LABELS)
        places = whole_days[::every_day]
    else:
        places = list(range(0, columns, every))
    axes.set_xticks(places, [lead_label(float(card.hours[place])) for place in places])
    axes.tick_params(labelsize=8, colors=INK, length=2)
    for row in range(1, rows):
        if card.quantities[row].variable != card.quantities[row - 1].variable:
            axes.axhline(row - 0.5, color=INK, linewidth=0.8)
    for side in axes.spines.values():
        side.set_linewidth(0.6)


def by_variable(card: Card) -> list[tuple[str, list[int]]]:
    """Rows of each variable, in order, under its label."""
    groups: dict[str, list[int]] = {}
    for row, one in enumerate(card.quantities):
        groups.setdefault(variable_label(one.variable), []).append(row)
    return list(groups.items())
