"""Writes what a score found: tables, maps, spectra, rank histograms and the protocol."""

import csv
import json
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xarray as xr

from jigsaw_forecast import __version__
from jigsaw_forecast.verify.archive import Times
from jigsaw_forecast.verify.metrics import (
    ACC_POOLED_TEXT,
    ACC_TEXT,
    WIND_VECTORS,
    compute_metrics,
    metric_names,
    wind_vector_metrics,
)
from jigsaw_forecast.verify.pieces import COUNT, TRUTH, Piece
from jigsaw_forecast.verify.request import FORECAST, ModelPlan, ScorePlan
from jigsaw_forecast.verify.spectra import zonal_frequencies
from jigsaw_forecast.verify.statistics_file import FOLDER, StatisticsFile

Array64 = npt.NDArray[np.float64]

Entries = Mapping[str, object]
# dims, values, attributes
_Entry = tuple[tuple[str, ...], npt.NDArray[np.floating], dict[str, str]]

MAX_LISTED_INITS = 400  # in an attribute; more are told as first, last and number
MAX_LISTED_MISSING = 2000
LAND_TEXT = "weights times the truth's land_sea_mask, a fraction without threshold (weatherbench2)"
NAN_TEXT = (
    "a missing value that counts in a region makes the region's mean of that initial time missing, "
    "and so the mean over initial times (weatherbench2, skipna=False); points of zero weight never "
    "count; SEEPS leaves missing points out"
)
SKIPNA_TEXT = "missing values are left out of means in space and time (weatherbench2, skipna=True)"
MEMBER_TEXT = (
    "mse, rmse, mae, bias and acc are of the ensemble mean; CRPS is fair: the spread is over "
    "M (M - 1) pairs"
)
_JSON_NAME = "protocol.json"


def scores_name(model: ModelPlan) -> str:
    """`scores.nc` of the scored forecast, `scores_NAME.nc` of the others."""
    return "scores.nc" if model.name == FORECAST else f"scores_{model.name}.nc"


def make_scores(
    plan: ScorePlan, model: ModelPlan, statistics: StatisticsFile
) -> tuple[xr.Dataset, Times]:
    """The table of a model, metric by region, lead time and level, and its initial times."""
    skipna = plan.skipna
    seeps = tuple(name for name in statistics.names if name.startswith("seeps"))
    metrics = metric_names(model.num_members, seeps)
    arrays: dict[str, _Entry] = {}
    pairs = np.zeros(len(plan.lead_hours), dtype=np.int64)
    is_scored = np.zeros(plan.init_times.size, dtype=bool)

    def table(found: dict[str, Array64], has_levels: bool) -> tuple[tuple[str, ...], Array64]:
        shape = next(iter(found.values())).shape
        values = np.stack([found.get(name, np.full(shape, np.nan)) for name in metrics])
        dims = ("metric", "region", "lead_time", "level")
        return (dims, values) if has_levels else (dims[:3], values[..., 0])

    for variable in plan.variables:
        count = statistics.read(variable, COUNT)
        assert count is not None
        counted = np.any(count > 0, axis=(1, 3))
        pairs = np.maximum(pairs, counted.sum(axis=0))
        is_scored |= counted.any(axis=1)
        found = compute_metrics(
            lambda name, variable=variable: statistics.read(variable, name),  # type: ignore[misc]
            count,
            model.num_members,
            skipna,
        )
        dims, values = table(found, statistics.has_levels(variable))
        arrays[variable] = (dims, values, {"units": plan.units[variable]})
    for vector, components in WIND_VECTORS.items():
        if not all(one in plan.variables for one in components):
            continue
        squares = tuple(statistics.read(one, "mse") for one in components)
        counts = tuple(statistics.read(one, COUNT) for one in components)
        found = wind_vector_metrics(squares, counts, skipna)  # type: ignore[arg-type]
        dims, values = table(found, statistics.has_levels(components[0]))
        arrays[vector] = (dims, values, {"units": plan.units[components[0]]})
    coordinates: dict[str, object] = {
        "metric": list(metrics),
        "region": list(plan.regions),
        "lead_time": np.array(plan.lead_hours, dtype=np.int64),
        "num_init_times": ("lead_time", pairs),
    }
    if statistics.levels:
        coordinates["level"] = np.array(statistics.levels, dtype=np.int32)
    times = plan.init_times[is_scored]
    scores = xr.Dataset(arrays, coords=coordinates, attrs=_attributes_of(plan, model, times))
    return scores, times


def _attributes_of(plan: ScorePlan, model: ModelPlan, times: Times) -> dict[str, str | int]:
    """The protocol as attributes of a table."""
    inits = [str(one) for one in times]
    listed = ", ".join(inits)
    if len(inits) > MAX_LISTED_INITS:
        listed = f"{inits[0]} to {inits[-1]}, {len(inits)} of them"
    return {
        "title": "Scores against the truth by the conventions of WeatherBench 2",
        "model": model.name,
        "forecast": ", ".join(map(str, model.paths)) or f"{model.baseline} made of the truth",
        "truth": ", ".join(map(str, plan.truth)),
        "climatology": str(plan.climatology) if plan.climatology is not None else "none",
        "resolution": plan.grid_name,
        "regridded": "conservatively" if plan.resolution is not None else "no",
        "init_times": listed,
        "num_init_times": len(inits),
        "num_missing_pairs": len(model.missing),
        "acc": ACC_TEXT,
        "acc_pooled": ACC_POOLED_TEXT,
        "land_sea_mask": LAND_TEXT,
        "nan_policy": SKIPNA_TEXT if plan.skipna else NAN_TEXT,
        "members": f"{model.num_members}; {MEMBER_TEXT}" if model.num_members else "none",
        "precision": "float64",
        "comparison": model.comparison,
        "notice": plan.notice,
        "jigsaw_forecast_version": __version__,
    }


def write_csv(path: Path, tables: Sequence[tuple[str, xr.Dataset]]) -> None:
    """All scores of all models as one long table."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "model",
                "variable",
                "level",
                "region",
                "lead_time",
                "metric",
                "value",
                "num_init_times",
            ]
        )
        for model, scores in tables:
            counts = scores["num_init_times"].values
            metrics, regions = scores["metric"].values, scores["region"].values
            leads = scores["lead_time"].values
            for variable, array in scores.data_vars.items():
                values = array.values if "level" in array.dims else array.values[..., None]
                levels = scores["level"].values if "level" in array.dims else [""]
                applies = ~np.isnan(values).all(axis=(1, 2))  # metric and level
                for m, level in np.argwhere(applies):
                    for r, region in enumerate(regions):
                        for j, lead in enumerate(leads):
                            writer.writerow(
                                [model, variable, levels[level], region, lead, metrics[m],
                                 repr(float(values[m, r, j, level])), counts[j]]
                            )  # fmt: skip


def make_maps(plan: ScorePlan, model: ModelPlan, sums: Piece) -> xr.Dataset | None:
    """Mean error maps of headline fields at a few lead times."""
    mine = {key[1]: total for key, total in sums.maps.items() if key[0] == model.name}
    if not mine:
        return None
    levels = sorted(
        {plan.levels[v][place] for v, place in plan.map_levels.items() if plan.levels[v]}
    )
    arrays: dict[str, _Entry] = {}
    for variable, total in mine.items():
        count = sums.map_counts[(model.name, variable)].astype(np.float64)[:, None, None]
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = (total.value / count).astype(np.float32)
        attrs = {"units": plan.units[variable], "long_name": f"mean error of {variable}"}
        if not plan.levels[variable]:
            arrays[variable] = (("lead_time", "latitude", "longitude"), mean, attrs)
            continue
        full = np.full((mean.shape[0], len(levels), *mean.shape[1:]), np.nan, dtype=np.float32)
        full[:, levels.index(plan.levels[variable][plan.map_levels[variable]])] = mean
        arrays[variable] = (("lead_time", "level", "latitude", "longitude"), full, attrs)
    coordinates: dict[str, object] = {
        "lead_time": np.array([plan.lead_hours[one] for one in plan.map_leads], dtype=np.int64),
        "latitude": plan.latitudes,
        "longitude": plan.longitudes,
    }
    if levels:
        coordinates["level"] = np.array(levels, dtype=np.int32)
    return xr.Dataset(arrays, coords=coordinates, attrs=_labels(plan, model))


def _labels(plan: ScorePlan, model: ModelPlan) -> dict[str, str]:
    return {"model": model.name, "comparison": model.comparison, "notice": plan.notice}


def make_spectra(plan: ScorePlan, sums: Piece) -> xr.Dataset | None:
    """Mean zonal energy spectra of the forecasts and of the truth."""
    models = list(dict.fromkeys(key[0] for key in sums.spectra))
    if not models:
        return None
    order = [m.name for m in plan.models if m.name in models] + [m for m in models if m == TRUTH]
    levels = sorted({level for held in plan.levels.values() for level in held})
    arrays: dict[str, _Entry] = {}
    for variable, held in plan.levels.items():
        one = next((total for key, total in sums.spectra.items() if key[1] == variable), None)
        if one is None:
            continue  # none of its pairs was scored
        size = one.high.shape
        full = np.full((len(order), size[0], max(1, len(levels)), *size[2:]), np.nan)
        for place, model in enumerate(order):
            total = sums.spectra.get((model, variable))
            if total is None:
                continue
            count = sums.spectra_counts[(model, variable)].astype(np.float64)
            with np.errstate(invalid="ignore", divide="ignore"):
                mean = total.value / count[:, None, None, None]
            full[place][:, [levels.index(one) for one in held] if held else [0]] = mean
        dims = ("model", "lead_time", "level", "latitude", "zonal_wavenumber")
        attrs = {"units": f"m ({plan.units[variable]})2"}
        if held:
            arrays[variable] = (dims, full, attrs)
        else:
            arrays[variable] = ((*dims[:2], *dims[3:]), full[:, :, 0], attrs)
    frequency = zonal_frequencies(plan.latitudes, plan.longitudes.size)
    with np.errstate(divide="ignore"):
        wavelength = 1.0 / frequency
    dims_of_wave = ("latitude", "zonal_wavenumber")
    coordinates: dict[str, object] = {
        "model": order,
        "lead_time": np.array([plan.lead_hours[one] for one in plan.spectra_leads], dtype=np.int64),
        "latitude": plan.latitudes,
        "zonal_wavenumber": np.arange(frequency.shape[1], dtype=np.int64),
        "frequency": (dims_of_wave, frequency, {"units": "1 / m"}),
        "wavelength": (dims_of_wave, wavelength, {"units": "m"}),
    }
    if levels:
        coordinates["level"] = np.array(levels, dtype=np.int32)
    return xr.Dataset(arrays, coords=coordinates, attrs={"notice": plan.notice})


def make_rank_histogram(plan: ScorePlan, model: ModelPlan, sums: Piece) -> xr.Dataset | None:
    """Relative frequencies of the truth's rank, over all points alike."""
    mine = {key[1]: count for key, count in sums.ranks.items() if key[0] == model.name}
    if not mine:
        return None
    levels = sorted({level for held in plan.levels.values() for level in held})
    arrays: dict[str, _Entry] = {}
    for variable, count in mine.items():
        with np.errstate(invalid="ignore", divide="ignore"):
            frequency = count / count.sum(axis=-1, keepdims=True).astype(np.float64)
        held = plan.levels[variable]
        if not held:
            arrays[variable] = (("lead_time", "bins"), frequency[:, 0], {})
            continue
        full = np.full((frequency.shape[0], len(levels), frequency.shape[2]), np.nan)
        full[:, [levels.index(one) for one in held]] = frequency
        arrays[variable] = (("lead_time", "level", "bins"), full, {})
    coordinates: dict[str, object] = {
        "lead_time": np.array(plan.lead_hours, dtype=np.int64),
        "bins": np.arange(model.num_members + 1, dtype=np.int64),
    }
    if levels:
        coordinates["level"] = np.array(levels, dtype=np.int32)
    labels = _labels(plan, model) | {"ties": "in the order of numpy's sort, as in weatherbench2"}
    return xr.Dataset(arrays, coords=coordinates, attrs=labels)


def write_protocol(
    output: Path, plans: Sequence[ScorePlan], entries: Mapping[str, Entries],
    command: Sequence[str],
) -> None:  # fmt: skip
    """Writes everything that was decided, for people and for the report.

    Args:
        output: Folder to write into.
        plans: What was scored.
        entries: By model, what is known only after scoring: its initial times and its files.
        command: Of the user.
    """
    first = plans[0]
    levels = {name: {"levels": [_plain(v) for v in held], "units": first.units[name]}
              for name, held in first.levels.items()}  # fmt: skip
    for vector, components in WIND_VECTORS.items():
        if all(one in first.levels for one in components):
            levels[vector] = levels[components[0]]
    hours = sorted({int((t - t.astype("datetime64[D]")) / np.timedelta64(1, "h"))
                    for t in first.init_times})  # fmt: skip
    has_members = any(model.num_members for plan in plans for model in plan.models)
    protocol = {
        "format": 1,
        "versions": {"jigsaw_forecast": __version__, "numpy": np.__version__,
                     "xarray": xr.__version__, "python": platform.python_version()},
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": list(command),
        "models": [_model_entry(plan, model, entries[model.name])
                   for plan in plans for model in plan.models],
        "truth": ", ".join(map(str, first.truth)),
        "climatology": str(first.climatology) if first.climatology is not None else None,
        "resolution": first.grid_name,
        "regions": list(first.regions),
        "lead_times": first.lead_hours,
        "variables": levels,
        "init_hours": hours,
        "acc": ACC_TEXT,
        "acc_pooled": ACC_POOLED_TEXT,
        "land_sea_mask": LAND_TEXT,
        "nan_policy": SKIPNA_TEXT if first.skipna else NAN_TEXT,
        "members": MEMBER_TEXT if has_members else "",
        "warnings": list(dict.fromkeys(w for plan in plans for w in plan.warnings)),
        "notice": first.notice,
    }  # fmt: skip
    path = output / _JSON_NAME
    path.write_text(json.dumps(protocol, indent=1) + "\n", encoding="utf-8")


def _model_entry(plan: ScorePlan, model: ModelPlan, entries: Entries) -> dict[str, object]:
    missing = [
        {"init_time": str(one.init_time), "lead_time": int(one.lead_time / np.timedelta64(1, "h")),
         "variable": one.variable or None, "why": one.why}
        for one in model.missing[:MAX_LISTED_MISSING]
    ]  # fmt: skip
    label = model.paths[0].name if model.paths else model.baseline
    return {
        "name": model.name,
        "label": model.name if model.kind == "compare" else label,
        "kind": model.kind,
        "path": ", ".join(map(str, model.paths)) or None,
        "truth": ", ".join(map(str, plan.truth)),
        "resolution": plan.grid_name,
        "regridded_from": "own grid" if plan.resolution is not None else None,
        "members": max(1, model.num_members),
        "missing": missing,
        "num_missing": len(model.missing),
        "lead_times": plan.lead_hours,
        "comparable": not model.comparison,
        "comparison": model.comparison,
        "scores": scores_name(model),
        "statistics": f"{FOLDER}/{model.name}.nc",
        "notes": list(model.notes),
        "attributes": dict(model.attributes),
        **entries,
    }


def _plain(level: float) -> int | float:
    return int(level) if level == int(level) else level
