"""Conversion to the training set: what is written, what is taken up again, what is refused."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from jigsaw_forecast.data import convert as convert_module
from jigsaw_forecast.data import convert_finish, convert_worker
from jigsaw_forecast.data.convert import ConvertRequest, convert
from jigsaw_forecast.data.convert_fields import Selection
from jigsaw_forecast.data.mock import mock_fields, write_mock_store
from jigsaw_forecast.data.recompute import StatisticsRequest, compare_statistics
from jigsaw_forecast.data.shards import ShardBuffer
from jigsaw_forecast.data.store import Period
from jigsaw_forecast.data.stores import open_store
from jigsaw_forecast.data.training_store import TrainingStore
from jigsaw_forecast.errors import DataError, GridError, OutputError
from jigsaw_forecast.fields import Field
from jigsaw_forecast.grid import Grid

FIELDS = (
    Field("geopotential", 500),
    Field("geopotential", 850),
    Field("temperature", 500),
    Field("temperature", 850),
    Field("2m_temperature"),
    Field("total_precipitation_6hr"),
)
GRID = Grid.parse("16x9")  # rows on the poles: the last one is left out
ROWS = 8
TIMES = np.arange(
    np.datetime64("2020-01-01T00", "h"), np.datetime64("2020-01-09T00", "h"), np.timedelta64(6, "h")
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "mock.zarr"
    write_mock_store(path, FIELDS, GRID, TIMES)
    return path


@pytest.fixture(scope="module")
def converted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("converted") / "set.zarr"
    convert(_request(source, path, num_bands=4))
    return path


def _request(source: Path, output: Path, **changes: object) -> ConvertRequest:
    request = ConvertRequest((source,), output, Selection(FIELDS))
    return replace(request, **changes)  # type: ignore[arg-type]


def _changed(source: Path, path: Path, change: Callable[[xr.Dataset], xr.Dataset]) -> Path:
    data = xr.open_zarr(source, chunks=None, consolidated=False).load()
    change(data).drop_encoding().to_zarr(path, zarr_format=3, consolidated=False)
    return path


def test_zarr_reads_what_was_written(converted: Path) -> None:
    found = xr.open_zarr(converted, chunks=None, consolidated=False)
    expected = mock_fields(FIELDS, GRID, TIMES)[:, :, :ROWS]
    np.testing.assert_array_equal(found["values"].values, expected)
    np.testing.assert_array_equal(found["time"].values, TIMES.astype("datetime64[ns]"))
    np.testing.assert_array_equal(found["latitude"].values, GRID.latitudes[:ROWS])
    assert found["values"].attrs["fields"] == ["z500", "z850", "t500", "t850", "2t", "tp"]
    array = zarr.open_array(converted / "values", mode="r")
    assert array.chunks == (1, 1, ROWS // 4, 16)
    names = [
        codec["name"] for codec in array.metadata.to_dict()["codecs"][0]["configuration"]["codecs"]
    ]  # type: ignore[index,union-attr,call-overload]
    assert names == ["bytes", "blosc", "crc32c"]


def test_the_store_reads_any_fields_rows_and_times_in_any_order(converted: Path) -> None:
    store = open_store(converted, FIELDS[:3])
    assert store.grid == GRID
    places, rows, times = [4, 0, 3], slice(1, 7), np.array([30, 2, 2, 17])
    found = store.read(times, [FIELDS[place] for place in places], rows)
    expected = mock_fields(FIELDS, GRID, TIMES)
    np.testing.assert_array_equal(found, expected[times][:, places, rows])


def test_static_fields_are_kept(converted: Path, source: Path) -> None:
    for name in ("land_sea_mask", "geopotential_at_surface"):
        expected = open_store(source, ()).static(name)[:ROWS]
        np.testing.assert_array_equal(open_store(converted, ()).static(name), expected)


def test_moments_equal_numpy(converted: Path) -> None:
    store = TrainingStore(converted)
    values = mock_fields(FIELDS, GRID, TIMES)[:, :, :ROWS].astype(np.float64)
    weights = GRID.area_weights()[:ROWS]
    area = (weights / weights.sum() / 16)[:, None]
    summary = store.moments().over_time()
    mean = (values * area).sum((2, 3)).mean(0)
    np.testing.assert_allclose(summary.mean, mean, rtol=1e-6, atol=1e-9)
    variance = (np.square(values - mean[:, None, None]) * area).sum((2, 3)).mean(0)
    np.testing.assert_allclose(summary.std, np.sqrt(variance), rtol=1e-5)
    change = (np.square(np.diff(values, axis=0)) * area).sum((2, 3)).mean(0)
    np.testing.assert_allclose(summary.tendency_std, np.sqrt(change), rtol=1e-4)


@pytest.mark.parametrize("changes", [{"codec": "zstd", "num_bands": 8}, {"num_processes": 2}])
def test_codec_bands_and_workers_change_no_value(
    converted: Path, source: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    path = tmp_path / "other.zarr"
    convert(_request(source, path, **changes))
    one, other = TrainingStore(converted, FIELDS), TrainingStore(path, FIELDS)
    everything = np.arange(len(TIMES))
    np.testing.assert_array_equal(
        one.read(everything, FIELDS, slice(0, ROWS)), other.read(everything, FIELDS, slice(0, ROWS))
    )
    assert one.digest == other.digest
    for name, array in one.moments().to_arrays().items():
        np.testing.assert_allclose(other.moments().to_arrays()[name], array, rtol=1e-4, atol=1e-12)


def test_tendencies_span_the_step_of_finer_data(source: Path, tmp_path: Path) -> None:
    convert(_request(source, tmp_path / "set.zarr", step_hours=24))
    values = mock_fields(FIELDS, GRID, TIMES)[:, :, :ROWS].astype(np.float64)
    weights = GRID.area_weights()[:ROWS]
    area = (weights / weights.sum() / 16)[:, None]
    change = (np.square(values[4:] - values[:-4]) * area).sum((2, 3))
    found = TrainingStore(tmp_path / "set.zarr").moments().tendency
    assert np.isnan(found[:4]).all()
    np.testing.assert_allclose(found[4:], change, rtol=1e-4)


def test_finer_data_is_thinned_and_a_period_taken(source: Path, tmp_path: Path) -> None:
    period = Period.parse("2020-01-02/2020-01-05")
    convert(
        _request(source, tmp_path / "set.zarr", interval_hours=12, step_hours=12, period=period)
    )
    store = TrainingStore(tmp_path / "set.zarr")
    np.testing.assert_array_equal(store.times, TIMES[4:20:2].astype("datetime64[s]"))


def test_a_training_set_is_converted_again(converted: Path, tmp_path: Path) -> None:
    selection = Selection(FIELDS[1:3])
    convert(_request(converted, tmp_path / "set.zarr", selection=selection))
    found = TrainingStore(tmp_path / "set.zarr").read(np.arange(5), FIELDS[1:3], slice(None, ROWS))
    np.testing.assert_array_equal(found, mock_fields(FIELDS, GRID, TIMES)[:5, 1:3, :ROWS])


def test_regridding_keeps_a_field_that_is_the_same_everywhere(source: Path, tmp_path: Path) -> None:
    flat = _changed(source, tmp_path / "flat.zarr", lambda data: data.assign(
        {"2m_temperature": data["2m_temperature"] * 0 + 281.5}
    ))  # fmt: skip
    selection = Selection((Field("2m_temperature"),), Grid.parse("8x4"))
    header = convert(_request(flat, tmp_path / "set.zarr", selection=selection))
    assert header.grid.name == "8x4"
    found = TrainingStore(tmp_path / "set.zarr").read(np.arange(3), selection.fields, slice(None))
    np.testing.assert_allclose(found, 281.5, rtol=1e-6)


def test_stores_that_share_out_the_times_are_joined(source: Path, tmp_path: Path) -> None:
    parts = [
        _changed(source, tmp_path / f"{name}.zarr", lambda data, at=at: data.isel(time=at))
        for name, at in (("late", slice(15, None)), ("early", slice(0, 15)))
    ]
    convert(_request(source, tmp_path / "set.zarr", inputs=tuple(parts)))
    found = TrainingStore(tmp_path / "set.zarr").read(np.arange(len(TIMES)), FIELDS, slice(0, ROWS))
    np.testing.assert_array_equal(found, mock_fields(FIELDS, GRID, TIMES)[:, :, :ROWS])


def test_netcdf_files_that_share_out_the_fields_are_joined(source: Path, tmp_path: Path) -> None:
    data = xr.open_zarr(source, chunks=None, consolidated=False).load()
    for name in ("temperature", "2m_temperature"):
        data[name].attrs["units"] = "K"
    surface, levels = tmp_path / "surface.nc", tmp_path / "levels.nc"
    data[["2m_temperature", "land_sea_mask"]].to_netcdf(surface)
    in_celsius = data[["temperature"]] - 273.15
    in_celsius["temperature"].attrs["units"] = "degC"
    in_celsius.to_netcdf(levels)
    fields = (FIELDS[2], FIELDS[3], FIELDS[4])
    request = _request(source, tmp_path / "set.zarr", inputs=(surface, levels))
    convert(replace(request, selection=Selection(fields)))
    store = TrainingStore(tmp_path / "set.zarr")
    expected = mock_fields(FIELDS, GRID, TIMES)[:, 2:5, :ROWS]
    found = store.read(np.arange(len(TIMES)), fields, slice(0, ROWS))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_array_equal(store.static("land_sea_mask")[:, :5], 1.0)


def test_gaps_are_each_listed_and_allowed_on_demand(source: Path, tmp_path: Path) -> None:
    keep = np.delete(np.arange(len(TIMES)), [3, 4, 20])
    path = _changed(source, tmp_path / "gaps.zarr", lambda data: data.isel(time=keep))
    with pytest.raises(DataError) as caught:
        convert(_request(path, tmp_path / "set.zarr"))
    assert "2020-01-01T12:00:00 to 2020-01-02T06:00:00 (2 missing)" in str(caught.value)
    assert "2020-01-05T18:00:00 to 2020-01-06T06:00:00 (1 missing)" in str(caught.value)
    convert(_request(path, tmp_path / "set.zarr", allow_gaps=True))
    tendency = TrainingStore(tmp_path / "set.zarr").moments().tendency
    assert np.flatnonzero(np.isnan(tendency[:, 0])).tolist() == [0, 3, 18]


@pytest.mark.parametrize("value", [np.nan, 900.0, np.inf])
def test_values_that_cannot_be_are_named_and_nothing_is_finished(
    source: Path, tmp_path: Path, value: float
) -> None:
    def spoil(data: xr.Dataset) -> xr.Dataset:
        data["2m_temperature"][7, 1, 1] = value
        return data

    path = _changed(source, tmp_path / "bad.zarr", spoil)
    with pytest.raises(DataError, match=r"2t at 2020-01-02T18:00:00 .*plausible 160 to 345 K"):
        convert(_request(path, tmp_path / "set.zarr"))
    assert not (tmp_path / "set.zarr").exists()


def test_units_of_another_scale_are_converted_and_unknown_ones_refused(
    source: Path, tmp_path: Path
) -> None:
    def with_units(units: str) -> Callable[[xr.Dataset], xr.Dataset]:
        def change(data: xr.Dataset) -> xr.Dataset:
            data["2m_temperature"].attrs["units"] = units
            if units == "degC":
                data["2m_temperature"][:] -= 273.15
            return data

        return change

    celsius = _changed(source, tmp_path / "celsius.zarr", with_units("degC"))
    convert(_request(celsius, tmp_path / "set.zarr"))
    found = TrainingStore(tmp_path / "set.zarr").read(np.array([3]), FIELDS[4:5], slice(0, ROWS))
    expected = mock_fields(FIELDS, GRID, TIMES)[3:4, 4:5, :ROWS]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    furlongs = _changed(source, tmp_path / "furlongs.zarr", with_units("furlong"))
    with pytest.raises(DataError, match=r"2t.*furlong|furlong.*2t"):
        convert(_request(furlongs, tmp_path / "other.zarr"))


def test_a_missing_chunk_is_missing_values_even_where_the_fill_value_is_zero(
    source: Path, tmp_path: Path
) -> None:
    path = tmp_path / "hole.zarr"
    shutil.copytree(source, path)
    (path / "total_precipitation_6hr" / "c" / "5" / "0" / "0").unlink()
    meta = path / "total_precipitation_6hr" / "zarr.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"fill_value": 0.0}))
    with pytest.raises(DataError, match="missing or implausible values: tp at 2020-01-02T06"):
        convert(_request(path, tmp_path / "set.zarr"))
    with pytest.raises(DataError, match="missing or implausible values: tp at 2020-01-02T06"):
        open_store(path, FIELDS).read(np.arange(4, 8), FIELDS, slice(None))


def test_missing_fields_and_inputs_are_refused(source: Path, tmp_path: Path) -> None:
    wanted = (*FIELDS, Field("specific_humidity", 500), Field("geopotential", 100))
    request = _request(source, tmp_path / "set.zarr", selection=Selection(wanted))
    with pytest.raises(DataError, match=r"missing q500[\s\S]*missing z100"):
        convert(request)
    with pytest.raises(DataError, match="missing inputs: none.grib"):
        convert(replace(request, inputs=(Path("none.grib"), source)))


def test_a_grid_unlike_the_models_is_refused(source: Path, tmp_path: Path) -> None:
    request = _request(source, tmp_path / "set.zarr", model_grid=Grid.parse("64x32"))
    with pytest.raises(GridError, match=r"grid 16x9, but .* 64x32; regrid with --grid 64x32"):
        convert(request)
    with pytest.raises(DataError, match="3 bands do not divide the 8 rows"):
        convert(_request(source, tmp_path / "set.zarr", num_bands=3))


def _convert_until(request: ConvertRequest, shard: int, *, is_written: bool) -> None:
    """Converts until the n-th shard, then stops as a kill would, before or after it is written."""
    write = ShardBuffer.write
    left = shard

    def write_or_stop(buffer: ShardBuffer, path: Path) -> int:
        nonlocal left
        left -= 1
        if left == 0 and not is_written:
            path.with_name(f"{path.name}.1.partial").write_bytes(b"half a shard")
            raise KeyboardInterrupt
        size = write(buffer, path)
        if left == 0:
            raise KeyboardInterrupt
        return size

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert_worker.ShardBuffer, "write", write_or_stop)
        with pytest.raises(KeyboardInterrupt):
            convert(request)


@pytest.mark.parametrize("shard", [1, 2, 9, 16])
@pytest.mark.parametrize("is_written", [False, True])
def test_a_conversion_that_was_stopped_goes_on_to_the_same_result(
    converted: Path,
    source: Path,
    tmp_path: Path,
    shard: int,
    is_written: bool,
) -> None:
    output = tmp_path / "set.zarr"
    request = _request(source, output, num_bands=4)
    _convert_until(request, shard, is_written=is_written)
    with pytest.raises(DataError, match=rf"half converted: missing {17 - shard} of 16 shards"):
        open_store(output, FIELDS)
    assert not output.exists()
    (tmp_path / "set.zarr.partial" / "zarr.0.partial").touch()  # zarr writes its files like this
    convert(request)
    for name in ("values/c.3.0.0.0", "values/zarr.json", "moments/mean/c/0/0"):
        assert (output / name).read_bytes() == (converted / name).read_bytes()
    assert TrainingStore(output).digest == TrainingStore(converted).digest
    assert not list(output.rglob("*.partial"))


class _Stopping:
    """A module whose functions are killed before a step that is named, or half through it."""

    def __init__(self, module: object, last: str) -> None:
        self._module, self._last = module, last

    def __getattr__(self, name: str) -> object:
        function = getattr(self._module, name)
        if name not in ("sync", "rename", "rmtree", "unlink"):
            return function

        def step(*arguments: object, **options: object) -> None:
            if f"{name} {' '.join(Path(str(path)).name for path in arguments)}" == self._last:
                if name == "rmtree":  # what a reader looks for goes first
                    (Path(str(arguments[0])) / "zarr.json").unlink(missing_ok=True)
                raise KeyboardInterrupt
            function(*arguments, **options)

        return step


def test_a_conversion_stopped_at_any_step_of_its_end_goes_on_and_converts_nothing(
    source: Path, tmp_path: Path
) -> None:
    output = tmp_path / "set.zarr"
    small = _request(source, output, period=Period.parse("2020-01-01/2020-01-01"))
    request = replace(small, overwrite=True, num_bands=2)
    bands = {convert(small).layout.num_bands}
    for last, is_there, is_new in (
        ("sync ", True, False),
        ("rename set.zarr .set.zarr.replaced", True, False),
        ("rename set.zarr.partial set.zarr", False, False),
        ("rmtree .set.zarr.replaced", True, True),
        ("rmtree progress", True, True),
        ("unlink plan.json", True, True),
    ):
        with pytest.MonkeyPatch.context() as patch:
            if last != "sync ":
                patch.setattr(ShardBuffer, "write", None)  # no shard is converted again
            patch.setattr(convert_finish, "os", _Stopping(os, last))
            patch.setattr(convert_finish, "shutil", _Stopping(shutil, last))
            with pytest.raises(KeyboardInterrupt):
                convert(request)
        if is_there:  # whole, the old one or the new one
            header = TrainingStore(open_store(output, FIELDS).path).header
            assert header.layout.num_bands in ({2} if is_new else bands), last
        else:
            with pytest.raises(DataError, match="is converted and not yet finished; run the same"):
                open_store(output, FIELDS)
    header = convert(request)
    assert header == TrainingStore(output, FIELDS).header
    assert [path.name for path in tmp_path.iterdir()] == ["set.zarr"]
    assert not {"plan.json", "progress"} & {path.name for path in output.iterdir()}


def test_a_set_that_another_process_finishes_meanwhile_is_not_made_again(
    source: Path, tmp_path: Path
) -> None:
    request = _request(source, tmp_path / "set.zarr")
    lock = convert_module._locked

    def lock_late(partial: Path, plan: dict[str, object]) -> object:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(convert_module, "_locked", lock)
            convert(request)
        return lock(partial, plan)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert_module, "_locked", lock_late)
        header = convert(request)
    assert header == TrainingStore(request.output).header
    assert [path.name for path in tmp_path.iterdir()] == ["set.zarr"]


def test_a_plan_that_was_never_written_whole_is_written_again(source: Path, tmp_path: Path) -> None:
    request = _request(source, tmp_path / "set.zarr")
    _convert_until(request, 1, is_written=False)
    plan = tmp_path / "set.zarr.partial" / "plan.json"
    text = plan.read_text()
    plan.write_text(text[:20])
    _convert_until(request, 3, is_written=True)
    assert plan.read_text() == text
    plan.write_text(text[:20])
    with pytest.raises(OutputError, match=r"whose plan\.json is damaged; delete the folder"):
        convert(request)


def test_a_stopped_conversion_takes_no_other_plan(source: Path, tmp_path: Path) -> None:
    request = _request(source, tmp_path / "set.zarr")
    _convert_until(request, 3, is_written=True)
    with pytest.raises(OutputError, match=r"half of another conversion: codec lz4, now zstd"):
        convert(replace(request, codec="zstd"))


def test_a_whole_set_is_left_alone_and_another_refused(
    converted: Path, source: Path, tmp_path: Path
) -> None:
    path = tmp_path / "set.zarr"
    shutil.copytree(converted, path)
    before = (path / "zarr.json").stat().st_mtime_ns
    convert(_request(source, path, num_bands=4))
    assert (path / "zarr.json").stat().st_mtime_ns == before
    with pytest.raises(OutputError, match="was not made by this command; add --overwrite"):
        convert(_request(source, path, num_bands=2))
    convert(_request(source, path, num_bands=2, overwrite=True))
    assert TrainingStore(path).header.layout.num_bands == 2


def test_shards_that_are_gone_torn_or_damaged_are_named(converted: Path, tmp_path: Path) -> None:
    path = tmp_path / "set.zarr"
    shutil.copytree(converted, path)
    shard = path / "values" / "c.4.0.0.0"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    read = np.arange(len(TIMES)), FIELDS, slice(0, ROWS)
    with pytest.raises(DataError, match=r"c\.4\.0\.0\.0 is torn or damaged"):
        open_store(path, FIELDS).read(*read)
    shard.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(DataError, match=r"damaged chunks.*: z500 at 2020-01-03T00:00:00 rows 0 to"):
        open_store(path, FIELDS).read(*read)
    shard.unlink()
    with pytest.raises(DataError, match=r"missing 1 of 16 shards, from 2020-01-03T00:00:00"):
        open_store(path, FIELDS)


def test_statistics_made_again_agree(converted: Path) -> None:
    report = compare_statistics(StatisticsRequest(converted))
    assert report.problems == ()
    assert report.digest == TrainingStore(converted).digest
    summary = TrainingStore(converted).moments().over_time()
    np.testing.assert_allclose(report.summary.std, summary.std, rtol=1e-4)


def test_values_put_there_by_another_hand_are_found(
    converted: Path, source: Path, tmp_path: Path
) -> None:
    path, other = tmp_path / "set.zarr", tmp_path / "other.zarr"
    shutil.copytree(converted, path)
    warmer = _changed(source, tmp_path / "warmer.zarr", lambda data: data.assign(
        {"2m_temperature": data["2m_temperature"] + 1}
    ))  # fmt: skip
    convert(_request(warmer, other, num_bands=4))
    shutil.copy(other / "values" / "c.4.0.0.0", path / "values" / "c.4.0.0.0")
    report = compare_statistics(StatisticsRequest(path))
    with pytest.raises(DataError) as caught:
        report.check()
    assert "values differ from those converted: 2t at 2020-01-03T00:00:00" in str(caught.value)
    assert "stored mean differs, in deviations, by 2t" in str(caught.value)
    shutil.rmtree(path / "moments")
    shutil.copytree(other / "moments", path / "moments")
    with pytest.raises(DataError, match="moments are of another data set: digest"):
        TrainingStore(path).moments()
