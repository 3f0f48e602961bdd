"""Claims about maps made ready for drawing, against closed forms."""

import numpy as np
import pytest

from jigsaw_forecast.grid import Grid
from jigsaw_forecast.plot.drawing_grid import LATITUDES, LONGITUDES, to_drawing_grid


def harmonic(latitudes: np.ndarray, longitudes: np.ndarray) -> np.ndarray:
    lat, lon = np.deg2rad(latitudes)[:, None], np.deg2rad(longitudes)
    return 3.0 + np.sin(lat) + np.cos(lat) ** 2 * np.cos(2 * lon) + np.cos(lat) * np.sin(lon)


@pytest.mark.parametrize(
    "grid", [Grid(32, 64, False), Grid(73, 144, True), Grid(721, 1440, True)], ids=lambda g: g.name
)
def test_smooth_map_is_reproduced_from_pole_to_pole(grid: Grid) -> None:
    values = harmonic(grid.latitudes, grid.longitudes)
    drawn = to_drawing_grid(values, grid.latitudes, grid.longitudes)
    assert drawn.shape == (LATITUDES.size, LONGITUDES.size)
    # cubic splines on 5.6 degrees; values beyond the outermost rows are clipped to the data's
    assert np.abs(drawn - harmonic(LATITUDES, LONGITUDES)).max() < 2e-3


def test_both_sides_of_the_dateline_are_equal() -> None:
    grid = Grid(32, 64, False)
    values = np.random.default_rng(0).normal(size=(32, 64))
    drawn = to_drawing_grid(values, grid.latitudes, grid.longitudes)
    assert drawn[:, 0] == pytest.approx(drawn[:, -1], abs=1e-12)


def test_no_value_leaves_the_range_of_the_data() -> None:
    grid = Grid(32, 64, False)
    values = np.zeros((32, 64))
    values[15, 20] = 1.0
    drawn = to_drawing_grid(values, grid.latitudes, grid.longitudes)
    assert drawn.min() == 0.0
    assert drawn.max() <= 1.0
