"""CF attributes that the zarr and netCDF products share.

Source: CF conventions 1.11, https://cfconventions.org; dims as WeatherBench 2 names them.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jigsaw_forecast.fields import VARIABLES, Role
from jigsaw_forecast.forecast.product import OutputSpec

EPOCH = np.datetime64("1970-01-01T00:00:00", "s")


@dataclass(frozen=True)
class Coordinate:
    """One coordinate variable; its name is that of its dim.

    Attributes:
        name: Name of the dim.
        values: As stored, one-dimensional.
        attributes: CF attributes.
    """

    name: str
    values: npt.NDArray[np.int64] | npt.NDArray[np.float64]
    attributes: dict[str, str]


def coordinates(spec: OutputSpec) -> list[Coordinate]:
    """The dims `time`, `number` and `level` (if any), `prediction_timedelta`, then the grid's."""
    seconds = np.array([(init - EPOCH) // np.timedelta64(1, "s") for init in spec.init_times])
    time_units, divisor = ("hours", 3600) if (seconds % 3600 == 0).all() else ("seconds", 1)
    axes = [
        Coordinate(
            "time",
            (seconds // divisor).astype(np.int64),
            {
                "standard_name": "forecast_reference_time",
                "long_name": "initial time",
                "units": f"{time_units} since 1970-01-01T00:00:00",
                "calendar": "proleptic_gregorian",
                "units_metadata": "leap_seconds: none",
            },
        ),
        Coordinate(
            "prediction_timedelta",
            np.array(spec.lead_hours, dtype=np.int64),
            {
                "standard_name": "forecast_period",
                "long_name": "lead time",
                "units": "hours",
                # xarray decodes to a timedelta only where this says so
                "dtype": "timedelta64[ns]",
            },
        ),
    ]
    if spec.members:
        attributes = {"standard_name": "realization", "long_name": "ensemble member", "units": "1"}
        axes.insert(1, Coordinate("number", np.array(spec.members, dtype=np.int64), attributes))
    if spec.levels_hpa:
        attributes = {
            "standard_name": "air_pressure",
            "long_name": "pressure level",
            "units": "hPa",
            "positive": "down",
            "axis": "Z",
        }
        axes.append(Coordinate("level", np.array(spec.levels_hpa, dtype=np.int64), attributes))
    latitude = {"standard_name": "latitude", "units": "degrees_north", "axis": "Y"}
    longitude = {"standard_name": "longitude", "units": "degrees_east", "axis": "X"}
    return [
        *axes,
        Coordinate("latitude", spec.grid.latitudes, latitude),
        Coordinate("longitude", spec.grid.longitudes, longitude),
    ]


def variable_dims(spec: OutputSpec, variable: str) -> tuple[str, ...]:
    """Dims of a variable: without `level` on a single level, `number` only in an ensemble."""
    has_level = any(field.level_hpa for field in spec.fields if field.variable == variable)
    level = ("level",) if has_level else ()
    number = ("number",) if spec.members else ()
    return ("time", *number, "prediction_timedelta", *level, "latitude", "longitude")


def variable_attributes(variable: str) -> dict[str, str]:
    """`units`, `standard_name`, `long_name`, and what temperatures and sums in time need."""
    row = VARIABLES[variable]
    attributes = {
        "units": row.units,
        "standard_name": row.standard_name,
        "long_name": row.name.replace("_", " "),
    }
    if row.units == "K":
        attributes["units_metadata"] = "temperature: on_scale"
    if row.name == "total_precipitation_6hr":
        attributes["comment"] = "sum over the 6 hours before the valid time"
    return attributes


def global_attributes(spec: OutputSpec) -> dict[str, str]:
    """Provenance, and the fields that are meant to be there."""
    assert all(field.spec.role is not Role.STATIC for field in spec.fields), "static field"
    return {
        "Conventions": "CF-1.11",
        **spec.attributes,
        "fields": " ".join(map(str, spec.fields)),
    }
