"""Forcings: maps that are input only, computed from the valid time, the grid and static fields.

Solar geometry is earthkit-meteo's; each forcing is scaled to about one.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
from earthkit.meteo.solar import array as solar

from jigsaw_forecast.errors import RecipeError
from jigsaw_forecast.grid import Grid

Array = npt.NDArray[np.float32]
Maps = npt.NDArray[np.float64]

SURFACE_GEOPOTENTIAL_SCALE_M2_S2 = 1.0e4  # about 1 km
DAYS_PER_YEAR = 365.2425


def _day(time: datetime) -> float:
    return (time.hour * 60 + time.minute) / 1440.0


def _year(time: datetime) -> float:
    start = datetime(time.year, 1, 1, tzinfo=UTC)
    return (time - start).total_seconds() / 86400.0 / DAYS_PER_YEAR


def _insolation(time: datetime, latitudes: Maps) -> Maps:
    """Daily mean insolation at the top of the atmosphere over the solar constant.

    Source: Hartmann, Global Physical Climatology, eq. 2.15, circular orbit.
    """
    declination = np.deg2rad(solar.solar_declination_angle(time.replace(tzinfo=None))[0])
    phi = np.deg2rad(latitudes)
    sunset = np.arccos(np.clip(-np.tan(phi) * np.tan(declination), -1.0, 1.0))
    return np.asarray(
        (
            sunset * np.sin(phi) * np.sin(declination)
            + np.cos(phi) * np.cos(declination) * np.sin(sunset)
        )
        / np.pi
    )


_IN_TIME: dict[str, Callable[[datetime, Maps, Maps], Maps | float]] = {
    "cos_solar_zenith": lambda time, lat, lon: np.maximum(
        solar.cos_solar_zenith_angle(time.replace(tzinfo=None), lat, lon), 0.0
    ),
    "insolation": lambda time, lat, lon: 4.0 * _insolation(time, lat) - 1.0,
    "sin_day": lambda time, lat, lon: np.sin(2 * np.pi * _day(time)),
    "cos_day": lambda time, lat, lon: np.cos(2 * np.pi * _day(time)),
    "sin_year": lambda time, lat, lon: np.sin(2 * np.pi * _year(time)),
    "cos_year": lambda time, lat, lon: np.cos(2 * np.pi * _year(time)),
}
_OF_POSITION: dict[str, Callable[[Maps, Maps], Maps]] = {
    "sin_latitude": lambda lat, lon: np.sin(np.deg2rad(lat)),
    "cos_latitude": lambda lat, lon: np.cos(np.deg2rad(lat)),
    "sin_longitude": lambda lat, lon: np.sin(np.deg2rad(lon)),
    "cos_longitude": lambda lat, lon: np.cos(np.deg2rad(lon)),
}
_STATIC_SCALE = {
    "land_sea_mask": 1.0,
    "geopotential_at_surface": 1.0 / SURFACE_GEOPOTENTIAL_SCALE_M2_S2,
}
FORCINGS = (*_STATIC_SCALE, *_IN_TIME, *_OF_POSITION)


def static_fields(names: Sequence[str]) -> list[str]:
    """The forcings among these that are static fields, read rather than computed."""
    return [name for name in names if name in _STATIC_SCALE]


class ForcingMaps:
    """The forcings of a model at any time, for a band of rows."""

    def __init__(
        self,
        names: Sequence[str],
        grid: Grid,
        statics: Mapping[str, npt.NDArray[np.floating]],
        rows: slice = slice(None),
    ) -> None:
        """Prepares what does not change in time.

        Args:
            names: Forcings, in order; all are among `FORCINGS`.
            grid: The whole grid.
            statics: Static fields in SI units, each [model rows, X].
            rows: The model rows wanted.

        Raises:
            RecipeError: A forcing is unknown, or a static field is missing.
        """
        unknown = [name for name in names if name not in FORCINGS]
        missing = [name for name in static_fields(names) if name not in statics]
        if unknown or missing:
            raise RecipeError(
                f"forcings: unknown {', '.join(unknown) or 'none'}; missing static fields "
                f"{', '.join(missing) or 'none'}; known: {', '.join(FORCINGS)}"
            )
        latitudes = grid.latitudes[: grid.num_model_lat][rows]
        self._lat, self._lon = np.meshgrid(latitudes, grid.longitudes, indexing="ij")
        self._names = tuple(names)
        self._fixed: dict[str, Maps] = {
            name: _OF_POSITION[name](self._lat, self._lon) for name in names if name in _OF_POSITION
        }
        for name in static_fields(names):
            self._fixed[name] = np.asarray(statics[name][rows], np.float64) * _STATIC_SCALE[name]

    def at(self, valid_time: np.datetime64) -> Array:
        """All forcings at a time, float32 [G, Y, X]."""
        time = valid_time.astype("datetime64[s]").item().replace(tzinfo=UTC)
        result = np.empty((len(self._names), *self._lat.shape), dtype=np.float32)
        for index, name in enumerate(self._names):
            fixed = self._fixed.get(name)
            result[index] = _IN_TIME[name](time, self._lat, self._lon) if fixed is None else fixed
        return result
