"""Maps of the mean error."""

import numpy as np
import numpy.typing as npt
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure

from jigsaw_forecast.plot.drawing_grid import LATITUDES, LONGITUDES, to_drawing_grid
from jigsaw_forecast.plot.projection import coastline, graticule, outline, project
from jigsaw_forecast.verify.report.pictures import INK, LONGEST_TITLE, Picture, to_picture

FloatArray = npt.NDArray[np.float64]

COLOURS = "PuOr_r"
ROUND = (1.0, 2.0, 2.5, 5.0, 10.0)
FEWEST_SMOOTH = 8  # rows and columns that a spline across seam and poles needs
MOST_STEPS = 11  # the largest bound over the smallest
SIZE_INCHES = (5.4, 3.35)
MOST_COLUMNS = 360  # finer maps are thinned by means of blocks: the picture has 800 dots


def round_bounds(values: FloatArray) -> FloatArray:
    """Round colour bounds that leave the outer 1 % of the sizes outside.

    They are odd multiples of one number, so that the middle class is about zero, and at most 12.
    """
    finite = np.abs(values[np.isfinite(values)])
    most = float(np.quantile(finite, 0.99)) if finite.size else 0.0
    # noise of the last bits is not worth a colour scale of its own
    most = most if most > 1e-30 else 1.0
    size = 10.0 ** np.floor(np.log10(most) - 1.0)
    half = next(one * size for one in ROUND if most <= MOST_STEPS * one * size)
    count = int(np.ceil((most / half - 1.0) / 2.0 - 1e-9))
    odd = np.arange(1, 2 * max(count, 1) + 2, 2)
    bounds: FloatArray = half * np.concatenate([-odd[::-1], odd])
    return bounds


def draw_bias_map(
    values: FloatArray,
    axes_degrees: tuple[FloatArray, FloatArray],
    bounds: FloatArray,
    words: tuple[str, str, str],
) -> Picture:
    """Draws one map.

    Args:
        values: Forecast minus truth, in display units, shape [Y, X]; NaN is left white.
        axes_degrees: Latitudes, descending, [Y]; longitudes, ascending from 0, [X].
        bounds: Bounds of the colour classes.
        words: File name, title, units.
    """
    name, title, units = words
    height = SIZE_INCHES[1]
    figure = Figure(figsize=SIZE_INCHES, facecolor="white")
    axes = figure.add_axes((0.01, 0.6 / height, 0.98, 1.0 - 0.95 / height))
    norm = BoundaryNorm(bounds, ncolors=256, extend="both")
    latitudes, longitudes = axes_degrees
    for x, y, shaded in _pieces(values, latitudes, longitudes):
        axes.pcolormesh(x, y, np.ma.masked_invalid(shaded), cmap=COLOURS, norm=norm)
    axes.plot(*graticule(), color="#444444", linewidth=0.3, alpha=0.35)
    axes.plot(*coastline(), color="#1a1a1a", linewidth=0.6, alpha=0.85)
    axes.plot(*outline(), color=INK, linewidth=0.8)
    axes.set_aspect("equal")
    axes.set_xlim(-2.72, 2.72)  # the map's half width is 2.706, its half height 1.317
    axes.set_ylim(-1.33, 1.33)
    axes.set_axis_off()
    figure.text(
        0.02,
        1 - 0.24 / height,
        title,
        fontsize=min(11.5, 11.5 * LONGEST_TITLE / len(title)),
        fontweight="bold",
        color=INK,
        parse_math=False,
    )
    bar = figure.add_axes((0.15, 0.42 / height, 0.7, 0.11 / height))
    drawn = figure.colorbar(
        ScalarMappable(norm=norm, cmap=COLOURS), cax=bar, orientation="horizontal"
    )
    drawn.set_ticks([float(one) for one in bounds], labels=[f"{one:g}" for one in bounds])
    drawn.ax.tick_params(labelsize=8, colors=INK, length=2)
    drawn.set_label(f"forecast minus truth ({units})", fontsize=9, color=INK)
    drawn.outline.set_linewidth(0.5)
    finite = values[np.isfinite(values)]
    alt = (
        f"Map of the mean error of {title}: from {finite.min():.3g} to {finite.max():.3g} {units}."
        if finite.size
        else f"Map of the mean error of {title}: no values."
    )
    return to_picture(figure, name, alt)


def _pieces(
    values: FloatArray, latitudes: FloatArray, longitudes: FloatArray
) -> list[tuple[FloatArray, FloatArray, FloatArray]]:
    """Projected corners and values: smooth for whole maps, cell by cell for others."""
    spacing = float(np.median(np.diff(longitudes))) if longitudes.size > 1 else 360.0
    if _is_whole(latitudes, longitudes, spacing) and np.isfinite(values).all():
        lon, lat = np.meshgrid(_edges(LONGITUDES, 180.0), _edges(LATITUDES, 90.0))
        return [(*project(lon, lat), to_drawing_grid(values, latitudes, longitudes))]
    step = -(-longitudes.size // MOST_COLUMNS)
    values, latitudes, longitudes = values[::step, ::step], latitudes[::step], longitudes[::step]
    # from -180: the seam of the map is opposite Greenwich
    turned = np.where(longitudes >= 180.0, longitudes - 360.0, longitudes)
    order = np.argsort(turned)
    turned, values = turned[order], values[:, order]
    # a region that lies across the seam is two pieces
    seams = np.flatnonzero(np.diff(turned) > 1.5 * step * spacing) + 1
    pieces = []
    for columns in np.split(np.arange(turned.size), seams):
        lon, lat = np.meshgrid(_edges(turned[columns], 180.0), _edges(latitudes, 90.0))
        pieces.append((*project(lon, lat), values[:, columns]))
    return pieces


def _is_whole(latitudes: FloatArray, longitudes: FloatArray, spacing: float) -> bool:
    """Whether a map goes around the globe and to both poles, so that it can be smoothed."""
    if min(latitudes.size, longitudes.size) < FEWEST_SMOOTH:
        return False
    row = float(latitudes[0] - latitudes[1])
    to_poles = min(latitudes[0], -latitudes[-1]) + row > 89.9
    return bool(to_poles and longitudes.size * spacing > 359.0)


def _edges(middles: FloatArray, most: float) -> FloatArray:
    """Bounds of cells about their middles, within -most to most."""
    if middles.size == 1:
        return np.array([max(middles[0] - 1.0, -most), min(middles[0] + 1.0, most)])
    between = 0.5 * (middles[1:] + middles[:-1])
    first, last = 2 * middles[0] - between[0], 2 * middles[-1] - between[-1]
    edges: FloatArray = np.clip(np.concatenate([[first], between, [last]]), -most, most)
    return edges
