"""Curves by lead time, spectra and rank histograms."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib import ticker

from jigsaw_forecast.verify.report.pictures import (
    INK,
    MAIN_COLOUR,
    Curve,
    Picture,
    draw_curves,
    lead_time_axis,
    new_panel,
    shorten,
    to_picture,
)
from jigsaw_forecast.verify.report.quantities import Quantity, lead_label

FloatArray = npt.NDArray[np.float64]

USEFUL_ACC = 0.6  # the usual limit of a useful forecast of the large scales


def draw_metric(
    quantity: Quantity, metric: str, words: str, curves: Sequence[Curve], name: str
) -> Picture:
    """One metric by lead time; x of the curves in hours, y in display units."""
    figure, axes = new_panel(f"{quantity.label}: {words}", len(curves))
    units = quantity.units_of(metric)
    draw_curves(axes, _in_days(curves))
    lead_time_axis(axes, np.concatenate([curve.x for curve in curves]))
    axes.set_ylabel(f"{words} ({units})" if units else words, fontsize=9.5, color=INK)
    if metric.startswith("acc"):
        axes.axhline(USEFUL_ACC, color="#888888", linewidth=0.9, linestyle=(0, (2, 2)))
        lowest = min(float(np.nanmin(curve.y, initial=1.0)) for curve in curves)
        axes.set_ylim(min(-0.05, lowest * 1.1) if lowest < 0.0 else 0.0, 1.03)
    elif metric == "bias":
        axes.axhline(0.0, color="#888888", linewidth=0.9)
    else:
        axes.set_ylim(bottom=0.0)
    alt = f"{words} of {quantity.label} by lead time. {_ends(curves, units)}"
    return to_picture(figure, name, alt)


def draw_spread_skill(quantity: Quantity, curves: Sequence[Curve], name: str) -> Picture:
    """Spread and error of the ensemble mean by lead time, in one picture."""
    figure, axes = new_panel(f"{quantity.label}: spread and error", len(curves))
    draw_curves(axes, _in_days(curves))
    lead_time_axis(axes, np.concatenate([curve.x for curve in curves]))
    axes.set_ylabel(quantity.units, fontsize=9.5, color=INK)
    axes.set_ylim(bottom=0.0)
    alt = (
        f"Spread of the members and RMSE of their mean for {quantity.label} by lead time; "
        f"equal where the spread is right. {_ends(curves, quantity.units)}"
    )
    return to_picture(figure, name, alt)


def draw_spectrum(title: str, units: str, curves: Sequence[Curve], name: str) -> Picture:
    """Energy by zonal wavenumber, both logarithmic; x of the curves is the wavenumber."""
    figure, axes = new_panel(title, len(curves))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(ticker.NullLocator())  # ten decades of them are a blur
    positive = [
        Curve(curve.name, curve.style, curve.x, np.where(curve.y > 0.0, curve.y, np.nan))
        for curve in curves
    ]
    drawn = [Curve(c.name, c.style, np.where(c.x > 0.0, c.x, np.nan), c.y) for c in positive]
    draw_curves(axes, drawn)
    axes.set_xlabel("zonal wavenumber", fontsize=9.5, color=INK)
    axes.set_ylabel(f"energy ({units})" if units else "energy", fontsize=9.5, color=INK)
    alt = (
        f"Zonal energy spectrum of {title} by wavenumber: {', '.join(c.name for c in curves)}; "
        "a curve below the truth's at high wavenumbers means that the forecast is too smooth."
    )
    return to_picture(figure, name, alt)


def draw_rank_histogram(
    quantity: Quantity, hours: float, frequencies: FloatArray, names: tuple[str, str]
) -> Picture:
    """How often the truth takes each rank among the members.

    Args:
        quantity: What is ranked.
        hours: Lead time.
        frequencies: Shares of all cases, shape [members + 1].
        names: Of the file; of the forecast, empty for the one that the report is about.
    """
    title = ", ".join(one for one in (quantity.label, lead_label(hours), names[1]) if one)
    figure, axes = new_panel(title)
    ranks = np.arange(1, frequencies.size + 1)
    axes.bar(ranks, frequencies, color=MAIN_COLOUR, width=0.9)
    flat = 1.0 / frequencies.size
    axes.axhline(flat, color="#D55E00", linewidth=1.4, linestyle="--")
    axes.text(
        0.99,
        flat,
        "flat",
        transform=axes.get_yaxis_transform(),
        ha="right",
        va="bottom",
        fontsize=8.5,
        color="#8f3e00",
        bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.0},
    )
    axes.set_xlabel("rank of the truth among the members", fontsize=9.5, color=INK)
    axes.set_ylabel("share of cases", fontsize=9.5, color=INK)
    axes.set_ylim(0.0, max(float(np.nanmax(frequencies)) * 1.1, flat * 1.5))
    if ranks.size <= 15:
        axes.set_xticks(ranks)
    alt = (
        f"Rank histogram of {title}: lowest rank "
        f"{frequencies[0]:.3f}, highest {frequencies[-1]:.3f}, flat would be {flat:.3f}."
    )
    return to_picture(figure, names[0], alt)


def _in_days(curves: Sequence[Curve]) -> list[Curve]:
    return [Curve(curve.name, curve.style, curve.x / 24.0, curve.y) for curve in curves]


def _ends(curves: Sequence[Curve], units: str) -> str:
    """The first and the last value of each curve, in words."""
    parts = []
    for curve in curves:
        is_there = np.flatnonzero(np.isfinite(curve.y))
        if is_there.size:
            first, last = is_there[0], is_there[-1]
            parts.append(
                f"{shorten(curve.name)}: {curve.y[first]:.4g} at {lead_label(curve.x[first])}, "
                f"{curve.y[last]:.4g} at {lead_label(curve.x[last])}"
            )
    return f"{'; '.join(parts)}{f' ({units})' if units else ''}."
