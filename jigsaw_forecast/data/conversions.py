"""Converts what files hold into what models take: units, height and relative humidity."""

import re

import numpy as np
import numpy.typing as npt
from earthkit.meteo.thermo import array as thermo

from jigsaw_forecast.data.records import (
    GEOPOTENTIAL_HEIGHT,
    RELATIVE_HUMIDITY,
    SURFACE_HEIGHT,
    Float32Array,
)
from jigsaw_forecast.fields import GRAVITY_M_S2, VARIABLES

PA_PER_HPA = 100.0

# Quantity that a conversion needs for a variable; both keep the level.
CONVERTIBLE_TO = {
    "geopotential": GEOPOTENTIAL_HEIGHT,
    "specific_humidity": RELATIVE_HUMIDITY,
    "geopotential_at_surface": SURFACE_HEIGHT,
}
_UNITS_OF_CONVERTIBLE = {GEOPOTENTIAL_HEIGHT: "m", RELATIVE_HUMIDITY: "%", SURFACE_HEIGHT: "m"}

# Spellings after `_normal_units`, with scale and offset to the unit on the left.
_UNIT_TABLE: dict[str, dict[str, tuple[float, float]]] = {
    "K": {
        "k": (1.0, 0.0),
        "kelvin": (1.0, 0.0),
        "degk": (1.0, 0.0),
        "degc": (1.0, 273.15),
        "c": (1.0, 273.15),
        "celsius": (1.0, 273.15),
        "degree_celsius": (1.0, 273.15),
        "degrees_celsius": (1.0, 273.15),
        "°c": (1.0, 273.15),
    },
    "Pa": {
        "pa": (1.0, 0.0),
        "pascal": (1.0, 0.0),
        "pascals": (1.0, 0.0),
        "hpa": (PA_PER_HPA, 0.0),
        "mb": (PA_PER_HPA, 0.0),
        "mbar": (PA_PER_HPA, 0.0),
        "millibar": (PA_PER_HPA, 0.0),
        "millibars": (PA_PER_HPA, 0.0),
        "kpa": (1000.0, 0.0),
    },
    "m s-1": {"m s-1": (1.0, 0.0), "m/s": (1.0, 0.0), "ms-1": (1.0, 0.0)},
    "m2 s-2": {"m2 s-2": (1.0, 0.0), "m2/s2": (1.0, 0.0), "j kg-1": (1.0, 0.0)},
    "kg kg-1": {
        "kg kg-1": (1.0, 0.0),
        "kg/kg": (1.0, 0.0),
        "1": (1.0, 0.0),
        "g kg-1": (1e-3, 0.0),
        "grams/kg": (1e-3, 0.0),
        "g/kg": (1e-3, 0.0),
    },
    "m": {
        "m": (1.0, 0.0),
        "gpm": (1.0, 0.0),
        "geopotential meter": (1.0, 0.0),
        "metre": (1.0, 0.0),
        "metres": (1.0, 0.0),
        "meter": (1.0, 0.0),
        "meters": (1.0, 0.0),
        "dam": (10.0, 0.0),
        "gpdm": (10.0, 0.0),
        "km": (1000.0, 0.0),
        "mm": (1e-3, 0.0),
        "kg m-2": (1e-3, 0.0),
    },
    "%": {"%": (1.0, 0.0), "percent": (1.0, 0.0), "1": (100.0, 0.0)},
    "1": {"1": (1.0, 0.0), "(0 - 1)": (1.0, 0.0), "0-1": (1.0, 0.0), "%": (0.01, 0.0)},
}


def to_si(variable: str, units: str) -> tuple[float, float] | None:
    """Scale and offset from a file's units to those of a variable, None where units are unknown.

    Absent units are taken for the variable's own; plausible ranges catch what that gets wrong.

    Args:
        variable: WeatherBench name or a convertible quantity of `records`.
        units: The file's words for its units.
    """
    spec = VARIABLES.get(variable)
    target = spec.units if spec else _UNITS_OF_CONVERTIBLE.get(variable)
    if target is None:
        return None
    normal = _normal_units(units)
    if not normal:
        return 1.0, 0.0
    return _UNIT_TABLE.get(target, {}).get(normal)


def _normal_units(units: str) -> str:
    """Lower case, one space between factors, exponents as `s-2`."""
    text = units.strip().lower().replace("**", "").replace("^", "")
    return re.sub(r"[\s.]+", " ", text)


def geopotential_from_height(height: npt.NDArray[np.floating]) -> Float32Array:
    """Geopotential in m2 s-2 from geopotential height in m, by standard gravity 9.80665 m s-2."""
    return (height * GRAVITY_M_S2).astype(np.float32)


def specific_humidity_from_relative(
    relative_humidity: npt.NDArray[np.floating],
    temperature: npt.NDArray[np.floating],
    level_hpa: float,
) -> Float32Array:
    """Specific humidity in kg kg-1 from relative humidity.

    Saturation is over water above 0 °C, over ice below -23 °C and a mix between, quadratic in
    temperature, as in the IFS, so ECMWF's relative humidity is inverted exactly. NCEP mixes
    linearly between 0 and -20 °C: for its files the result differs by up to a few percent there.

    Source: IFS documentation CY47R3, part IV, chapter 12 (earthkit-meteo).

    Args:
        relative_humidity: In percent.
        temperature: In K, at the same points.
        level_hpa: Pressure of the level.
    """
    temperature = temperature.astype(np.float64)
    pressure = level_hpa * PA_PER_HPA
    saturation = thermo.saturation_vapour_pressure(temperature, phase="mixed")
    # vapour cannot exceed the pressure, which saturation does in warm air high up
    saturation = np.minimum(saturation, pressure)
    vapour = np.clip(relative_humidity / 100.0, 0.0, None) * saturation
    humidity = thermo.specific_humidity_from_vapour_pressure(vapour, pressure)
    return np.asarray(humidity, dtype=np.float32)
