"""Maps made ready for drawing: of moderate size, smooth, from pole to pole and without a seam."""

import numpy as np
import numpy.typing as npt
from scipy.interpolate import RectBivariateSpline

FloatArray = npt.NDArray[np.float64]

# 1.5 degrees, which is 2.7 dots in a panel
LATITUDES: FloatArray = np.linspace(-90.0, 90.0, 121)
LONGITUDES: FloatArray = np.linspace(-180.0, 180.0, 241)
MOST_COLUMNS = 480  # finer maps are thinned: a panel is about that many pixels wide
NUM_PADDED = 4  # a cubic spline feels about three points beyond the edge


def to_drawing_grid(
    values: FloatArray, latitudes: FloatArray, longitudes: FloatArray
) -> FloatArray:
    """A map on `LATITUDES` and `LONGITUDES`, from -180 to 180 with both ends.

    Cubic splines, periodic in longitude and carried on over the poles along the opposite
    meridian; no value leaves the range of the data, so that rain stays positive.

    Args:
        values: A scalar, shape [Y, X], finite.
        latitudes: Degrees north, descending, shape [Y].
        longitudes: Degrees east, ascending from 0, shape [X], the full circle.

    Returns:
        Shape [121, 241], rows from south to north.
    """
    thinning = -(-values.shape[1] // MOST_COLUMNS)
    values = values[::thinning, ::thinning]
    latitudes, longitudes = latitudes[::thinning], longitudes[::thinning]
    values, latitudes = _pad_poles(values, latitudes)
    left, right = slice(-NUM_PADDED, None), slice(None, NUM_PADDED)
    values = np.concatenate([values[:, left], values, values[:, right]], axis=1)
    longitudes = np.concatenate([longitudes[left] - 360.0, longitudes, longitudes[right] + 360.0])
    spline = RectBivariateSpline(latitudes[::-1], longitudes, values[::-1])
    half = LONGITUDES.size // 2
    east = spline(LATITUDES, LONGITUDES + 180.0)
    drawn = np.concatenate([east[:, half:-1], east[:, : half + 1]], axis=1)
    clipped: FloatArray = np.clip(drawn, values.min(), values.max())
    return clipped


def _pad_poles(values: FloatArray, latitudes: FloatArray) -> tuple[FloatArray, FloatArray]:
    opposite = np.roll(values, values.shape[1] // 2, axis=1)
    north = slice(1, NUM_PADDED + 1) if latitudes[0] > 89.99 else slice(0, NUM_PADDED)
    last = latitudes.size - 1 if latitudes[-1] < -89.99 else latitudes.size
    south = slice(last - NUM_PADDED, last)
    padded = np.concatenate([opposite[north][::-1], values, opposite[south][::-1]])
    rows = np.concatenate(
        [180.0 - latitudes[north][::-1], latitudes, -180.0 - latitudes[south][::-1]]
    )
    return padded, rows
