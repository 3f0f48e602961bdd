"""Reads the grid of a GRIB message: axes, scan order, and what a forecast cannot use."""

from dataclasses import dataclass

import eccodes
import numpy as np
import numpy.typing as npt

from jigsaw_forecast.data.axes import AxisOrder, gaussian_latitudes, order_axes
from jigsaw_forecast.data.records import Axes
from jigsaw_forecast.errors import DataError

_REGULAR = ("regular_ll", "regular_gg")
_GRID_WORDS = {
    "reduced_gg": "reduced Gaussian grid",
    "reduced_ll": "reduced latitude-longitude grid",
    "sh": "spherical harmonics (spectral)",
    "rotated_ll": "rotated latitude-longitude grid",
    "rotated_gg": "rotated Gaussian grid",
    "reduced_rotated_gg": "rotated reduced Gaussian grid",
    "unstructured_grid": "unstructured grid",
    "healpix": "HEALPix grid",
}
# Ten times what the finest global models have along a row; GRIB 1 counts up to 65535.
_MOST_PER_AXIS = 100_000
_HOW_TO_INTERPOLATE = "interpolate it to a regular grid first (for example with MIR or CDO)"


@dataclass(frozen=True, eq=False)
class GribGrid:
    """One grid definition of a GRIB file.

    Attributes:
        name: `regular_ll 181x360`.
        order: Axes and how to reach them, None where the grid is not rows and columns.
        num_i: Points along a row.
        num_j: Rows.
        is_j_consecutive: Values run along columns first.
        is_alternating: Every other row (or column) runs backwards.
        winds_follow_grid: u and v are along the grid's axes, not east and north.
        why: Why it cannot be used, otherwise empty.
    """

    name: str
    order: AxisOrder | None
    num_i: int
    num_j: int
    is_j_consecutive: bool
    is_alternating: bool
    winds_follow_grid: bool
    why: str

    @property
    def axes(self) -> Axes | None:
        """Axes of a grid that can be used."""
        return self.order.axes if self.order is not None and not self.why else None

    def arrange(self, values: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """Values as [Y, X] on the axes from the order in which the message holds them.

        Raises:
            DataError: The number of values is not that of the grid.
        """
        assert self.order is not None
        if values.size != self.num_i * self.num_j:
            raise DataError(f"{values.size} values for {self.name}")
        lines = values.reshape(
            (self.num_i, self.num_j) if self.is_j_consecutive else (self.num_j, self.num_i)
        )
        if self.is_alternating:
            lines = lines.copy()
            lines[1::2] = lines[1::2, ::-1]
        return self.order.arrange(lines.T if self.is_j_consecutive else lines)


def read_grid(handle: int) -> GribGrid:
    """The grid of a message whose headers are open in eccodes."""
    grid_type = _get_str(handle, "gridType", "unknown")
    if grid_type not in _REGULAR:
        words = _GRID_WORDS.get(grid_type, f"{grid_type} grid")
        why = f"{words} ({grid_type}): {_HOW_TO_INTERPOLATE}"
        name = f"{grid_type} {_size_words(handle, grid_type)}".strip()
        return GribGrid(name, None, 0, 0, False, False, False, why)
    num_i, num_j = eccodes.codes_get_long(handle, "Ni"), eccodes.codes_get_long(handle, "Nj")
    num_points = _get_int(handle, "numberOfDataPoints")
    has_count = eccodes.codes_get_long(handle, "edition") == 2 and num_points is not None
    is_possible = min(num_i, num_j) > 0 and max(num_i, num_j) <= _MOST_PER_AXIS
    if not is_possible or (has_count and num_points != num_i * num_j):
        why = f"header contradicts itself: {num_j} rows of {num_i} points are {num_points} points"
        name = f"{grid_type} {num_j}x{num_i}"
        return GribGrid(name, None, 0, 0, False, False, False, why)
    latitudes, lat_fault = _latitudes(handle, grid_type, num_j)
    longitudes = _longitudes(handle, num_i)
    order = order_axes(latitudes, longitudes)
    why = order.why or lat_fault
    return GribGrid(
        name=f"{grid_type} {num_j}x{num_i}",
        order=order,
        num_i=num_i,
        num_j=num_j,
        is_j_consecutive=_flag(handle, "jPointsAreConsecutive"),
        is_alternating=_flag(handle, "alternativeRowScanning"),
        winds_follow_grid=_flag(handle, "uvRelativeToGrid"),
        why=why,
    )


def _latitudes(handle: int, grid_type: str, num_j: int) -> tuple[npt.NDArray[np.float64], str]:
    """Latitudes in the message's order, from its first and last point; increments may be wrong."""
    first = eccodes.codes_get_double(handle, "latitudeOfFirstGridPointInDegrees")
    last = eccodes.codes_get_double(handle, "latitudeOfLastGridPointInDegrees")
    is_south_north = _flag(handle, "jScansPositively")
    fault = ""
    if num_j > 1 and (last > first) != is_south_north:
        fault = f"header contradicts itself: rows run from {first:g} to {last:g}, scan flag says "
        fault += "south to north" if is_south_north else "north to south"
    if grid_type == "regular_gg" and num_j == 2 * eccodes.codes_get_long(handle, "N"):
        rows = gaussian_latitudes(num_j)
        return (rows[::-1] if is_south_north else rows), fault
    return np.linspace(first, last, num_j), fault


def _longitudes(handle: int, num_i: int) -> npt.NDArray[np.float64]:
    """Longitudes in the message's order, from its first and last point and the number of points."""
    first = eccodes.codes_get_double(handle, "longitudeOfFirstGridPointInDegrees")
    last = eccodes.codes_get_double(handle, "longitudeOfLastGridPointInDegrees")
    is_east_west = _flag(handle, "iScansNegatively")
    span = (first - last if is_east_west else last - first) % 360.0
    if span == 0.0 and num_i > 1:
        span = 360.0
    steps = np.arange(num_i) * (span / max(num_i - 1, 1))
    return np.asarray(first - steps if is_east_west else first + steps, dtype=np.float64)


def _size_words(handle: int, grid_type: str) -> str:
    if grid_type == "sh":
        return f"T{eccodes.codes_get_long(handle, 'J')}"
    num_i, num_j = _get_int(handle, "Ni"), _get_int(handle, "Nj")
    if num_i is not None and num_j is not None and num_i < eccodes.CODES_MISSING_LONG:
        return f"{num_j}x{num_i}"
    num_points = _get_int(handle, "numberOfDataPoints")
    rows = f"{num_j} rows, " if num_j else ""
    return f"{rows}{num_points} points" if num_points else rows.rstrip(", ")


def _flag(handle: int, key: str) -> bool:
    return bool(_get_int(handle, key))


def _get_int(handle: int, key: str) -> int | None:
    try:
        return int(eccodes.codes_get_long(handle, key))
    except eccodes.CodesInternalError:
        return None


def _get_str(handle: int, key: str, default: str) -> str:
    try:
        return str(eccodes.codes_get_string(handle, key))
    except eccodes.CodesInternalError:
        return default
