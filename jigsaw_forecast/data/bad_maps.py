"""Maps that training must not see: missing values, and values that cannot be on Earth."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from jigsaw_forecast.data.store import Array, Store, Times, shorten
from jigsaw_forecast.errors import DataError
from jigsaw_forecast.fields import GRAVITY_M_S2, Field, plausible_range

MAX_TIMES_LISTED = 3  # of one field
# What is often forgotten, by variable: the quantity or unit, and what it is multiplied by or
# shifted by to become the variable's own.
_OFTEN = {
    "geopotential": ("geopotential height in m", GRAVITY_M_S2, 0.0),
    "mean_sea_level_pressure": ("in hPa", 100.0, 0.0),
    "specific_humidity": ("in g kg-1", 1e-3, 0.0),
    "temperature": ("in degC", 1.0, 273.15),
    "2m_temperature": ("in degC", 1.0, 273.15),
    "land_sea_mask": ("in %", 0.01, 0.0),
}


def describe_bad_maps(
    fields: Sequence[Field],
    times: Times,
    lowest: npt.NDArray[np.floating],
    highest: npt.NDArray[np.floating],
) -> str:
    """Every field with maps that hold missing or implausible values; empty where all are good.

    Args:
        fields: The fields.
        times: The times.
        lowest: Least value of each map, NaN where a value is missing, shape [T, F].
        highest: Greatest value, likewise.
    """
    bad = []
    for place, field in enumerate(fields):
        low, high = plausible_range(field)
        least, most = lowest[:, place], highest[:, place]
        is_bad = ~((least >= low) & (most <= high))
        if is_bad.any():
            found = _describe_values(field, least[is_bad], most[is_bad])
            bad.append(f"{field} at {_describe_times(times, is_bad)} ({found})")
    return f"missing or implausible values: {'; '.join(bad)}" if bad else ""


def describe_bad_static(name: str, values: npt.NDArray[np.floating]) -> str:
    """What is missing or implausible in a static map; empty where it is good.

    Args:
        name: WeatherBench 2 name.
        values: The map.
    """
    field = Field(name)
    low, high = plausible_range(field)
    least, most = np.atleast_1d(values.min()), np.atleast_1d(values.max())  # NaN passes into both
    if low <= least[0] and most[0] <= high:
        return ""
    return (
        f"static {name} has missing or implausible values: {_describe_values(field, least, most)}"
    )


def read_static(store: Store, name: str) -> Array:
    """A static map of a store, the rows that a model computes.

    Raises:
        DataError: It is missing, has missing values, or cannot be on Earth.
    """
    values = store.static(name)[: store.grid.num_model_lat]
    if bad := describe_bad_static(name, values):
        raise DataError(f"{store.path}: {bad}")
    return values


def _describe_times(times: Times, is_bad: npt.NDArray[np.bool_]) -> str:
    chosen = times[is_bad]
    if len(chosen) <= MAX_TIMES_LISTED:
        return shorten([str(time) for time in chosen])
    return f"{len(chosen)} of {len(times)} times read, {chosen[0]} to {chosen[-1]}"


def _describe_values(
    field: Field, least: npt.NDArray[np.floating], most: npt.NDArray[np.floating]
) -> str:
    """`missing values, 0.1 to 10 K, plausible 160 to 345 K; is it in degC?`."""
    low, high = plausible_range(field)
    is_there = ~(np.isnan(least) | np.isnan(most))
    parts = [] if is_there.all() else ["missing values"]
    text = ""
    if is_there.any():
        lowest, highest = float(least[is_there].min()), float(most[is_there].max())
        parts.append(f"{lowest:g} to {highest:g}")
        name, scale, offset = _OFTEN.get(field.variable, ("", 1.0, 0.0))
        if name and low <= lowest * scale + offset and highest * scale + offset <= high:
            text = f"; is it {name}?"
    return f"{', '.join(parts)}, plausible {low:g} to {high:g} {field.spec.units}{text}"
