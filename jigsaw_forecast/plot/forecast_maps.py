"""One figure of a forecast: a row for each lead time, a column for each panel."""

import logging
import os
import textwrap
from collections.abc import Sequence
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
from matplotlib.text import Text
from PIL import Image

from jigsaw_forecast.errors import DataError, OutputError
from jigsaw_forecast.fields import Field
from jigsaw_forecast.plot.drawing_grid import LATITUDES, LONGITUDES, to_drawing_grid
from jigsaw_forecast.plot.labels import mark_extremes, thin_labels
from jigsaw_forecast.plot.origin import notice_of
from jigsaw_forecast.plot.page import PANEL_INCHES, Page
from jigsaw_forecast.plot.panels import (
    Panel,
    Shading,
    default_panels,
    field_panel,
    left_out,
)
from jigsaw_forecast.plot.projection import coastline, graticule, outline, project
from jigsaw_forecast.plot.reading import ForecastMaps, open_maps

FloatArray = npt.NDArray[np.float64]

ONE_HOUR = np.timedelta64(1, "h")
DEFAULT_DAYS = (0, 1, 3, 5, 10)
MOST_HOURS = 6  # rows of a forecast that is shorter than a day
NUM_COLOURS = 32
DOTS_PER_INCH = 120
INK = "#222222"
_TITLE: dict[str, Any] = {"fontsize": 17, "fontweight": "bold", "color": INK}
_HEADING: dict[str, Any] = {"fontsize": 11.5, "color": INK}
_NOTICE: dict[str, Any] = {"fontsize": 11, "fontstyle": "italic", "color": "#8a1c1c"}
_NOTICE_LETTERS_PER_INCH = 12.5  # of that font, on average

_log = logging.getLogger(__name__)


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
        variables: One column each; default: height over temperature, pressure over wind, and
            what else there is if it is little. What is left out is logged.
        lead_times: One row each; default: the initial state (or the first lead time) and the
            days 1, 3, 5 and 10, as far as the forecast has them; all of a shorter one.
        init_time: Which forecast of several; default: the first.
        member: Which of an ensemble; None for the first.
        notice: What must be said of this forecast; default: what the product says, or the
            record beside it.

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
    figure = draw(maps, panels, init, leads, notice_of(maps.attributes, notice))
    partial = output.with_name(f".{output.name}.partial")
    is_replaced = output.exists()
    try:
        _picture(figure).save(partial, format="png", optimize=True)
        os.replace(partial, output)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(f"cannot write {output}: {error.strerror or error}") from error
    if is_replaced:
        _log.info("%s: an older picture was replaced", output)
    _tell_what_is_not_drawn(forecast, maps, panels, init, leads)
    return output


def _tell_what_is_not_drawn(
    forecast: Path,
    maps: ForecastMaps,
    panels: Sequence[Panel],
    init: np.datetime64,
    leads: Sequence[np.timedelta64],
) -> None:
    rest = []
    if fields := left_out(maps.fields, panels):
        rest.append(f"{', '.join(map(str, fields))} (plot --variables)")
    others = [lead for lead in maps.lead_times if lead not in leads]
    if others:
        hours = ", ".join(f"+{lead / ONE_HOUR:g} h" for lead in others[:MOST_HOURS])
        more = f" and {len(others) - MOST_HOURS} more" if len(others) > MOST_HOURS else ""
        rest.append(f"{hours}{more} (plot --lead-times)")
    if (num_others := len(maps.init_times) - 1) > 0:
        times = "time" if num_others == 1 else "times"
        rest.append(f"{num_others} more initial {times} than {init} (plot --init)")
    if rest:
        _log.info("%s: not drawn: %s", forecast, "; ".join(rest))


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
    width = int((len(panels) * PANEL_INCHES[0] - 0.2) * _NOTICE_LETTERS_PER_INCH)
    notice_lines = textwrap.wrap(notice or "", width)
    page = Page(len(panels), len(leads), len(notice_lines))
    figure = Figure(figsize=(page.width, page.height), facecolor="white")
    FigureCanvasAgg(figure)  # text is measured on it
    of_member = "" if maps.member is None else f", member {maps.member}"
    title = f"{maps.attributes.get('title', 'Forecast')}{of_member}, started {_time_words(init)}"
    _fit(figure.text(0.5, page.up(0.3), title, ha="center", va="center", **_TITLE), page.width)
    if notice_lines:
        text = "\n".join(notice_lines)
        figure.text(0.5, page.up(0.52), text, ha="center", va="top", **_NOTICE)
    for column, panel in enumerate(panels):
        heading = figure.text(
            page.middle(column), page.up(page.header - 0.1), panel.title, ha="center", **_HEADING
        )
        _fit(heading, PANEL_INCHES[0])
        shaded = [_shaded_map(maps, panel.shading, init, lead) for lead in leads]
        norm = _norm(panel.shading, [values for values in shaded if values is not None])
        for row, lead in enumerate(leads):
            axes = figure.add_axes(page.panel(column, row))
            _draw_map(axes, shaded[row], _line_map(maps, panel, init, lead), panel, norm)
            _draw_times(axes, init, lead)
        if panel.shading is not None and norm is not None:
            _draw_bar(figure, figure.add_axes(page.bar(column)), panel.shading, norm)
    return figure


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
    last = maps.lead_times[-1]
    if last < np.timedelta64(24, "h"):
        thinning = -(-len(maps.lead_times) // MOST_HOURS)
        return init, list(maps.lead_times[::-thinning][::-1])
    days = [np.timedelta64(24 * day, "h") for day in DEFAULT_DAYS]
    later: list[np.timedelta64] = [day for day in days if day in maps.lead_times and day > first]
    if not later and last > first:
        later = [last]
    return init, [first, *later]


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
    """Round colour bounds that all rows share; the outermost values fall into the end colours."""
    if shading is None or not drawn:
        return None
    values = np.concatenate([one.ravel() for one in drawn])
    # what is never negative, wind speed and rain, has a long tail, and the tail is what matters
    most = 0.999 if shading.is_positive else 0.995
    low, high = (float(bound) for bound in np.quantile(values, [0.005, most]))
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
    # neither the colour nor the width of the lines of a field
    axes.plot(*coastline(), color="#6e5a4b", linewidth=1.0, alpha=0.9)
    if lines is not None and panel.contours is not None:
        step = panel.contours.step
        levels = np.arange(np.floor(lines.min() / step), np.ceil(lines.max() / step) + 1) * step
        drawn = axes.contour(x, y, lines, levels=levels, colors=INK, linewidths=0.8, alpha=0.9)
        labels = axes.clabel(drawn, levels[::2], inline=False, fontsize=6.5, fmt="%g")
        is_pressure = panel.contours.field.variable == "mean_sea_level_pressure"
        marks = mark_extremes(axes, lines, x, y, step) if is_pressure else []
        thin_labels(labels, marks)
    axes.plot(*outline(), color=INK, linewidth=1.0)
    axes.set_aspect("equal")
    axes.set_xlim(-2.72, 2.72)  # the map's half width is 2.706, its half height 1.317
    axes.set_ylim(-1.33, 1.33)
    axes.set_axis_off()


def _fit(text: Text, width_inches: float) -> None:
    """Makes the letters smaller until a text fits a width."""
    figure = text.get_figure()
    assert figure is not None
    extent = text.get_window_extent(renderer=figure.canvas.get_renderer())  # type: ignore[attr-defined]
    share = 0.98 * width_inches * figure.dpi / extent.width
    if share < 1.0:
        text.set_fontsize(float(text.get_fontsize()) * share)


def _draw_times(axes: Axes, init: np.datetime64, lead: np.timedelta64) -> None:
    hours = lead / ONE_HOUR
    words = "Initial state" if hours == 0 else f"Day {hours / 24:g}"
    if hours % 24:
        words = f"+{hours:g} h"
    axes.text(0.0, 1.03, words, transform=axes.transAxes, fontsize=12, fontweight="bold", color=INK)
    axes.text(
        1.0,
        1.03,
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
