"""Claims about the map projection and the coastlines."""

import numpy as np
import pytest

from jigsaw_forecast.plot.projection import coastline, graticule, outline, project


def test_centre_of_the_map_is_the_origin() -> None:
    x, y = project(0.0, 0.0)
    assert (float(x), float(y)) == (0.0, 0.0)


def test_half_width_and_half_height_are_those_of_the_paper() -> None:
    # at the equator theta = 0: x = 2 sqrt(3) pi / (3 A1); at the pole theta = 60 degrees
    assert float(project(180.0, 0.0)[0]) == pytest.approx(2.7066, abs=1e-4)
    assert float(project(0.0, 90.0)[1]) == pytest.approx(1.3173, abs=1e-4)


@pytest.mark.parametrize("latitude", [-75.0, -30.0, 0.0, 10.0, 45.0, 80.0])
def test_areas_on_the_map_are_those_on_the_sphere(latitude: float) -> None:
    step = 1e-3
    longitude = 70.0
    east = (project(longitude + step, latitude)[0] - project(longitude - step, latitude)[0]) / 2
    north = (project(longitude, latitude + step)[1] - project(longitude, latitude - step)[1]) / 2
    on_sphere = np.deg2rad(step) ** 2 * np.cos(np.deg2rad(latitude))
    assert float(east * north) == pytest.approx(on_sphere, rel=1e-6)


def test_coastlines_lie_on_the_map_and_never_jump_across_it() -> None:
    x, y = coastline()
    assert np.nanmax(np.abs(x)) <= 2.7067
    assert np.nanmax(np.abs(y)) <= 1.3174
    assert np.nanmax(np.abs(np.diff(x))) < 0.2


def test_coastlines_pass_the_southern_tip_of_africa() -> None:
    x, y = coastline()
    cape = project(20.0, -34.8)  # Cape Agulhas
    assert np.nanmin(np.hypot(x - cape[0], y - cape[1])) < 0.01


def test_outline_is_closed() -> None:
    x, y = outline()
    assert (x[0], y[0]) == (x[-1], y[-1])


def test_graticule_stays_on_the_map() -> None:
    x, y = graticule()
    assert np.nanmax(np.abs(x)) <= 2.7067
    assert np.nanmax(np.abs(y)) <= 1.3174
