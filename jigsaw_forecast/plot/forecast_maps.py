"""One figure of a forecast: a row for each lead time, a column for each panel."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from PIL import Image

from jigsaw_forecast.errors import DataError, OutputError
from jigsaw_forecast.fields import Field
from jigsaw_forecast.plot.drawing_grid import LATITUDES, LONGITUDES, to_drawing_grid
from jigsaw_forecast.plot.panels import Panel, Shading, default_panels, field_panel
from jigsaw_forecast.plot.projection import coastline, graticule, outline, project
from jigsaw_forecast.plot.reading import ForecastMaps, open_maps

FloatArray = npt.NDArray[np.float64]

ONE_HOUR = np.timedelta64(1, "h")
NOTICE_ATTRIBUTE = "notice"
GRIB_SUFFIXES = (".grib", ".grib2", ".grb", ".grb2")
GRIB_NOTICE = "This GRIB file does not say which model made it, nor for which planet."
DEFAULT_DAYS = (0, 1, 3, 5, 10)
NUM_COLOURS = 32
DOTS_PER_INCH = 120
PANEL_INCHES = (6.4, 3.12)  # the map is 2.05 times as wide as high
INK = "#222222"
_TITLE: dict[str, Any] = {"fontsize": 17, "fontweight": "bold", "color": INK}
_HEADING: dict[str, Any] = {"fontsize": 11.5, "color": INK}
_NOTICE: dict[str, Any] = {"fontsize": 11, "fontstyle": "italic", "color": "#8a1c1c"}


def plot_forecast(
    forecast: Path,
    output: Path,
    variables: Sequence[Field] | None = None,
    lead_times: Sequence[np.timedelta64] | None = None,
    init_time: np.datetime64 | None = None,
    member: int | None = None,
    notice: str | None = None,
) -> Path:
    """Draws a forecast into one PNG and returns its path.

    Args:
        forecast: A forecast in zarr, netCDF or GRIB.
        output: The picture; an older one is replaced when the new one is whole.
        variables: One column each; default: height over temperature, pressure over wind.
        lead_times: One row each; default: the initial state (or the first lead time) and the
            days 1, 3, 5 and 10, as far as the forecast has them.
        init_time: Which forecast of several; default: the first.
        member: Which of an ensemble; None for the first.
        notice: What must be said of this forecast; default: the product's own attribute
            `notice`, which GRIB cannot hold.

    Raises:
        DataError: The forecast cannot be read or lacks what is asked for.
        OutputError: The picture cannot be written.
    """
    maps = open_maps(forecast, member)
    init, leads = _choose_times(forecast, maps, lead_times, init_time)
    lacking = [chosen for chosen in variables or () if chosen not in maps.fields]
    if lacking:
        raise DataError(
            f"{forecast}: missing {', '.join(map(str, lacking))}; it has "
            f"{', '.join(map(str, maps.fields))}"
        )
    panels = [field_panel(v) for v in variables] if variables else default_panels(maps.fields)
    if notice is None and forecast.suffix in GRIB_SUFFIXES:
        notice = GRIB_NOTICE
    figure = draw(maps, panels, init, leads, notice or maps.attributes.get(NOTICE_ATTRIBUTE))
    partial = output.with_name(f".{output.name}.partial")
    try:
        _picture(figure).save(partial, format="png", optimize=True)
        os.replace(partial, output)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(f"cannot write {output}: {error.strerror or error}") from error
    return output


def _picture(figure: Figure) -> Image.Image:
    """The figure in 256 colours, a quarter of the bytes; shading has few colours anyway."""
    figure.set_dpi(DOTS_PER_INCH)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    picture = Image.fromarray(pixels).convert("RGB")
    return picture.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)


def draw(
    maps: ForecastMaps,
    panels: Sequence[Panel],
    init: np.datetime64,
    leads: Sequence[np.timedelta64],
    notice: str | None = None,
) -> Figure:
    """The figure: titles, a row for each lead time, a colour bar under each column."""
    page = _Page(len(panels), len(leads), has_notice=bool(notice))
    figure = Figure(figsize=(page.width, page.height), facecolor="white")
    of_member = "" if maps.member is None else f", member {maps.member}"
    title = f"{maps.attributes.get('title', 'Forecast')}{of_member}, started {_time_words(init)}"
    figure.text(0.5, page.up(0.3), title, ha="center", va="center", **_TITLE)
    if notice:
        figure.text(0.5, page.up(0.65), notice, ha="center", va="center", **_NOTICE)
    for column, panel in enumerate(panels):
        figure.text(
            page.middle(column), page.up(page.header - 0.25), panel.title, ha="center", **_HEADING
        )
        shaded = [_shaded_map(maps, panel.shading, init, lead) for lead in leads]
        norm = _norm(panel.shading, [values for values in shaded if values is not None])
        for row, lead in enumerate(leads):
            axes = figure.add_axes(page.panel(column, row))
            _draw_map(axes, shaded[row], _line_map(maps, panel, init, lead), panel, norm)
            _draw_times(axes, init, lead)
        if panel.shading is not None and norm is not None:
            _draw_bar(figure, figure.add_axes(page.bar(column)), panel.shading, norm)
    return figure


@dataclass(frozen=True)
class _Page:
    """Where things are on the page, in inches turned into shares of it."""

    num_columns: int
    num_rows: int
    has_notice: bool

    margin = 0.2
    row_gap = 0.32
    footer = 0.75

    @property
    def header(self) -> float:
        return 1.25 if self.has_notice else 0.95

    @property
    def width(self) -> float:
        return self.num_columns * (PANEL_INCHES[0] + self.margin) + self.margin

    @property
    def height(self) -> float:
        rows = self.num_rows * (PANEL_INCHES[1] + self.row_gap)
        return self.header + rows + self.footer

    def up(self, from_top: float) -> float:
        return 1.0 - from_top / self.height

    def left(self, column: int) -> float:
        return self.margin + column * (PANEL_INCHES[0] + self.margin)

    def middle(self, column: int) -> float:
        return (self.left(column) + PANEL_INCHES[0] / 2) / self.width

    def panel(self, column: int, row: int) -> tuple[float, float, float, float]:
        bottom = self.header + (row + 1) * (PANEL_INCHES[1] + self.row_gap)
        return (
            self.left(column) / self.width,
            self.up(bottom),
            PANEL_INCHES[0] / self.width,
            PANEL_INCHES[1] / self.height,
        )

    def bar(self, column: int) -> tuple[float, float, float, float]:
        length = 0.7 * PANEL_INCHES[0]
        left = self.left(column) + 0.15 * PANEL_INCHES[0]
        bottom, thickness = 0.5, 0.13
        return (
            left / self.width,
            bottom / self.height,
            length / self.width,
            thickness / self.height,
        )


def _choose_times(
    forecast: Path,
    maps: ForecastMaps,
    lead_times: Sequence[np.timedelta64] | None,
    init_time: np.datetime64 | None,
) -> tuple[np.datetime64, list[np.timedelta64]]:
    init = maps.init_times[0] if init_time is None else init_time
    if init not in maps.init_times:
        raise DataError(
            f"{forecast}: missing initial time {init}; it has "
            f"{', '.join(map(str, maps.init_times))}"
        )
    if lead_times is not None:
        lacking = [lead for lead in lead_times if lead not in maps.lead_times]
        if lacking or not lead_times:
            hours = ", ".join(f"{lead / ONE_HOUR:g}" for lead in maps.lead_times)
            raise DataError(
                f"{forecast}: missing lead times "
                f"{', '.join(f'{lead / ONE_HOUR:g}' for lead in lacking)} h; it has {hours} h"
            )
        return init, list(lead_times)
    first = maps.lead_times[0]
    days = [np.timedelta64(24 * day, "h") for day in DEFAULT_DAYS]
    return init, [first, *(day for day in days if day in maps.lead_times and day > first)]


def _shaded_map(
    maps: ForecastMaps, shading: Shading | None, init: np.datetime64, lead: np.timedelta64
) -> FloatArray | None:
    if shading is None:
        return None
    found = [maps.read(chosen, init, lead) for chosen in shading.fields]
    present = [one for one in found if one is not None]
    if len(present) < len(found) or not all(np.isfinite(one.values).all() for one in present):
        return None
    values = shading.compute([one.values for one in present])
    return to_drawing_grid(values, present[0].latitudes, present[0].longitudes)


def _line_map(
    maps: ForecastMaps, panel: Panel, init: np.datetime64, lead: np.timedelta64
) -> FloatArray | None:
    if panel.contours is None:
        return None
    found = maps.read(panel.contours.field, init, lead)
    if found is None or not np.isfinite(found.values).all():
        return None
    return to_drawing_grid(found.values * panel.contours.scale, found.latitudes, found.longitudes)


def _norm(shading: Shading | None, drawn: Sequence[FloatArray]) -> BoundaryNorm | None:
    """Round colour bounds that all rows share; the outer 0.5 % fall into the end colours."""
    if shading is None or not drawn:
        return None
    values = np.concatenate([one.ravel() for one in drawn])
    low, high = (float(bound) for bound in np.quantile(values, [0.005, 0.995]))
    if shading.is_signed:
        low, high = -max(-low, high), max(-low, high)
    if shading.is_positive:
        low = 0.0
    high = high if high > low else low + 1.0
    bounds = _round_values(low, high, NUM_COLOURS)
    return BoundaryNorm(bounds, ncolors=256, extend="max" if shading.is_positive else "both")


def _draw_map(
    axes: Axes,
    shaded: FloatArray | None,
    lines: FloatArray | None,
    panel: Panel,
    norm: BoundaryNorm | None,
) -> None:
    longitude, latitude = np.meshgrid(LONGITUDES, LATITUDES)
    x, y = project(longitude, latitude)
    if shaded is not None and norm is not None and panel.shading is not None:
        axes.contourf(
            x,
            y,
            shaded,
            levels=norm.boundaries,
            norm=norm,
            cmap=panel.shading.colours,
            extend=norm.extend,
        )
    elif panel.shading is not None:
        axes.text(0, 0, f"no {panel.shading.label} at this time", ha="center", color="#777777")
    axes.plot(*graticule(), color="#444444", linewidth=0.35, alpha=0.35)
    axes.plot(*coastline(), color="#1a1a1a", linewidth=0.75, alpha=0.85)
    if lines is not None and panel.contours is not None:
        step = panel.contours.step
        levels = np.arange(np.floor(lines.min() / step), np.ceil(lines.max() / step) + 1) * step
        drawn = axes.contour(x, y, lines, levels=levels, colors=INK, linewidths=0.8, alpha=0.9)
        axes.clabel(drawn, levels[::2], inline=True, fontsize=6.5, fmt="%g")
    axes.plot(*outline(), color=INK, linewidth=1.0)
    axes.set_aspect("equal")
    axes.set_xlim(-2.72, 2.72)  # the map's half width is 2.706, its half height 1.317
    axes.set_ylim(-1.33, 1.33)
    axes.set_axis_off()


def _draw_times(axes: Axes, init: np.datetime64, lead: np.timedelta64) -> None:
    hours = lead / ONE_HOUR
    words = "Initial state" if hours == 0 else f"Day {hours / 24:g}"
    if hours % 24:
        words = f"+{hours:g} h"
    axes.text(0.0, 1.0, words, transform=axes.transAxes, fontsize=12, fontweight="bold", color=INK)
    axes.text(
        1.0,
        1.0,
        _time_words(init + lead),
        transform=axes.transAxes,
        ha="right",
        fontsize=10,
        color=INK,
    )


def _draw_bar(figure: Figure, bar: Axes, shading: Shading, norm: BoundaryNorm) -> None:
    colour_bar = figure.colorbar(
        ScalarMappable(norm=norm, cmap=shading.colours), cax=bar, orientation="horizontal"
    )
    colour_bar.set_label(f"{_capital(shading.label)} ({shading.units})", fontsize=10, color=INK)
    colour_bar.ax.tick_params(labelsize=9, colors=INK, length=3)
    assert norm.vmin is not None
    assert norm.vmax is not None
    ticks = _round_values(norm.vmin, norm.vmax, 10)
    colour_bar.set_ticks([float(tick) for tick in ticks if norm.vmin <= tick <= norm.vmax])
    colour_bar.outline.set_linewidth(0.6)


def _round_values(low: float, high: float, most: int) -> FloatArray:
    values = ticker.MaxNLocator(nbins=most, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return np.asarray(values, dtype=np.float64)


def _time_words(instant: np.datetime64) -> str:
    """`Wed 24 June 2026, 00 UTC`."""
    time = instant.astype("datetime64[s]").item()
    clock = f"{time:%H}" if time.minute == 0 else f"{time:%H:%M}"
    return f"{time:%a} {time.day} {time:%B %Y}, {clock} UTC"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
