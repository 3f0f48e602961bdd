"""Statistics of a training set against numpy on the whole and hand calculation."""

import multiprocessing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from jigsaw_forecast.data import recompute
from jigsaw_forecast.data.field_moments import PointMoments
from jigsaw_forecast.data.mock import mock_fields, write_mock_store
from jigsaw_forecast.data.recompute import StatisticsRequest, compare_statistics
from jigsaw_forecast.data.statistics import (
    Statistics,
    StatisticsBuilder,
    StatisticsLayout,
    StatisticsOrigin,
    load_statistics,
    row_weights,
    save_statistics,
)
from jigsaw_forecast.data.store import Period
from jigsaw_forecast.data.weather_store import WeatherStore
from jigsaw_forecast.errors import DataError, StoppedError
from jigsaw_forecast.fields import Field
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


def test_a_field_that_varies_by_rounding_only_is_named() -> None:
    statistics = _built([_values()])
    faint = replace(statistics, std=np.array([900.0, 3e-6], np.float32))
    with pytest.raises(DataError, match=r"never vary.*: b$"):
        faint.check("abc")


def test_a_file_with_a_field_that_never_varies_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "statistics.safetensors"
    for name in ("std", "tendency_std"):
        found = _built([_values()])
        getattr(found, name)[0] = 0.0
        found.diagnostic_std[0] = np.nan
        save_statistics(path, found, ORIGIN)
        with pytest.raises(DataError, match=r"statistics.safetensors: .*never vary.*: a, c"):
            load_statistics(path, ORIGIN)


def test_no_file_is_made_of_a_field_that_never_varies(tmp_path: Path) -> None:
    fields = (Field("geopotential", 500), Field("2m_temperature"))
    times = np.datetime64("2020-01-01T00", "h") + np.arange(8) * np.timedelta64(6, "h")
    write_mock_store(tmp_path / "mock.zarr", fields, Grid.parse("8x5"), times)
    warmth = zarr.open_array(tmp_path / "mock.zarr" / "2m_temperature")
    warmth[...] = 273.15
    output = tmp_path / "statistics.safetensors"
    request = StatisticsRequest(tmp_path / "mock.zarr", fields, output=output)
    with pytest.raises(DataError, match=r"mock.zarr: fields that never vary.*: 2t; leave them out"):
        compare_statistics(request)
    with pytest.raises(DataError, match="no two of 8 times are 5 h apart"):
        compare_statistics(replace(request, step_hours=5))
    assert not output.exists()


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


ORIGIN = StatisticsOrigin("abc", ("a", "b", "c"), "2020-01-01/2020-12-31", "6x4", 6)


def test_statistics_pass_through_a_file(tmp_path: Path) -> None:
    found = _built([_values()])
    save_statistics(tmp_path / "statistics.safetensors", found, ORIGIN)
    again = load_statistics(
        tmp_path / "statistics.safetensors", replace(ORIGIN, period="2019-01-01/2019-12-31")
    )
    for name, array in found.to_arrays().items():
        np.testing.assert_array_equal(again.to_arrays()[name], array)
    assert [file.name for file in tmp_path.iterdir()] == ["statistics.safetensors"]


def test_statistics_of_another_data_set_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "statistics.safetensors"
    save_statistics(path, _built([_values()]), ORIGIN)
    other = replace(ORIGIN, digest="def", fields=("a", "c"), step_hours=12)
    with pytest.raises(DataError) as caught:
        load_statistics(path, other)
    for part in ("another data set: digest abc, expected def", "['a', 'b', 'c']", "step_hours 6"):
        assert part in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no safetensors at all"])
def test_a_file_that_holds_no_statistics_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "statistics.safetensors"
    with pytest.raises(DataError, match="missing .*make it with"):
        load_statistics(path, ORIGIN)
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as statistics"):
        load_statistics(path, ORIGIN)


def test_statistics_from_any_number_of_workers_are_those_of_training(tmp_path: Path) -> None:
    """`data statistics --output` against `StatisticsBuilder` on the same values."""
    fields = (Field("geopotential", 500), Field("2m_temperature"), Field("total_precipitation_6hr"))
    grid = Grid.parse("8x5")
    times = np.arange(
        np.datetime64("2020-01-01T00", "h"),
        np.datetime64("2020-01-06", "h"),
        np.timedelta64(6, "h"),
    )
    write_mock_store(tmp_path / "mock.zarr", fields, grid, times)
    output = tmp_path / "statistics.safetensors"
    report = compare_statistics(
        StatisticsRequest(tmp_path / "mock.zarr", fields, num_diagnostics=1, output=output)
    )
    origin = StatisticsOrigin(report.digest, ("z500", "2t", "tp"), "", "8x5", 6)
    found = load_statistics(output, origin)
    builder = StatisticsBuilder(2, 1, row_weights(grid), 8)
    builder.add(mock_fields(fields, grid, times)[:, :, :4])
    everything = slice(0, 2), slice(0, 1), slice(0, 4)
    expected = builder.finish(MESH, StatisticsLayout(("z500", "2t", "tp"), 2, 4, *everything))
    for name, array in expected.to_arrays().items():
        np.testing.assert_allclose(found.to_arrays()[name], array, rtol=1e-5)


@pytest.fixture
def long_chunks(tmp_path: Path) -> Path:
    """A store whose chunks hold eight times."""
    times = np.datetime64("2020-01-01T00", "h") + np.arange(20) * np.timedelta64(6, "h")
    write_mock_store(tmp_path / "mock.zarr", (Field("2m_temperature"),), Grid.parse("8x5"), times)
    data = xr.open_zarr(tmp_path / "mock.zarr", chunks=None, consolidated=False).load()
    data.drop_encoding().to_zarr(
        tmp_path / "long.zarr",
        encoding={"2m_temperature": {"chunks": (8, 5, 8)}},
        zarr_format=3,
        consolidated=False,
    )
    return tmp_path / "long.zarr"


@pytest.mark.parametrize(("read_bytes", "expected"), [(1 << 20, [4, 8, 1]), (512, [4, 4, 4, 1])])
def test_times_of_a_chunk_are_read_together(
    long_chunks: Path, monkeypatch: pytest.MonkeyPatch, read_bytes: int, expected: list[int]
) -> None:
    period = Period.parse("2020-01-02/2020-01-05T00")
    blocks: list[int] = []
    read = WeatherStore.read

    def read_noted(store: WeatherStore, indices: np.ndarray, *others: object) -> np.ndarray:
        blocks.append(len(indices))
        return read(store, indices, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(WeatherStore, "read", read_noted)
    monkeypatch.setattr(recompute, "READ_BYTES", read_bytes)
    report = compare_statistics(StatisticsRequest(long_chunks, period=period))
    assert blocks == expected
    exact = WeatherStore(long_chunks, report.fields)
    values = exact.read(exact.indices(period), report.fields, slice(0, 4))
    assert report.maximum == [values.max()]


def test_a_worker_stops_where_another_has_failed(
    long_chunks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = multiprocessing.get_context("spawn").Event()
    stop.set()
    monkeypatch.setattr(recompute, "_stop", stop)
    with pytest.raises(StoppedError, match="stopped between two reads"):
        compare_statistics(StatisticsRequest(long_chunks))
