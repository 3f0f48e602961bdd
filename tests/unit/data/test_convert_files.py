"""Conversion from several files: what each holds, what they hold twice, what is told at once."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from jigsaw_forecast.data import convert_fields
from jigsaw_forecast.data.convert import ConvertRequest, convert
from jigsaw_forecast.data.convert_fields import Selection, find_fields
from jigsaw_forecast.data.mock import mock_fields, write_mock_store
from jigsaw_forecast.data.source import Source, open_source
from jigsaw_forecast.data.training_store import TrainingStore
from jigsaw_forecast.errors import DataError
from jigsaw_forecast.fields import Field
from jigsaw_forecast.grid import Grid
from tests.unit.data.grib_files import message, write

GRID = Grid.parse("16x8")
TIMES = np.arange(
    np.datetime64("2020-01-01T00", "h"), np.datetime64("2020-01-03T00", "h"), np.timedelta64(6, "h")
)
RAIN, WARMTH = Field("total_precipitation_6hr"), Field("2m_temperature")
FIELDS = (Field("temperature", 500), WARMTH, RAIN)
VALUES = mock_fields(FIELDS, GRID, TIMES)


def _dataset(*fields: Field, grid: Grid = GRID) -> xr.Dataset:
    values = mock_fields(FIELDS, grid, TIMES)
    arrays = {}
    for field in fields:
        maps = values[:, FIELDS.index(field)]
        dims: tuple[str, ...] = ("time", "latitude", "longitude")
        if field.level_hpa:
            maps, dims = maps[:, None], ("time", "level", "latitude", "longitude")
        arrays[field.variable] = (dims, maps)
    coords: dict[str, object] = {"time": TIMES.astype("datetime64[ns]")}
    coords |= {"latitude": grid.latitudes, "longitude": grid.longitudes}
    if any(field.level_hpa for field in fields):
        coords["level"] = [500]
    return xr.Dataset(arrays, coords=coords)


def _netcdf(path: Path, *fields: Field, grid: Grid = GRID) -> Path:
    _dataset(*fields, grid=grid).to_netcdf(path)
    return path


def _convert(folder: Path, *inputs: Path, fields: Sequence[Field] = ()) -> TrainingStore:
    output = folder / "set.zarr"
    convert(ConvertRequest(inputs, output, Selection(tuple(fields))))
    return TrainingStore(output)


def _refused(folder: Path, *inputs: Path, fields: Sequence[Field] = ()) -> str:
    with pytest.raises(DataError) as caught:
        _convert(folder, *inputs, fields=fields)
    assert not list(folder.glob("set.zarr/*"))
    return str(caught.value)


def test_fields_of_all_files_are_taken(tmp_path: Path) -> None:
    files = [_netcdf(tmp_path / f"{field}.nc", field) for field in FIELDS]
    for inputs in (files, files[::-1]):
        assert find_fields(*inputs) == FIELDS
    store = _convert(tmp_path, *files)
    found = store.read(np.arange(len(TIMES)), FIELDS, slice(0, 8))
    np.testing.assert_array_equal(found, VALUES)


def test_files_that_share_out_fields_stay_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [_netcdf(tmp_path / f"{field}.nc", field) for field in FIELDS]
    opens: list[Path] = []

    def open_counted(path: Path) -> Source:
        opens.append(path)
        return open_source(path)

    monkeypatch.setattr(convert_fields, "MIN_KEPT", 2)
    monkeypatch.setattr(convert_fields, "_sources", convert_fields._Sources())
    monkeypatch.setattr(convert_fields, "open_source", open_counted)
    _convert(tmp_path, *files)
    # once for the fields and once for the times; then as many as are read together stay open
    assert len(opens) <= 3 * len(files) < len(TIMES) * len(files)


def test_relative_humidity_and_height_count_for_what_they_are_converted_to(tmp_path: Path) -> None:
    def at_500(param: int) -> bytes:
        return message(np.full((8, 16), 50.0), paramId=param)

    path = write(tmp_path / "humid.grib", at_500(156), at_500(157), at_500(130))
    expected = [Field(name, 500) for name in ("geopotential", "temperature", "specific_humidity")]
    assert find_fields(path) == tuple(expected)
    cold = write(tmp_path / "cold.grib", at_500(156), at_500(157))
    assert find_fields(cold) == tuple(expected[:1])


def test_rain_whose_hours_are_not_told_is_refused_for_that(tmp_path: Path) -> None:
    path = tmp_path / "tp.nc"
    _dataset(WARMTH, RAIN).rename({RAIN.variable: "tp"}).to_netcdf(path)
    found = _refused(tmp_path, path, fields=(WARMTH, RAIN))
    assert "nothing says that tp is the sum over the 6 h before" in found
    assert find_fields(path) == (WARMTH,)


@pytest.mark.parametrize(("steps", "is_taken"), [((6, 12), True), ((0, 12), False)])
def test_rain_in_grib_is_taken_over_six_hours(
    tmp_path: Path, steps: tuple[int, int], is_taken: bool
) -> None:
    keys = {"edition": 1, "paramId": 228, "indicatorOfTypeOfLevel": 1, "level": 0}
    keys |= {"timeRangeIndicator": 4, "P1": steps[0], "P2": steps[1], "dataDate": 20200101}
    rain = message(np.full((8, 16), 0.001), **keys)
    path = write(tmp_path / "tp.grib", rain)
    if is_taken:
        assert find_fields(path) == (RAIN,)
    else:
        with pytest.raises(DataError, match="accum over steps 0-12, not the sum over 6 hours"):
            find_fields(path)


def test_rain_in_kilograms_is_converted(tmp_path: Path) -> None:
    """As forecasts and GRIB 2 hold it: paramId 228228 in kg m-2, summed since the step before."""
    messages = []
    for lead in (6, 12):
        keys = {"productDefinitionTemplateNumber": 8, "paramId": 228228, "dataDate": 20200101}
        keys |= {"typeOfFirstFixedSurface": 1, "typeOfSecondFixedSurface": 255}
        keys |= {"stepRange": f"{lead - 6}-{lead}"}  # type: ignore[dict-item]
        messages.append(message(np.full((8, 16), 2.0), **keys))
    path = write(tmp_path / "tp.grib2", *messages)
    store = _convert(tmp_path, path)
    assert store.header.fields == (RAIN,)
    np.testing.assert_allclose(store.read(np.arange(2), (RAIN,), slice(0, 8)), 0.002, rtol=1e-5)


def test_files_that_contradict_each_other_are_refused_and_equals_are_not(tmp_path: Path) -> None:
    one = _netcdf(tmp_path / "one.nc", *FIELDS)
    same = _netcdf(tmp_path / "same.nc", *FIELDS)
    other = tmp_path / "other.nc"
    changed = _dataset(*FIELDS)
    changed[WARMTH.variable][2] += 1.0
    changed.to_netcdf(other)
    with pytest.raises(DataError) as caught:
        _convert(tmp_path, one, other)
    text = str(caught.value)
    assert f"2t occurs with different values in {one} (array 2m_temperature) and {other}" in text
    assert "2020-01-01T12" in text
    folder = tmp_path / "equal"
    folder.mkdir()
    assert _convert(folder, one, same).header.num_times == len(TIMES)


def test_stores_that_overlap_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stores = tmp_path / "one.zarr", tmp_path / "other.zarr"
    for path, times in zip(stores, (TIMES[:5], TIMES[4:]), strict=True):
        write_mock_store(path, FIELDS, GRID, times)
    with caplog.at_level(logging.WARNING, "jigsaw_forecast"):
        store = _convert(tmp_path, *stores)
    assert "2020-01-02T00:00: held more than once; the store named first gives them" in caplog.text
    np.testing.assert_array_equal(store.read(np.arange(8), FIELDS, slice(0, 8)), VALUES)


def test_another_grid_at_a_later_time_is_refused_at_once(tmp_path: Path) -> None:
    first = _netcdf(tmp_path / "first.nc", WARMTH)
    later = tmp_path / "later.nc"
    shifted = _dataset(WARMTH, grid=Grid.parse("32x16"))
    shifted.assign_coords(time=shifted["time"] + np.timedelta64(48, "h")).to_netcdf(later)
    found = _refused(tmp_path, first, later)
    assert "mixed grids: regular_ll 8x16" in found
    assert f"in {first}, unlike regular_ll 16x32" in found
    assert "convert those of each grid apart with --grid" in found
    assert not list(tmp_path.glob("set.zarr*"))


def test_a_file_of_which_nothing_is_taken_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = _netcdf(tmp_path / "wanted.nc", WARMTH)
    unwanted = tmp_path / "unwanted.nc"
    _dataset(WARMTH).isel(latitude=slice(0, 4)).to_netcdf(unwanted)
    mask = tmp_path / "mask.nc"
    land = _dataset(WARMTH)[WARMTH.variable][0].drop_vars("time") * 0.0
    land.rename("land_sea_mask").to_netcdf(mask)
    with caplog.at_level(logging.WARNING, "jigsaw_forecast"):
        _convert(tmp_path, wanted, unwanted, mask, fields=(WARMTH,))
    assert f"{unwanted}: none of the fields wanted is in it" in caplog.text
    assert "regional grid" in caplog.text
    assert f"{mask}: none" not in caplog.text


def test_all_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    good = _netcdf(tmp_path / "good.nc", *FIELDS)
    empty, page = tmp_path / "empty.grib", tmp_path / "page.grib"
    empty.touch()
    page.write_text("<!DOCTYPE html><html></html>")
    found = _refused(tmp_path, empty, good, page)
    assert f"{empty} is empty" in found
    assert f"{page} is an HTML page" in found


def test_arrays_without_a_time_are_refused_for_that(tmp_path: Path) -> None:
    path = tmp_path / "timeless.nc"
    _dataset(WARMTH).drop_vars("time").to_netcdf(path)
    assert "2m_temperature: no time coordinate" in _refused(tmp_path, path)


def test_static_maps_are_looked_at_before_anything_is_converted(tmp_path: Path) -> None:
    data = _netcdf(tmp_path / "data.nc", WARMTH)
    holes = tmp_path / "holes.nc"
    mask = _dataset(WARMTH)[WARMTH.variable][0].drop_vars("time").rename("land_sea_mask") * 0.0
    mask[3, 3] = np.nan
    mask.to_netcdf(holes)
    torn = tmp_path / "torn.nc"
    torn.write_bytes(data.read_bytes()[:300])
    for statics, why in (
        (holes, "land_sea_mask has missing or implausible values: missing values"),
        (torn, "cannot be read"),
    ):
        request = ConvertRequest((data,), tmp_path / "set.zarr", statics=statics)
        with pytest.raises(DataError, match=why) as caught:
            convert(request)
        assert str(statics) in str(caught.value)
    assert not list(tmp_path.glob("set.zarr*"))
