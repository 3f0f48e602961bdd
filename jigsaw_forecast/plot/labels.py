"""Labels of lines on a map, and the H and L of pressure."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.text import Text
from scipy import ndimage

from jigsaw_forecast.plot.drawing_grid import LATITUDES
from jigsaw_forecast.plot.projection import project

FloatArray = npt.NDArray[np.float64]
Place = tuple[float, float]  # map coordinates

# what lies beyond would touch the edge of the map, or others where meridians meet
_LATITUDE, _LONGITUDE = 70.0, 160.0
_DISTANCE = 0.16
_REACH = (15, 21)  # rows and columns of 1.5 degrees within which a centre is alone
_HIGH, _LOW = "H", "L"


def thin_labels(labels: Sequence[Text], marks: Sequence[Place] = ()) -> None:
    """Takes away labels that lie at the edge of the map or on others, outlines the rest."""
    kept = list(marks)
    for label in labels:
        place = label.get_position()
        if is_inside(*place) and _is_free(place, kept):
            kept.append(place)
            label.set_path_effects([_outline()])
        else:
            label.remove()


def mark_extremes(
    axes: Axes, values: FloatArray, x: FloatArray, y: FloatArray, step: float
) -> list[Place]:
    """Writes H and L at centres of pressure and returns their places.

    Args:
        axes: The map.
        values: On the drawing grid.
        x: Map coordinates of its points.
        y: The same, northward.
        step: Least difference to the surroundings, in units of `values`.
    """
    places: list[Place] = []
    around = _over_reach(ndimage.uniform_filter, values)
    for letter, extreme, sign in (
        (_HIGH, ndimage.maximum_filter, 1.0),
        (_LOW, ndimage.minimum_filter, -1.0),
    ):
        is_centre = (values == _over_reach(extreme, values)) & (sign * (values - around) > step)
        # towards the poles, ice sheets make what pressure reduced to sea level shows
        for row, column in np.argwhere(is_centre & (np.abs(LATITUDES) < _LATITUDE)[:, None]):
            place = float(x[row, column]), float(y[row, column])
            if is_inside(*place) and _is_free(place, places):
                places.append(place)
                text = axes.text(
                    *place, letter, ha="center", va="center", fontsize=10, fontweight="bold"
                )
                text.set_path_effects([_outline()])
    return places


def is_inside(x: float, y: float) -> bool:
    """Whether a place is well inside the map."""
    latitudes = np.linspace(0.0, _LATITUDE, 36)
    sides, heights = project(np.full(latitudes.size, _LONGITUDE), latitudes)
    return abs(y) < heights[-1] and abs(x) < float(np.interp(abs(y), heights, sides))


def _over_reach(filtered: object, values: FloatArray) -> FloatArray:
    """A filter over the surroundings; the map is closed in longitude, its last column the first."""
    assert callable(filtered)
    inner = filtered(values[:, :-1], size=_REACH, mode=("nearest", "wrap"))
    return np.concatenate([inner, inner[:, :1]], axis=1)


def _is_free(place: Place, taken: Sequence[Place]) -> bool:
    return all(np.hypot(place[0] - x, place[1] - y) > _DISTANCE for x, y in taken)


def _outline() -> patheffects.withStroke:
    return patheffects.withStroke(linewidth=1.8, foreground="white")
