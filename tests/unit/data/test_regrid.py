"""regrid: closed forms, conservation, identity."""

import numpy as np
import pytest

from jigsaw_forecast.data.axes import gaussian_latitudes
from jigsaw_forecast.data.regrid import regrid
from jigsaw_forecast.grid import Grid

FINE = Grid(72, 144, has_poles=False)
POLES = Grid(73, 144, has_poles=True)
COARSE = Grid(32, 64, has_poles=False)


def on(grid: Grid, function: object) -> np.ndarray:
    lat, lon = np.meshgrid(np.deg2rad(grid.latitudes), np.deg2rad(grid.longitudes), indexing="ij")
    return function(lat, lon)  # type: ignore[operator,no-any-return]


def test_equal_grids_change_no_bit() -> None:
    values = np.random.default_rng(0).normal(size=(2, 73, 144)).astype(np.float32)
    result = regrid(values, POLES.latitudes, POLES.longitudes, POLES)
    np.testing.assert_array_equal(result, values)


def test_halving_the_resolution_is_the_area_weighted_mean_of_four_cells() -> None:
    source, target = Grid(4, 8, has_poles=False), Grid(2, 4, has_poles=False)
    values = np.random.default_rng(1).normal(size=(4, 8))
    # columns are points at 0, 45, ...: the cell of target column j reaches half a target
    # spacing (45) to both sides: half of column 2j - 1, all of 2j, half of 2j + 1
    across = (np.roll(values, 1, 1)[:, ::2] + 2 * values[:, ::2] + values[:, 1::2]) / 4
    weights = np.diff(np.sin(np.deg2rad([0, 45, 90])))[::-1]
    north = (weights @ across[:2]) / weights.sum()
    south = (weights[::-1] @ across[2:]) / weights.sum()
    result = regrid(values[None], source.latitudes, source.longitudes, target)
    np.testing.assert_allclose(result[0], [north, south], rtol=1e-6)


@pytest.mark.parametrize("source", [FINE, POLES])
def test_coarsening_conserves_the_global_mean(source: Grid) -> None:
    values = np.random.default_rng(2).normal(size=(1, source.num_lat, source.num_lon)) + 5.0
    result = regrid(values, source.latitudes, source.longitudes, COARSE)
    before = np.average(values[0].mean(axis=1), weights=source.area_weights())
    after = np.average(result[0].mean(axis=1), weights=COARSE.area_weights())
    assert after == pytest.approx(before, rel=1e-6)


@pytest.mark.parametrize("target", [COARSE, Grid(181, 360, has_poles=True), FINE])
def test_a_constant_stays_constant(target: Grid) -> None:
    result = regrid(np.full((1, 73, 144), 273.0), POLES.latitudes, POLES.longitudes, target)
    np.testing.assert_array_equal(result, 273.0)


def test_refining_is_linear_between_points() -> None:
    target = Grid(181, 360, has_poles=True)
    values = on(POLES, lambda lat, lon: lat + 0 * lon)
    result = regrid(values[None], POLES.latitudes, POLES.longitudes, target)[0]
    np.testing.assert_allclose(result, on(target, lambda lat, lon: lat + 0 * lon), atol=1e-6)


def test_refining_is_periodic_in_longitude() -> None:
    source = Grid(4, 4, has_poles=False)
    values = np.tile([0.0, 1.0, 2.0, 3.0], (4, 1))
    result = regrid(values[None], source.latitudes, source.longitudes, Grid(4, 8, False))[0]
    np.testing.assert_allclose(result[1], [0, 0.5, 1, 1.5, 2, 2.5, 3, 1.5])


def test_a_scalar_has_one_value_at_the_pole() -> None:
    values = on(FINE, lambda lat, lon: np.sin(lon) + 2.0)
    result = regrid(values[None], FINE.latitudes, FINE.longitudes, Grid(181, 360, True))[0]
    np.testing.assert_allclose(result[[0, -1]], 2.0, atol=1e-6)


def test_wind_keeps_the_last_row_towards_the_pole() -> None:
    values = on(FINE, lambda lat, lon: np.sin(lon))
    target = Grid(145, 144, has_poles=True)
    result = regrid(values[None], FINE.latitudes, FINE.longitudes, target, [True])[0]
    np.testing.assert_allclose(result[0], values[0], atol=1e-6)


@pytest.mark.parametrize("target", [COARSE, Grid(181, 360, has_poles=True)])
def test_a_gaussian_grid_is_regridded_to_second_order(target: Grid) -> None:
    latitudes = gaussian_latitudes(94)
    longitudes = np.arange(192) * 1.875
    lat, lon = np.meshgrid(np.deg2rad(latitudes), np.deg2rad(longitudes), indexing="ij")

    def smooth(lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
        return np.cos(lat) ** 2 * np.cos(2 * lon)

    result = regrid(smooth(lat, lon)[None], latitudes, longitudes, target)[0]
    # curvature 4 times an eighth of the squared target or source spacing, twice for margin
    spacing = np.deg2rad(max(180.0 / target.num_lat, 180.0 / 94))
    np.testing.assert_allclose(result, on(target, smooth), atol=2 * 4 * spacing**2 / 8)


def test_gaussian_latitudes_are_the_zeros_of_the_legendre_polynomial() -> None:
    zeros, _ = np.polynomial.legendre.leggauss(94)
    np.testing.assert_allclose(
        gaussian_latitudes(94), np.rad2deg(np.arcsin(zeros))[::-1], atol=1e-9
    )
