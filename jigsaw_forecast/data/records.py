"""What a reader finds in a file, before and after decoding: the records that readers share."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

NOT_A_TIME = np.datetime64("NaT", "s")

PRESSURE_LEVEL = "isobaricInhPa"  # level type of every record on a pressure level

# The whole reason against a field that a forecast predicts and never starts from; training takes
# it.
DIAGNOSTIC_ONLY = "diagnostic: predicted, never an input"
DIAGNOSTIC_HOURS = 6  # that precipitation is summed over, up to its valid time

# Names for quantities that are not fields of a model but turn into one (conversions.py).
GEOPOTENTIAL_HEIGHT = "geopotential_height"
RELATIVE_HUMIDITY = "relative_humidity"
SURFACE_HEIGHT = "orography"  # height of the surface, m


@dataclass(frozen=True, eq=False)
class Axes:
    """The axes of a global regular or regular Gaussian grid, as readers hand out values.

    Attributes:
        latitudes: Degrees north, strictly descending, shape [Y].
        longitudes: Degrees east in [0, 360), strictly ascending, shape [X].
    """

    latitudes: Float64Array
    longitudes: Float64Array

    def is_close(self, other: "Axes") -> bool:
        """Whether two grids are the same to a hundredth of a grid length."""
        if (self.latitudes.size, self.longitudes.size) != (
            other.latitudes.size,
            other.longitudes.size,
        ):
            return False
        lat_tolerance = 0.01 * 180.0 / self.latitudes.size
        lon_tolerance = 0.01 * 360.0 / self.longitudes.size
        return bool(
            np.abs(self.latitudes - other.latitudes).max() < lat_tolerance
            and np.abs(self.longitudes - other.longitudes).max() < lon_tolerance
        )

    def __str__(self) -> str:
        """Rows and columns with their first and last coordinate."""
        lat, lon = self.latitudes, self.longitudes
        return (
            f"{lat.size} latitudes {lat[0]:g}..{lat[-1]:g} x "
            f"{lon.size} longitudes {lon[0]:g}..{lon[-1]:g}"
        )


@dataclass(frozen=True, eq=False)
class FieldRecord:
    """One field found in a file, from its headers alone.

    Attributes:
        variable: WeatherBench name; `geopotential_height`, `relative_humidity` or `orography`
            where a conversion makes it a field; otherwise the file's own short name.
        short_name: The file's own name.
        level: hPa on pressure levels, otherwise as coded; None where there is none.
        level_type: As the file says it (`isobaricInhPa`, `surface`, `heightAboveGround`, ...).
        valid_time: UTC, datetime64[s]; NaT where the file has no time.
        init_time: Start of the forecast, or the analysis time.
        member: Ensemble member, None where the file numbers none.
        grid: `regular_ll 181x360` (rows x columns) or the name of what cannot be used.
        units: As the file says them; statistics and decoded values are in these.
        usable: Whether a forecast can start from it.
        why: What is wrong where it is not usable, otherwise empty.
        path: The file or store.
        message: Number of the GRIB message, from 1; 0 in arrays.
        axes: Grid axes, None where the grid cannot be used.
        locator: What the reader needs to decode it.
        is_analysis: Coded as an analysis.
    """

    variable: str
    short_name: str
    level: int | float | None
    level_type: str
    valid_time: np.datetime64
    init_time: np.datetime64
    member: int | None
    grid: str
    units: str
    usable: bool
    why: str
    path: Path
    message: int = 0
    axes: Axes | None = field(default=None, compare=False, repr=False)
    locator: object = field(default=None, compare=False, repr=False)
    is_analysis: bool = False

    @property
    def lead_time(self) -> np.timedelta64:
        """Valid time less init time."""
        return self.valid_time - self.init_time

    @property
    def where(self) -> str:
        """`message 12` or `array t`: how an error names the place."""
        return f"message {self.message}" if self.message else f"array {self.short_name}"


@dataclass(frozen=True)
class FieldStatistics:
    """Extremes and mean over the points that are not missing, as decoded.

    Attributes:
        min: Smallest value, NaN where all points are missing.
        max: Largest value.
        mean: Plain mean over points, not weighted by area.
        missing: Number of points that are missing.
    """

    min: float
    max: float
    mean: float
    missing: int

    @classmethod
    def of(cls, values: npt.NDArray[np.floating]) -> "FieldStatistics":
        """Statistics of an array in which missing points are NaN."""
        present = values[~np.isnan(values)]
        missing = int(values.size - present.size)
        if present.size == 0:
            return cls(np.nan, np.nan, np.nan, missing)
        mean = float(present.mean(dtype=np.float64))
        return cls(float(present.min()), float(present.max()), mean, missing)


class Source(Protocol):
    """A file or store that initial conditions are read from.

    Attributes:
        path: The file or store.
    """

    path: Path

    @property
    def bytes_read(self) -> int:
        """Bytes taken from disk so far, headers included."""

    def records(self) -> list[FieldRecord]:
        """All fields in the file, from headers alone."""

    def records_at(self, valid_time: np.datetime64) -> list[FieldRecord]:
        """The fields valid at one time and those without time, from headers alone."""

    def valid_times(self) -> npt.NDArray[np.datetime64]:
        """All valid times, sorted, datetime64[s]."""

    def read(self, records: Sequence[FieldRecord]) -> Iterator[Float32Array]:
        """Decoded values in file units, in the order of `records`.

        Each is [Y, X] on the record's axes, north to south and from the first longitude at or
        after 0, missing points NaN.
        """

    def unit_of(self, record: FieldRecord) -> Hashable:
        """What is decoded as one: records of one unit are best read by one rank."""

    def statistics(self, record: FieldRecord) -> FieldStatistics:
        """Extremes, mean and missing points as decoded, on any grid."""
