"""Moments of fields and points against numpy in float64 on the whole."""

import numpy as np
import pytest

from jigsaw_forecast.data.field_moments import FieldMoments, MapMoments
from jigsaw_forecast.grid import Grid

GRID = Grid(12, 16, has_poles=False)
WEIGHTS = GRID.area_weights()
AREA = (WEIGHTS / (12 * 16))[:, None]


def _maps(num: int, mean: float = 5e4, std: float = 300.0) -> np.ndarray:
    generator = np.random.default_rng(0)
    return (mean + std * generator.normal(size=(num, 12, 16))).astype(np.float32)


def _moments(maps: np.ndarray, bands: int) -> FieldMoments:
    moments = FieldMoments.empty(len(maps), 1)
    rows = 12 // bands
    for time, values in enumerate(maps):
        gathered = MapMoments(WEIGHTS, np.empty((rows, 16), np.float32))
        for start in range(12 - rows, -1, -rows):  # from the south: any order will do
            band = slice(start, start + rows)
            gathered.add(values[band], band, maps[time - 1][band] if time else None)
        gathered.store(moments, time, 0)
    return moments


@pytest.mark.parametrize("bands", [1, 3, 12])
def test_moments_of_a_map_equal_numpy(bands: int) -> None:
    maps = _maps(3)
    found = _moments(maps, bands)
    exact = maps.astype(np.float64)
    mean = (exact * AREA).sum((1, 2))
    np.testing.assert_allclose(found.mean[:, 0], mean, rtol=1e-9)
    variance = (np.square(exact - mean[:, None, None]) * AREA).sum((1, 2))
    np.testing.assert_allclose(found.variance[:, 0], variance, rtol=1e-5)
    np.testing.assert_array_equal(found.minimum[:, 0], maps.min((1, 2)))
    np.testing.assert_array_equal(found.maximum[:, 0], maps.max((1, 2)))
    change = (np.square(np.diff(exact, axis=0)) * AREA).sum((1, 2))
    np.testing.assert_allclose(found.tendency[1:, 0], change, rtol=1e-5)
    assert np.isnan(found.tendency[0, 0])


def test_moments_over_time_equal_numpy_on_all_values() -> None:
    maps = _maps(30)
    summary = _moments(maps, 4).over_time()
    exact = maps.astype(np.float64)
    mean = (exact * AREA).sum() / 30
    np.testing.assert_allclose(summary.mean[0], mean, rtol=1e-9)
    variance = (np.square(exact - mean) * AREA).sum() / 30
    np.testing.assert_allclose(summary.std[0], np.sqrt(variance), rtol=1e-6)
    change = (np.square(np.diff(exact, axis=0)) * AREA).sum() / 29
    np.testing.assert_allclose(summary.tendency_std[0], np.sqrt(change), rtol=1e-6)


def test_a_few_times_are_as_if_there_were_no_others() -> None:
    moments = _moments(_maps(10), 2)
    few = FieldMoments.join([moments.at(np.arange(3)), moments.at(np.arange(3, 7))])
    np.testing.assert_allclose(
        few.over_time().std, moments.at(np.arange(7)).over_time().std, rtol=1e-12
    )


def test_missing_values_show_in_the_extremes() -> None:
    maps = _maps(1)
    maps[0, 7, 3] = np.nan
    found = _moments(maps, 4)
    assert np.isnan(found.minimum[0, 0])
    assert np.isnan(found.maximum[0, 0])
