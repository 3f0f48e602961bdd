"""Turns the axes of files into north-to-south rows and columns from longitude 0."""

from dataclasses import dataclass
from functools import lru_cache

import eccodes
import numpy as np
import numpy.typing as npt

from jigsaw_forecast.data.records import Axes, Float64Array

# A grid covers the globe when its outermost rows lie within half a spacing of the poles and its
# columns close the circle; GRIB 1 rounds to millidegrees, hence the margin.
_MARGIN = 0.02
_MOST_GAUSSIAN_ROWS = 16_000  # N8000; their latitudes take longer to find the more there are


@dataclass(frozen=True, eq=False)
class AxisOrder:
    """Which rows and columns of a file make up the rows and columns of `axes`.

    Attributes:
        axes: The ordered axes.
        kind: `regular_ll`, `regular_gg` or `irregular_ll`.
        rows: Row of the file for each row of the axes, None where they are the same.
        columns: Column of the file for each column of the axes, None where they are the same.
        why: Why the grid cannot be used (regional, irregular), otherwise empty.
    """

    axes: Axes
    kind: str
    rows: npt.NDArray[np.intp] | None
    columns: npt.NDArray[np.intp] | None
    why: str

    def arrange(self, values: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """Reorders [..., rows of the file, columns of the file] to the axes."""
        if self.rows is not None:
            values = values[..., self.rows, :]
        if self.columns is not None:
            values = values[..., self.columns]
        return values


@lru_cache(maxsize=16)
def gaussian_latitudes(num_rows: int) -> Float64Array:
    """Latitudes of the Gaussian grid with this even number of rows, north to south."""
    return np.array(list(eccodes.codes_get_gaussian_latitudes(num_rows // 2)), dtype=np.float64)


def order_axes(latitudes: npt.ArrayLike, longitudes: npt.ArrayLike) -> AxisOrder:
    """Orders one-dimensional axes given in any direction and from any origin.

    A column that repeats the first one a circle later is left out.

    Args:
        latitudes: Degrees north of each row of the file.
        longitudes: Degrees east of each column of the file.
    """
    lat = np.asarray(latitudes, dtype=np.float64)
    lon = np.asarray(longitudes, dtype=np.float64)
    folded = _fold(lon)
    rows = np.argsort(-lat, kind="stable")
    columns = np.argsort(folded, kind="stable")
    if columns.size > 1:
        gaps = np.diff(folded[columns])
        keep = np.concatenate([[True], gaps > 1e-6 + 0.1 * np.median(gaps)])
        columns = columns[keep]
    axes = Axes(lat[rows], folded[columns])
    kind, why = _classify(axes)
    if not why and kind == "regular_ll":
        axes = Axes(axes.latitudes, _even(axes.longitudes))
    return AxisOrder(axes, kind, _or_none(rows, lat.size), _or_none(columns, lon.size), why)


def _fold(lon: Float64Array) -> Float64Array:
    """Longitudes in [0, 360); what rounding leaves just below 360 becomes 0."""
    folded = np.mod(lon, 360.0)
    spacing = 360.0 / max(lon.size, 1)
    near = _MARGIN * min(spacing, 1.0)
    folded = np.where(folded > 360.0 - near, folded - 360.0, folded)
    return np.where(np.abs(folded) < near, 0.0, folded)


def _even(lon: Float64Array) -> Float64Array:
    """Columns exactly evenly spaced over the circle: headers round the coordinates."""
    return np.asarray(lon[0] + np.arange(lon.size) * (360.0 / lon.size), dtype=np.float64)


def _or_none(order: npt.NDArray[np.intp], size: int) -> npt.NDArray[np.intp] | None:
    if order.size == size and bool((order == np.arange(size)).all()):
        return None
    return order


def _classify(axes: Axes) -> tuple[str, str]:
    """Kind of grid, and why it cannot be used."""
    lat, lon = axes.latitudes, axes.longitudes
    if lat.size < 2 or lon.size < 2:
        return "regular_ll", f"needs at least 2 rows and 2 columns, not {axes}"
    lat_steps, lon_steps = -np.diff(lat), np.diff(lon)
    is_gaussian = _is_gaussian(lat)
    kind = "regular_gg" if is_gaussian else "regular_ll"
    if lat_steps.min() <= 0:
        return "irregular_ll", f"latitudes repeat: {axes}"
    lat_spacing = float(lat_steps.mean())
    to_poles = max(90.0 - lat[0], lat[-1] + 90.0)
    lon_gap = 360.0 - (lon[-1] - lon[0])
    lon_spacing = 360.0 / lon.size
    is_circle = _is_even(lon_steps) and abs(lon_gap - lon_spacing) < _MARGIN * lon_spacing
    reaches_poles = is_gaussian or to_poles <= (0.5 + _MARGIN) * lat_spacing
    if not is_circle or not reaches_poles:
        return kind, f"regional grid, not the whole globe: {axes}"
    if not is_gaussian and not _is_even(lat_steps):
        return "irregular_ll", f"latitudes are neither evenly spaced nor Gaussian: {axes}"
    return kind, ""


def _is_even(steps: Float64Array) -> bool:
    return bool(np.ptp(steps) <= _MARGIN * abs(float(steps.mean())) + 1e-9)


def _is_gaussian(lat: Float64Array) -> bool:
    if lat.size % 2 or lat.size > _MOST_GAUSSIAN_ROWS:
        return False
    expected = gaussian_latitudes(lat.size)
    return bool(np.abs(expected - lat).max() < _MARGIN * 180.0 / lat.size)
