"""Recognises variables and coordinates of netCDF and zarr by name, CF attributes and units."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np
import xarray as xr

from jigsaw_forecast.data.conversions import to_si
from jigsaw_forecast.data.records import (
    DIAGNOSTIC_HOURS,
    DIAGNOSTIC_ONLY,
    GEOPOTENTIAL_HEIGHT,
    RELATIVE_HUMIDITY,
    SURFACE_HEIGHT,
    Float64Array,
)
from jigsaw_forecast.fields import VARIABLES, LevelType, Role, Variable, find_variable


class Axis(Enum):
    """What a dimension stands for."""

    LATITUDE = "latitude"
    LONGITUDE = "longitude"
    PRESSURE = "pressure"
    MODEL_LEVEL = "model level"
    TIME = "time"
    VALID_TIME = "valid time"
    REFERENCE_TIME = "forecast reference time"
    LEAD_TIME = "lead time"
    MEMBER = "member"
    OTHER = "other"


_AXIS_BY_NAME = {
    "latitude": Axis.LATITUDE,
    "lat": Axis.LATITUDE,
    "longitude": Axis.LONGITUDE,
    "lon": Axis.LONGITUDE,
    "level": Axis.PRESSURE,
    "levelist": Axis.PRESSURE,
    "plev": Axis.PRESSURE,
    "pressure": Axis.PRESSURE,
    "pressure_level": Axis.PRESSURE,
    "lev": Axis.PRESSURE,  # MERRA-2; of hybrid levels where its units are not pressure
    "lv_isbl0": Axis.PRESSURE,
    "isobaric": Axis.PRESSURE,
    "isobaricinhpa": Axis.PRESSURE,
    "isobaricinpa": Axis.PRESSURE,
    "hybrid": Axis.MODEL_LEVEL,
    "model_level": Axis.MODEL_LEVEL,
    "sigma": Axis.MODEL_LEVEL,
    "time": Axis.TIME,
    "valid_time": Axis.VALID_TIME,
    "init_time": Axis.REFERENCE_TIME,
    "forecast_reference_time": Axis.REFERENCE_TIME,
    "prediction_timedelta": Axis.LEAD_TIME,
    "lead_time": Axis.LEAD_TIME,
    "step": Axis.LEAD_TIME,
    "forecast_period": Axis.LEAD_TIME,
    "number": Axis.MEMBER,
    "member": Axis.MEMBER,
    "realization": Axis.MEMBER,
    "ensemble": Axis.MEMBER,
}
_AXIS_BY_STANDARD_NAME = {
    "latitude": Axis.LATITUDE,
    "longitude": Axis.LONGITUDE,
    "air_pressure": Axis.PRESSURE,
    "time": Axis.TIME,
    "forecast_reference_time": Axis.REFERENCE_TIME,
    "forecast_period": Axis.LEAD_TIME,
    "realization": Axis.MEMBER,
    "grid_latitude": Axis.OTHER,
    "grid_longitude": Axis.OTHER,
}
_LATITUDE_UNITS = ("degrees_north", "degree_north", "degrees_n", "degree_n")
_LONGITUDE_UNITS = ("degrees_east", "degree_east", "degrees_e", "degree_e")
_NEEDS_UNITS = ("lev",)  # model levels as often as pressure
_PA_NAMES = ("plev", "isobaricinpa")  # in Pa where they do not say
_MAX_LEVEL_HPA = 1100.0

_VARIABLE_BY_NAME = {
    "ta": "temperature",
    "air": "temperature",  # NCEP reanalysis
    "uwnd": "u_component_of_wind",
    "vwnd": "v_component_of_wind",
    "shum": "specific_humidity",
    "rhum": RELATIVE_HUMIDITY,
    "slp": "mean_sea_level_pressure",
    "qv": "specific_humidity",  # MERRA-2
    "h": GEOPOTENTIAL_HEIGHT,
    "u10m": "10m_u_component_of_wind",
    "v10m": "10m_v_component_of_wind",
    "ua": "u_component_of_wind",
    "va": "v_component_of_wind",
    "hus": "specific_humidity",
    "zg": GEOPOTENTIAL_HEIGHT,
    "gh": GEOPOTENTIAL_HEIGHT,
    "hgt": GEOPOTENTIAL_HEIGHT,
    "geopotential_height": GEOPOTENTIAL_HEIGHT,
    "hur": RELATIVE_HUMIDITY,
    "r": RELATIVE_HUMIDITY,
    "rh": RELATIVE_HUMIDITY,
    "relative_humidity": RELATIVE_HUMIDITY,
    "tas": "2m_temperature",
    "uas": "10m_u_component_of_wind",
    "vas": "10m_v_component_of_wind",
    "psl": "mean_sea_level_pressure",
    "orog": SURFACE_HEIGHT,
    "orography": SURFACE_HEIGHT,
    "sftlf": "land_sea_mask",
    "total_precipitation": "total_precipitation_6hr",
}
_ON_PRESSURE_BY_STANDARD_NAME = {
    "geopotential": "geopotential",
    "geopotential_height": GEOPOTENTIAL_HEIGHT,
    "air_temperature": "temperature",
    "eastward_wind": "u_component_of_wind",
    "northward_wind": "v_component_of_wind",
    "specific_humidity": "specific_humidity",
    "relative_humidity": RELATIVE_HUMIDITY,
}
_AT_SURFACE_BY_STANDARD_NAME = {
    "air_pressure_at_mean_sea_level": "mean_sea_level_pressure",
    "air_pressure_at_sea_level": "mean_sea_level_pressure",
    "surface_geopotential": "geopotential_at_surface",
    "surface_altitude": SURFACE_HEIGHT,
    "land_area_fraction": "land_sea_mask",
    "land_binary_mask": "land_sea_mask",
}
# With a scalar height coordinate, as CMIP writes them.
_AT_HEIGHT_BY_STANDARD_NAME = {
    ("air_temperature", 2.0): "2m_temperature",
    ("eastward_wind", 10.0): "10m_u_component_of_wind",
    ("northward_wind", 10.0): "10m_v_component_of_wind",
}
_NOT_INSTANT_METHODS = ("time: mean", "time: sum", "time: maximum", "time: minimum")


@dataclass(frozen=True)
class Quantity:
    """What an array holds.

    Attributes:
        variable: As in `FieldRecord`.
        why: Why a forecast cannot use it, otherwise empty.
    """

    variable: str
    why: str


def axis_of(name: str, coordinate: xr.DataArray | None) -> Axis:
    """What a dimension or scalar coordinate stands for.

    Args:
        name: Its name.
        coordinate: Its coordinate variable, None where it has none.
    """
    attrs = coordinate.attrs if coordinate is not None else {}
    units = str(attrs.get("units", "")).lower()
    standard_name = str(attrs.get("standard_name", ""))
    if units in _LATITUDE_UNITS:
        return Axis.LATITUDE
    if units in _LONGITUDE_UNITS:
        return Axis.LONGITUDE
    if standard_name.startswith("atmosphere_hybrid") or "sigma" in standard_name:
        return Axis.MODEL_LEVEL
    if name.lower() == "valid_time":  # cfgrib may give both it and the initial time the name "time"
        return Axis.VALID_TIME
    if standard_name in _AXIS_BY_STANDARD_NAME:
        return _AXIS_BY_STANDARD_NAME[standard_name]
    if coordinate is not None and np.issubdtype(coordinate.dtype, np.timedelta64):
        return Axis.LEAD_TIME
    axis = _AXIS_BY_NAME.get(name.lower(), Axis.OTHER)
    has_units = bool(units) or name.lower() not in _NEEDS_UNITS
    if axis is Axis.PRESSURE and units and to_si("mean_sea_level_pressure", units) is None:
        return Axis.MODEL_LEVEL
    if axis is Axis.PRESSURE and not has_units:
        return Axis.MODEL_LEVEL
    return axis


def levels_hpa(name: str, coordinate: xr.DataArray) -> Float64Array:
    """Pressure levels in hPa by the coordinate's units; without units by its name."""
    values = np.asarray(coordinate.values, dtype=np.float64)
    units = str(coordinate.attrs.get("units", ""))
    if not units:
        units = "Pa" if name.lower() in _PA_NAMES else "hPa"
    scale = to_si("mean_sea_level_pressure", units)
    assert scale is not None, "axis_of lets only units of pressure through"
    return np.round(values * scale[0] / 100.0, 6)


def recognise(array: xr.DataArray, has_pressure: bool, has_model_levels: bool) -> Quantity:
    """What an array holds, by its name first, then by its CF standard name.

    Args:
        array: The array with its attributes.
        has_pressure: It has a pressure coordinate.
        has_model_levels: It has a coordinate of model levels.
    """
    name, units = str(array.name), str(array.attrs.get("units", ""))
    variable = _name_of(array, name, has_pressure)
    if variable is None:
        return Quantity(name, f"unknown variable {name}")
    variable = _settle_geopotential(variable, units, has_pressure or has_model_levels)
    spec = VARIABLES.get(variable)
    if spec is not None and spec.role is Role.DIAGNOSTIC:
        return Quantity(variable, _why_diagnostic(spec, name, units))
    if has_model_levels:
        return Quantity(variable, "on hybrid (model) levels; a forecast needs pressure levels")
    if spec is not None:
        needs_pressure = spec.level_type is LevelType.PRESSURE
    else:
        needs_pressure = variable != SURFACE_HEIGHT
    if needs_pressure and not has_pressure:
        return Quantity(variable, "no coordinate says on which pressure level it is")
    if to_si(variable, units) is None:
        known = spec.units if spec else "its usual units"
        return Quantity(variable, f"units {units!r} are unknown here; expected {known}")
    return Quantity(variable, _why_not_instant(array.attrs))


def _why_diagnostic(spec: Variable, name: str, units: str) -> str:
    """`DIAGNOSTIC_ONLY`, and what keeps it from being trained on: only its name says the hours."""
    faults = [DIAGNOSTIC_ONLY]
    if name.lower() not in (spec.name, *spec.aliases):
        faults.append(
            f"nothing says that {name} is the sum over the {DIAGNOSTIC_HOURS} h before; rename it "
            f"to {spec.name} if it is"
        )
    if to_si(spec.name, units) is None:
        faults.append(f"units {units!r} are unknown here; expected {spec.units}")
    return "; ".join(faults)


def _name_of(array: xr.DataArray, name: str, has_pressure: bool) -> str | None:
    for spelling in (name, name.lower()):
        known = find_variable(spelling)
        if known is not None:
            return known.name
        if spelling in _VARIABLE_BY_NAME:
            return _VARIABLE_BY_NAME[spelling]
    standard_name = str(array.attrs.get("standard_name", ""))
    if has_pressure:
        return _ON_PRESSURE_BY_STANDARD_NAME.get(standard_name)
    if standard_name in _AT_SURFACE_BY_STANDARD_NAME:
        return _AT_SURFACE_BY_STANDARD_NAME[standard_name]
    height = array.coords.get("height")
    if height is not None and height.ndim == 0:
        return _AT_HEIGHT_BY_STANDARD_NAME.get((standard_name, float(height)))
    return None


def _settle_geopotential(variable: str, units: str, has_levels: bool) -> str:
    """`z` is geopotential or height, by its units, on levels or of the surface."""
    is_length = bool(units) and to_si(GEOPOTENTIAL_HEIGHT, units) is not None
    if variable == "geopotential" and is_length:
        variable = GEOPOTENTIAL_HEIGHT
    if not has_levels and variable == "geopotential":
        return "geopotential_at_surface"
    return variable


def _why_not_instant(attrs: Mapping[str, object]) -> str:
    methods = str(attrs.get("cell_methods", ""))
    for method in _NOT_INSTANT_METHODS:
        if method in methods:
            return f"{methods}: not a value at a point in time"
    step_type = str(attrs.get("GRIB_stepType", "instant"))
    if step_type not in ("instant", "unknown"):
        return f"step type {step_type}: not a value at a point in time"
    return ""


def check_levels(levels: Float64Array) -> str:
    """Why levels cannot be pressures in hPa, otherwise empty."""
    if levels.size and (levels.max() > _MAX_LEVEL_HPA or levels.min() <= 0):
        return f"levels {levels.min():g} to {levels.max():g} are no pressures in hPa"
    return ""
