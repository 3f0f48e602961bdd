"""Global regular latitude-longitude grids: axes, area weights, the rows that a model uses.

Inside the package latitude runs north to south and longitude from 0 to 360 exclusive.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jigsaw_forecast.errors import GridError

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Grid:
    """A global regular grid of `num_lat x num_lon` points.

    Attributes:
        num_lat: Rows, north to south.
        num_lon: Columns; the first is at longitude 0.
        has_poles: Rows lie on both poles (spacing 180 / (num_lat - 1)); otherwise cell centres
            (spacing 180 / num_lat, first row half a spacing from the pole).
    """

    num_lat: int
    num_lon: int
    has_poles: bool

    @property
    def name(self) -> str:
        """`1440x721`: columns x rows, as WeatherBench writes it."""
        return f"{self.num_lon}x{self.num_lat}"

    @property
    def latitudes(self) -> FloatArray:
        """Degrees north, north to south, shape [num_lat]."""
        if self.has_poles:
            return np.linspace(90.0, -90.0, self.num_lat, dtype=np.float64)
        spacing = 180.0 / self.num_lat
        return 90.0 - spacing * (np.arange(self.num_lat, dtype=np.float64) + 0.5)

    @property
    def longitudes(self) -> FloatArray:
        """Degrees east from 0, shape [num_lon]."""
        return np.arange(self.num_lon, dtype=np.float64) * (360.0 / self.num_lon)

    @property
    def num_model_lat(self) -> int:
        """Rows that a model computes: without the south pole where the count would be odd.

        Source: Aurora (Bodnar et al. 2025) crops 721 rows to 720 in the same way.
        """
        return self.num_lat - 1 if self.drops_south_pole else self.num_lat

    @property
    def drops_south_pole(self) -> bool:
        """Whether the last row is left out of the model and restored when written."""
        return self.has_poles and self.num_lat % 2 == 1

    def area_weights(self) -> FloatArray:
        """Cell areas by row, sin(upper bound) - sin(lower bound), mean 1, shape [num_lat].

        Bounds lie midway between rows; the outermost lie on the poles. Source: WeatherBench 2.
        """
        return area_weights(self.latitudes)

    @classmethod
    def from_axes(cls, latitudes: Sequence[float], longitudes: Sequence[float]) -> "Grid":
        """The grid with these axes, in any order or longitude origin.

        Args:
            latitudes: Degrees north, ascending or descending.
            longitudes: Degrees east, a full circle with or without a shift by 360.

        Raises:
            GridError: The axes are not those of a global regular grid; says what they are.
        """
        lat = np.sort(np.asarray(latitudes, dtype=np.float64))[::-1]
        lon = np.sort(np.mod(np.asarray(longitudes, dtype=np.float64), 360.0))
        if lat.size >= 2 and lon.size >= 2:
            for has_poles in (True, False):
                grid = cls(lat.size, lon.size, has_poles)
                tolerance = 0.01 * 180.0 / lat.size  # GRIB 1 rounds to millidegrees
                folded = np.sort(np.where(lon > 360.0 - tolerance, lon - 360.0, lon))
                if np.allclose(grid.latitudes, lat, atol=tolerance, rtol=0) and np.allclose(
                    grid.longitudes, folded, atol=tolerance, rtol=0
                ):
                    return grid
        raise GridError(f"not a global regular grid from longitude 0: {describe_axes(lat, lon)}")

    @classmethod
    def parse(cls, name: str) -> "Grid":
        """The grid named `1440x721` (odd row counts have poles) or `64x32` (even ones do not).

        Raises:
            GridError: The name is not `LONxLAT`, or no grid has so few points.
        """
        try:
            num_lon, num_lat = (int(part) for part in name.lower().split("x"))
        except ValueError:
            raise GridError(
                f"grid {name!r} is not LONxLAT, for example 64x32 or 1440x721"
            ) from None
        if num_lon < 2 or num_lat < 2:
            raise GridError(f"grid {name!r} has fewer than 2 rows or columns")
        return cls(num_lat, num_lon, has_poles=num_lat % 2 == 1)


def area_weights(latitudes: npt.ArrayLike) -> FloatArray:
    """Cell areas by row for any strictly monotonic latitude axis over the globe, mean 1.

    Args:
        latitudes: Degrees north, shape [Y], ascending or descending.
    """
    lat = np.deg2rad(np.asarray(latitudes, dtype=np.float64))
    ascending = lat[::-1] if lat[0] > lat[-1] else lat
    inner = (ascending[1:] + ascending[:-1]) / 2
    bounds = np.concatenate([[-np.pi / 2], inner, [np.pi / 2]])
    weights = np.diff(np.sin(bounds))
    weights = weights[::-1] if lat[0] > lat[-1] else weights
    return np.asarray(weights / weights.mean())


def describe_axes(latitudes: FloatArray, longitudes: FloatArray) -> str:
    """One line that tells a forecaster which grid this is."""

    def axis(values: FloatArray) -> str:
        if values.size < 2:
            return f"{values.size} point"
        return f"{values.size} points {values[0]:g}..{values[-1]:g}"

    return f"latitude {axis(latitudes)}, longitude {axis(longitudes)}"
