"""Tells units apart that two sources do not share, by what they say and by what they hold."""

import numpy as np

from jigsaw_forecast.data.conversions import to_si
from jigsaw_forecast.fields import GRAVITY_M_S2, VARIABLES, Field, LevelType, plausible_range
from jigsaw_forecast.verify.archive import AnyMaps

_PRECIPITATION = "total_precipitation"
_WITHIN = 1.3  # of a factor between fields whose means are well known
_WITHIN_PRECIPITATION = 5.0
_KELVIN, _KELVIN_WITHIN = 273.15, 40.0


def differing_units(name: str, first: str, second: str) -> str:
    """Why units of two sources differ as they say them, empty where they do not or say none."""
    if not first.strip() or not second.strip() or first.strip() == second.strip():
        return ""
    if name in VARIABLES:
        conversions = [to_si(name, units) for units in (first, second)]
        if conversions[0] is not None and conversions[0] == conversions[1]:
            return ""
    elif _plain(first) == _plain(second):
        return ""
    return f"{first!r} against {second!r}"


def implausible_units(name: str, level_hpa: float, forecast: AnyMaps, truth: AnyMaps) -> str:
    """Why the numbers of two maps cannot be in the same units, otherwise empty.

    Args:
        name: WeatherBench name.
        level_hpa: 0 for a single level.
        forecast: A map of a short lead time.
        truth: A map of the same field.
    """
    means = [_mean(one) for one in (forecast, truth)]
    if not np.isfinite(means).all():
        return ""
    found, expected = means
    for factor, what, within in _confusions(name):
        for ratio in (factor, 1.0 / factor):
            if expected and found and within**-1 < found / expected / ratio < within:
                return (
                    f"its mean is {found:.6g}, the truth's {expected:.6g}: a factor of about "
                    f"{ratio:.4g}, as between {what}"
                )
    if "temperature" in name and abs(abs(found - expected) - _KELVIN) < _KELVIN_WITHIN:
        return f"its mean is {found:.6g}, the truth's {expected:.6g}: as between K and °C"
    return _out_of_range(name, level_hpa, found, expected)


def _confusions(name: str) -> list[tuple[float, str, float]]:
    if name.startswith("geopotential"):
        return [(GRAVITY_M_S2, "geopotential in m2 s-2 and geopotential height in m", _WITHIN)]
    if name.startswith(_PRECIPITATION):
        return [(1000.0, "m and mm", _WITHIN_PRECIPITATION)]
    if "pressure" in name:
        return [(100.0, "Pa and hPa", _WITHIN)]
    if "humidity" in name:
        return [(1000.0, "kg kg-1 and g kg-1", _WITHIN_PRECIPITATION)]
    return []


def _out_of_range(name: str, level_hpa: float, found: float, expected: float) -> str:
    spec = VARIABLES.get(name)
    if spec is None or (spec.level_type is LevelType.PRESSURE) != (level_hpa > 0):
        return ""
    low, high = plausible_range(Field(name, round(level_hpa)))
    inside = [low <= one <= high for one in (found, expected)]
    if all(inside) or not any(inside):
        return ""
    which = "its" if not inside[0] else "the truth's"
    return (
        f"{which} mean {found if not inside[0] else expected:.6g} is outside of {low:g} to "
        f"{high:g} {spec.units}, the other's {expected if not inside[0] else found:.6g} inside"
    )


def _mean(values: AnyMaps) -> float:
    with np.errstate(invalid="ignore"):
        mean = float(values.mean(dtype=np.float64))
    if np.isfinite(mean):
        return mean
    present = np.asarray(values, dtype=np.float64)
    present = present[np.isfinite(present)]
    return float(present.mean()) if present.size else float("nan")


def _plain(units: str) -> str:
    return " ".join(units.lower().replace("**", "").replace("^", "").split())
