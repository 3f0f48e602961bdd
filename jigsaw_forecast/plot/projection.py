"""The Equal Earth map projection and what is drawn with it.

Source: Šavrič, Patterson and Jenny 2018, "The Equal Earth map projection", International Journal
of Geographical Information Science, doi:10.1080/13658816.2018.1504949.
"""

from functools import cache
from importlib import resources

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

# coefficients of the polynomial, from the paper
A1, A2, A3, A4 = 1.340264, -0.081106, 0.000893, 0.003796


def project(longitude: npt.ArrayLike, latitude: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Map coordinates on the unit sphere, x to the east and y to the north.

    Args:
        longitude: Degrees east of the central meridian, -180 to 180.
        latitude: Degrees north, of a shape that broadcasts with `longitude`.
    """
    theta = np.arcsin(np.sqrt(3.0) / 2.0 * np.sin(np.deg2rad(latitude)))
    square = theta * theta
    sixth = square**3
    slope = 9.0 * A4 * sixth * square + 7.0 * A3 * sixth + 3.0 * A2 * square + A1
    x = 2.0 * np.sqrt(3.0) / 3.0 * np.deg2rad(longitude) * np.cos(theta) / slope
    y = theta * (A4 * sixth * square + A3 * sixth + A2 * square + A1)
    return np.asarray(x), np.asarray(np.broadcast_to(y, np.shape(x)))


@cache
def coastline() -> tuple[FloatArray, FloatArray]:
    """Projected coastlines; NaN ends each line. Natural Earth 1:110m, public domain."""
    resource = resources.files("jigsaw_forecast.plot").joinpath("land_110m.npz")
    with resources.as_file(resource) as path, np.load(path) as archive:
        coast = archive["coast"].astype(np.float64)
    return project(coast[:, 0], coast[:, 1])


def outline() -> tuple[FloatArray, FloatArray]:
    """The closed edge of the map."""
    side = np.linspace(-90.0, 90.0, 181)
    longitude = np.concatenate([np.full(181, 180.0), np.full(181, -180.0), [180.0]])
    return project(longitude, np.concatenate([side, side[::-1], side[:1]]))


def graticule() -> tuple[FloatArray, FloatArray]:
    """Meridians every 60 degrees and parallels every 30; NaN ends each line."""
    longitude: list[FloatArray] = []
    latitude: list[FloatArray] = []
    side = np.linspace(-90.0, 90.0, 91)
    for meridian in (-120.0, -60.0, 0.0, 60.0, 120.0):
        longitude += [np.full(91, meridian), np.array([np.nan])]
        latitude += [side, np.array([np.nan])]
    for parallel in (-60.0, -30.0, 0.0, 30.0, 60.0):
        longitude += [np.array([-180.0, 180.0, np.nan])]
        latitude += [np.array([parallel, parallel, np.nan])]
    return project(np.concatenate(longitude), np.concatenate(latitude))
