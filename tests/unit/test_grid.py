"""Grids: axes, cell areas, and what is refused."""

import numpy as np
import pytest

from jigsaw_forecast.errors import GridError
from jigsaw_forecast.grid import Grid, area_weights


def test_cell_centred_latitudes_are_half_a_spacing_from_the_poles() -> None:
    latitudes = Grid.parse("64x32").latitudes
    assert latitudes[0] == 87.1875  # 90 - 180 / 32 / 2
    assert latitudes[-1] == -87.1875
    assert np.allclose(np.diff(latitudes), -5.625)


def test_grids_with_poles_have_rows_on_both() -> None:
    latitudes = Grid.parse("1440x721").latitudes
    assert latitudes[0] == 90.0
    assert latitudes[-1] == -90.0
    assert np.allclose(np.diff(latitudes), -0.25)


def test_longitudes_start_at_zero_and_exclude_360() -> None:
    assert Grid.parse("8x4").longitudes.tolist() == [0, 45, 90, 135, 180, 225, 270, 315]


def test_four_rows_have_the_areas_of_their_zones() -> None:
    # zones bounded by 90, 45 and 0 degrees: 1 - sin 45 and sin 45, scaled to mean 1
    polar, tropical = 2 * (1 - np.sqrt(0.5)), 2 * np.sqrt(0.5)
    expected = [polar, tropical, tropical, polar]
    assert np.allclose(Grid(4, 8, has_poles=False).area_weights(), expected)


def test_pole_rows_have_the_areas_of_their_caps() -> None:
    # rows 90, 0, -90: bounds 45 and -45
    cap = 3 * (1 - np.sqrt(0.5)) / 2
    assert np.allclose(Grid(3, 8, has_poles=True).area_weights(), [cap, 3 * np.sqrt(0.5), cap])


@pytest.mark.parametrize("name", ["64x32", "1440x721", "360x181", "8x4"])
def test_area_weights_have_mean_one(name: str) -> None:
    assert np.isclose(Grid.parse(name).area_weights().mean(), 1.0, rtol=0, atol=1e-14)


@pytest.mark.parametrize("has_poles", [True, False])
def test_area_weights_integrate_the_square_of_sine_to_a_third(has_poles: bool) -> None:
    grid = Grid(721 if has_poles else 720, 8, has_poles)
    mean = np.mean(grid.area_weights() * np.sin(np.deg2rad(grid.latitudes)) ** 2)
    assert np.isclose(mean, 1 / 3, rtol=1e-5)


def test_area_weights_follow_an_ascending_axis() -> None:
    latitudes = np.array([-80.0, -10.0, 60.0])
    assert np.allclose(area_weights(latitudes), area_weights(latitudes[::-1])[::-1])


@pytest.mark.parametrize(
    ("name", "num_model_lat"), [("1440x721", 720), ("360x181", 180), ("64x32", 32)]
)
def test_a_model_leaves_out_the_last_row_of_odd_grids_with_poles(
    name: str, num_model_lat: int
) -> None:
    grid = Grid.parse(name)
    assert grid.num_model_lat == num_model_lat
    assert grid.drops_south_pole == (num_model_lat != grid.num_lat)


@pytest.mark.parametrize("name", ["64x32", "1440x721", "144x73"])
def test_axes_give_the_grid_back(name: str) -> None:
    grid = Grid.parse(name)
    assert Grid.from_axes(grid.latitudes, grid.longitudes) == grid
    assert grid.name == name


def test_south_to_north_axes_are_the_same_grid() -> None:
    grid = Grid.parse("64x32")
    assert Grid.from_axes(grid.latitudes[::-1], grid.longitudes) == grid


def test_longitudes_from_minus_180_are_the_same_grid() -> None:
    grid = Grid.parse("144x73")
    assert Grid.from_axes(grid.latitudes, np.arange(-180.0, 180.0, 2.5)) == grid


def test_longitudes_rounded_to_millidegrees_are_the_same_grid() -> None:
    grid = Grid.parse("2880x1441")
    assert Grid.from_axes(grid.latitudes.round(3), grid.longitudes.round(3)) == grid


def test_a_longitude_a_hair_below_360_counts_as_zero() -> None:
    grid = Grid.parse("64x32")
    longitudes = [-1e-9, *grid.longitudes[1:]]
    assert Grid.from_axes(grid.latitudes, longitudes) == grid


@pytest.mark.parametrize(
    ("latitudes", "longitudes", "words"),
    [
        (np.linspace(70, 30, 21), np.arange(0, 360, 2.5), "21 points 70..30"),
        (np.linspace(90, -90, 73), np.arange(0, 90, 2.5), "36 points 0..87.5"),
        (np.linspace(90, -90, 73), np.arange(1, 361, 2.5), "144 points 1..358.5"),
        ([85.76, 80.27, 74.74], np.arange(0, 360, 2.5), "3 points 85.76..74.74"),  # Gaussian
        ([10.0], [0.0], "1 point"),
    ],
)
def test_axes_of_no_global_regular_grid_are_refused_and_described(
    latitudes: list[float], longitudes: list[float], words: str
) -> None:
    with pytest.raises(GridError, match="not a global regular grid") as caught:
        Grid.from_axes(latitudes, longitudes)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["64", "64x", "axb", "64x32x2", ""])
def test_a_name_that_is_no_grid_is_refused(name: str) -> None:
    with pytest.raises(GridError, match="is not LONxLAT"):
        Grid.parse(name)
