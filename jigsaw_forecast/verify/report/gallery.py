"""All pictures of a scoring, in the order of the report."""

import re
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from jigsaw_forecast.verify.report.draw_curves import (
    draw_metric,
    draw_rank_histogram,
    draw_spectrum,
    draw_spread_skill,
)
from jigsaw_forecast.verify.report.draw_maps import draw_bias_map, round_bounds
from jigsaw_forecast.verify.report.pictures import INK, Curve, Picture, Style
from jigsaw_forecast.verify.report.quantities import (
    Quantity,
    headline_of,
    lead_label,
    quantities_of,
)
from jigsaw_forecast.verify.report.read import Model, Scoring
from jigsaw_forecast.verify.report.tables import spread_hours

FloatArray = npt.NDArray[np.float64]

TRUTH = "truth"
BAND_DEGREES = (30.0, 60.0)
NUM_MAP_HOURS = 3
NUM_SPECTRUM_HOURS = 2
NUM_RANK_HOURS = 3


def file_name(*words: object) -> str:
    """A file name without anything that a file system could mind."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(map(str, words))).strip("-.")


def metric_pictures(
    scoring: Scoring,
    quantities: Sequence[Quantity],
    metric: str,
    words: str,
    styles: dict[str, Style],
) -> Iterator[Picture]:
    """One picture of a metric by lead time for each quantity that has it."""
    hours = scoring.hours
    for quantity in quantities:
        curves = [
            Curve(
                model.title,
                styles[model.name],
                hours,
                model.values(quantity, metric, scoring.region, hours) * quantity.scale_of(metric),
            )
            for model in (scoring.main, *scoring.others)
        ]
        curves = [curve for curve in curves if np.isfinite(curve.y).any()]
        if curves:
            yield draw_metric(quantity, metric, words, curves, file_name(metric, quantity.short))


def spread_pictures(
    scoring: Scoring, quantities: Sequence[Quantity], styles: dict[str, Style]
) -> Iterator[Picture]:
    """Spread and error of the ensemble mean, for the forecast and for compared ensembles."""
    hours = scoring.hours
    for quantity in quantities:
        curves = []
        for model in (scoring.main, *scoring.others):
            colour = styles[model.name].colour
            for metric, words, line in (
                ("debiased_ensemble_mean_mse", "error", "-"),
                ("ensemble_variance", "spread", "--"),
            ):
                square = model.values(quantity, metric, scoring.region, hours)
                # debiasing can leave less than nothing
                root = np.sqrt(np.where(square >= 0.0, square, np.nan)) * quantity.scale
                if np.isfinite(root).any():
                    name = f"{words}, {model.title}"
                    curves.append(Curve(name, Style(colour, line), hours, root))
        if curves:
            yield draw_spread_skill(quantity, curves, file_name("spread", quantity.short))


def bias_pictures(scoring: Scoring, model: Model, num_hours: int) -> Iterator[Picture]:
    """Maps of the mean error; one scale of colours for all lead times of a quantity."""
    data = scoring.open(model.maps) if model.maps else None
    if data is None:
        return
    with data:
        hours = np.asarray(data["lead_time"].values, dtype=np.float64)
        chosen = spread_hours(hours, num_hours) if num_hours > 1 else [_nearest(hours, 120.0)]
        for quantity in quantities_of(data):
            field = data[quantity.variable].sel(quantity.place())
            field = field.sortby("latitude", ascending=False).sortby("longitude")
            maps = [
                field.sel(lead_time=hour).transpose("latitude", "longitude").values * quantity.scale
                for hour in chosen
            ]
            if not np.isfinite(maps).any():
                continue
            bounds = round_bounds(np.asarray(maps, dtype=np.float64))
            axes = (
                field["latitude"].values.astype(np.float64),
                field["longitude"].values.astype(np.float64),
            )
            for hour, values in zip(chosen, maps, strict=True):
                name = file_name("bias", model.name, quantity.short, f"{hour:03g}h")
                title = f"{quantity.label}, {lead_label(hour)}"
                if model.name != scoring.main.name:
                    title = f"{title}, {model.title}"
                words = (name, title, quantity.units)
                yield draw_bias_map(values.astype(np.float64), axes, bounds, words)


def spectrum_pictures(scoring: Scoring, styles: dict[str, Style]) -> Iterator[Picture]:
    """Zonal spectra of all models and the truth, mean over 30 to 60 degrees of both sides."""
    data = scoring.open("spectra.nc")
    if data is None:
        return
    with data:
        models = [str(name) for name in np.atleast_1d(data["model"].values)]
        distance = np.abs(np.asarray(data["latitude"].values))
        band = (distance >= BAND_DEGREES[0]) & (distance <= BAND_DEGREES[1])
        if not band.any():
            scoring.left_out.append("Spectra: no latitude between 30 and 60 degrees.")
            return
        hours = np.asarray(data["lead_time"].values, dtype=np.float64)
        chosen = spread_hours(hours, NUM_SPECTRUM_HOURS)
        titles = {model.name: model.title for model in scoring.models} | {TRUTH: TRUTH}
        looks = styles | {TRUTH: Style(INK, "-", "", 2.4)}
        waves = data["zonal_wavenumber"].values.astype(np.float64)
        for quantity in headline_of(quantities_of(data)):
            field = data[quantity.variable].sel(quantity.place())
            for hour in chosen:
                mean = field.sel(lead_time=hour).isel(latitude=np.flatnonzero(band))
                energy = mean.mean("latitude", skipna=False).transpose("model", "zonal_wavenumber")
                curves = [
                    Curve(titles.get(name, name), looks[name], waves, row * quantity.scale**2)
                    for name, row in sorted(
                        zip(models, energy.values.astype(np.float64), strict=True),
                        key=lambda one: one[0] != TRUTH,
                    )
                    if name in looks and np.isfinite(row).any()
                ]
                if curves:
                    title = f"{quantity.label}, {lead_label(hour)}"
                    units = f"m {quantity.squared_units}" if quantity.units else ""
                    name = file_name("spectrum", quantity.short, f"{hour:03g}h")
                    yield draw_spectrum(title, units, curves, name)


def rank_pictures(scoring: Scoring, model: Model) -> Iterator[Picture]:
    """Rank histograms of the headline quantities."""
    is_main = model.name == scoring.main.name
    data = scoring.open("rank_histogram.nc" if is_main else f"rank_histogram_{model.name}.nc")
    if data is None:
        return
    with data:
        hours = np.asarray(data["lead_time"].values, dtype=np.float64)
        for quantity in headline_of(quantities_of(data)):
            field = data[quantity.variable].sel(quantity.place())
            for hour in spread_hours(hours, NUM_RANK_HOURS):
                shares = field.sel(lead_time=hour).values.astype(np.float64)
                if np.isfinite(shares).all():
                    name = file_name("ranks", model.name, quantity.short, f"{hour:03g}h")
                    title = "" if is_main else model.title
                    yield draw_rank_histogram(quantity, hour, shares, (name, title))


def _nearest(hours: FloatArray, wanted: float) -> float:
    return float(hours[np.abs(hours - wanted).argmin()])
