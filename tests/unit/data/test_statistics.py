"""Statistics of a training set against numpy on the whole and hand calculation."""

import numpy as np
import pytest

from jigsaw_forecast.data.statistics import (
    PointMoments,
    Statistics,
    StatisticsBuilder,
    StatisticsLayout,
    row_weights,
)
from jigsaw_forecast.errors import DataError
from jigsaw_forecast.grid import Grid
from jigsaw_forecast.parallel.mesh import single_rank_mesh

GRID = Grid(4, 6, has_poles=False)
WEIGHTS = row_weights(GRID)
MESH = single_rank_mesh()


def _values(num_times: int = 40, num_maps: int = 3) -> np.ndarray:
    generator = np.random.default_rng(1)
    shape = (num_times, num_maps, GRID.num_lat, GRID.num_lon)
    offset = np.array([5e4, 280.0, 0.01])[:num_maps, None, None]
    scale = np.array([900.0, 10.0, 0.002])[:num_maps, None, None]
    return (offset + scale * generator.normal(size=shape)).astype(np.float32)


def _layout(num_fields: int = 2, num_diagnostics: int = 1) -> StatisticsLayout:
    names = tuple("abc")[: num_fields + num_diagnostics]
    everything = slice(0, num_fields), slice(0, num_diagnostics), slice(0, GRID.num_lat)
    return StatisticsLayout(names, num_fields, GRID.num_lat, *everything)


def _built(chunks: list[np.ndarray], stride: int = 1) -> Statistics:
    builder = StatisticsBuilder(2, 1, WEIGHTS, GRID.num_lon, stride)
    for chunk in chunks:
        builder.add(chunk)
    return builder.finish(MESH, _layout())


def test_statistics_equal_numpy_on_the_whole() -> None:
    values = _values()
    found = _built([values])
    whole = values.astype(np.float64)
    cell = (WEIGHTS / (GRID.num_lat * GRID.num_lon))[:, None]
    anomaly = whole - whole.mean(0)
    change = np.diff(whole[:, :2], axis=0)
    rain = whole[:, 2]
    rain_mean = (rain.mean(0) * cell).sum()
    np.testing.assert_allclose(found.mean, whole[:, :2].mean(0), rtol=1e-6)
    variance = (np.square(anomaly[:, :2]).mean(0) * cell).sum((1, 2))
    np.testing.assert_allclose(found.std, np.sqrt(variance), rtol=1e-6)
    tendency = (np.square(change).mean(0) * cell).sum((1, 2))
    np.testing.assert_allclose(found.tendency_std, np.sqrt(tendency), rtol=1e-6)
    np.testing.assert_allclose(found.diagnostic_mean, [rain_mean], rtol=1e-6)
    rain_variance = (np.square(rain - rain_mean).mean(0) * cell).sum()
    np.testing.assert_allclose(found.diagnostic_std, [np.sqrt(rain_variance)], rtol=1e-5)


@pytest.mark.parametrize("sizes", [(1, 39), (13, 1, 26), (20, 20)])
def test_chunks_change_nothing(sizes: tuple[int, ...]) -> None:
    values = _values()
    parts = np.split(values, np.cumsum(sizes)[:-1])
    whole, chunked = _built([values]).to_arrays(), _built(list(parts)).to_arrays()
    for name, array in whole.items():
        np.testing.assert_allclose(chunked[name], array, rtol=1e-6)


def test_a_tendency_spans_the_stride() -> None:
    values = _values()
    whole = values[:, :2].astype(np.float64)
    change = whole[4:] - whole[:-4]
    cell = (WEIGHTS / (GRID.num_lat * GRID.num_lon))[:, None]
    expected = np.sqrt((np.square(change).mean(0) * cell).sum((1, 2)))
    found = _built([values[:3], values[3:17], values[17:]], stride=4)
    np.testing.assert_allclose(found.tendency_std, expected, rtol=1e-6)


def test_moments_of_two_values_are_as_by_hand() -> None:
    moments = PointMoments((1,))
    moments.add(np.array([[1.0]]))
    moments.add(np.array([[3.0]]))
    assert (moments.count, moments.mean[0], moments.squares[0]) == (2, 2.0, 2.0)


def test_a_piece_of_the_rows_gives_its_part_of_the_whole() -> None:
    values = _values()
    whole = _built([values])
    variances = np.zeros(2)
    for rows in (slice(0, 2), slice(2, 4)):
        builder = StatisticsBuilder(2, 1, WEIGHTS[rows], GRID.num_lon)
        builder.add(values[:, :, rows])
        layout = StatisticsLayout("abc", 2, GRID.num_lat, slice(0, 2), slice(0, 1), rows)
        part = builder.finish(MESH, layout)
        variances += np.square(part.std.astype(np.float64))
        np.testing.assert_array_equal(part.mean[:, rows], whole.mean[:, rows])
    np.testing.assert_allclose(np.sqrt(variances), whole.std, rtol=1e-6)


def test_a_field_that_never_varies_is_named() -> None:
    values = _values()
    values[:, 1] = 7.0
    with pytest.raises(DataError, match=r"never vary.*: b$"):
        _built([values])


def test_statistics_pass_through_their_arrays() -> None:
    found = _built([_values()])
    again = Statistics.from_arrays(found.to_arrays())
    for name, array in found.to_arrays().items():
        np.testing.assert_array_equal(again.to_arrays()[name], array)


def test_missing_arrays_are_named() -> None:
    arrays = _built([_values()]).to_arrays()
    del arrays["std"], arrays["diagnostic_mean"]
    with pytest.raises(DataError, match="missing arrays std, diagnostic_mean"):
        Statistics.from_arrays(arrays)
