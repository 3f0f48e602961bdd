"""NetcdfSource: names, dims, units, times; expected values are those written."""

from pathlib import Path

import cfgrib
import netCDF4
import numpy as np
import pytest
import xarray as xr

from jigsaw_forecast.data.classic_netcdf import why_not_whole
from jigsaw_forecast.data.initial_state import plan_initial_state
from jigsaw_forecast.data.source import open_source
from jigsaw_forecast.errors import DataError
from jigsaw_forecast.fields import Field
from jigsaw_forecast.grid import Grid
from tests.unit.data.grib_files import LATITUDES, LONGITUDES, message, temperature_map, write

TIME = np.datetime64("2026-06-24T00:00", "ns")
GRID = Grid(8, 16, has_poles=False)
T500 = Field("temperature", 500)


def dataset(
    values: np.ndarray,
    dims: tuple[str, ...] = ("latitude", "longitude"),
    name: str = "t",
    attrs: dict[str, str] | None = None,
    **coords: object,
) -> xr.Dataset:
    defaults: dict[str, object] = {
        "latitude": ("latitude", LATITUDES),
        "longitude": ("longitude", LONGITUDES),
        "level": 500,
        "time": TIME,
    }
    chosen = {key: value for key, value in (defaults | coords).items() if value is not None}
    array = xr.DataArray(values, dims=dims, name=name, attrs=attrs or {"units": "K"})
    return array.to_dataset().assign_coords(chosen)


def read(path: Path, field: Field = T500, member: int | None = None) -> np.ndarray:
    plan = plan_initial_state(
        open_source(path), [field], GRID, TIME, regrid=False, plausible={}, member=member
    )
    return plan.read([field])[0]


def saved(tmp_path: Path, data: xr.Dataset, **encoding: object) -> Path:
    path = tmp_path / "state.nc"
    data.to_netcdf(path, encoding={name: dict(encoding) for name in data.data_vars})
    return path


def test_dims_in_any_order_with_s_n_rows_and_shifted_columns(tmp_path: Path) -> None:
    turned = np.roll(temperature_map()[::-1], 8, axis=1).T
    data = dataset(
        turned,
        ("lon", "lat"),
        latitude=None,
        longitude=None,
        lat=("lat", LATITUDES[::-1]),
        lon=("lon", np.roll(np.where(LONGITUDES >= 180, LONGITUDES - 360, LONGITUDES), 8)),
    )
    np.testing.assert_array_equal(read(saved(tmp_path, data)), temperature_map())


@pytest.mark.parametrize(
    ("name", "attrs"),
    [
        ("temperature", {}),
        ("t", {"units": "K"}),
        ("T", {"units": "K"}),
        ("ta", {"units": "K"}),
        ("air", {"units": "degK"}),
        ("field_1", {"units": "K", "standard_name": "air_temperature"}),
    ],
)
def test_names_of_all_conventions(tmp_path: Path, name: str, attrs: dict[str, str]) -> None:
    path = saved(tmp_path, dataset(temperature_map(), name=name, attrs=attrs or {"x": "y"}))
    np.testing.assert_array_equal(read(path), temperature_map())


@pytest.mark.parametrize(
    ("level_name", "values", "units"),
    [
        ("level", [850, 500], "millibars"),
        ("level", [850, 500], None),
        ("isobaricInhPa", [850, 500], "hPa"),
        ("pressure_level", [850.0, 500.0], "hPa"),
        ("plev", [85000.0, 50000.0], "Pa"),
        ("plev", [85000.0, 50000.0], None),
        ("lev", [850.0, 500.0], "hPa"),
    ],
)
def test_levels_in_pa_and_hpa(
    tmp_path: Path, level_name: str, values: list[float], units: str | None
) -> None:
    stacked = np.stack([temperature_map() + 10, temperature_map()])
    coordinate = (level_name, values, {"units": units} if units else {})
    data = dataset(
        stacked,
        (level_name, "latitude", "longitude"),
        **{"level": None, level_name: coordinate},
    )
    np.testing.assert_array_equal(read(saved(tmp_path, data)), temperature_map())


def test_celsius_becomes_kelvin(tmp_path: Path) -> None:
    data = dataset(temperature_map() - 273.15, attrs={"units": "degC"})
    np.testing.assert_allclose(read(saved(tmp_path, data)), temperature_map(), rtol=1e-6)


def test_height_in_metres_under_z_becomes_geopotential(tmp_path: Path) -> None:
    path = saved(tmp_path, dataset(temperature_map(), name="z", attrs={"units": "m"}))
    np.testing.assert_allclose(
        read(path, Field("geopotential", 500)), temperature_map() * 9.80665, rtol=1e-6
    )


def test_packed_integers_are_unpacked_and_masked(tmp_path: Path) -> None:
    holed = temperature_map()
    holed[1, 1] = np.nan
    path = saved(
        tmp_path,
        dataset(holed),
        dtype="int16",
        scale_factor=0.5,
        add_offset=250.0,
        _FillValue=-32767,
    )
    source = open_source(path)
    (record,) = source.records()
    np.testing.assert_array_equal(next(source.read([record])), holed)
    assert source.statistics(record).missing == 1


def test_a_forecast_is_found_by_init_plus_lead_time(tmp_path: Path) -> None:
    leads = np.array([0, 6, 12], dtype="timedelta64[h]").astype("timedelta64[ns]")
    inits = np.array([TIME - leads[2], TIME - leads[1]])
    values = temperature_map() + 100.0 * np.arange(6).reshape(2, 3, 1, 1)
    data = dataset(
        values,
        ("time", "prediction_timedelta", "latitude", "longitude"),
        time=("time", inits),
        prediction_timedelta=("prediction_timedelta", leads),
    )
    # both inits reach the time, with 12 and 6 hours; the shorter lead time is taken
    np.testing.assert_array_equal(read(saved(tmp_path, data)), temperature_map() + 400.0)


def test_members_are_chosen_by_number(tmp_path: Path) -> None:
    values = np.stack([temperature_map(), temperature_map() + 5])
    data = dataset(values, ("number", "latitude", "longitude"), number=("number", [0, 7]))
    path = saved(tmp_path, data)
    np.testing.assert_array_equal(read(path, member=7), temperature_map() + 5)
    with pytest.raises(DataError, match="ensemble members 0, 7; give --members N"):
        read(path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"time": None}, "no time coordinate"),
        ({"level": None}, "no coordinate says on which pressure level"),
        ({"attrs": {"units": "furlong"}}, "units 'furlong' are unknown"),
        ({"attrs": {"cell_methods": "time: mean"}}, "not a value at a point in time"),
        ({"latitude": ("latitude", LATITUDES / 2)}, "regional grid"),
        ({"latitude": ("latitude", LATITUDES * np.linspace(1, 1.03, 8))}, "neither evenly"),
        ({"level": ((), 50000)}, "no pressures in hPa"),
        ({"name": "snow_colour"}, "the file has none"),
    ],
)
def test_what_cannot_be_used_is_refused(
    tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    path = saved(tmp_path, dataset(temperature_map(), **changes))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=says):
        read(path)


def test_another_calendar_is_refused_by_name(tmp_path: Path) -> None:
    data = dataset(temperature_map()[None], ("time", "latitude", "longitude"), time=("time", [30]))
    data["time"].attrs = {"units": "days since 2026-01-01", "calendar": "360_day"}
    with pytest.raises(DataError, match="calendar 360_day"):
        read(saved(tmp_path, data))


def test_a_file_of_groups_says_which_there_are(tmp_path: Path) -> None:
    dataset(temperature_map()).to_netcdf(tmp_path / "a.nc", group="analysis")
    with pytest.raises(DataError, match=r"only groups: analysis; make a file"):
        open_source(tmp_path / "a.nc")


def test_an_axis_without_coordinate_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing coordinate latitude"):
        read(saved(tmp_path, dataset(temperature_map(), latitude=None)))


def test_a_time_that_is_there_twice_with_other_values_is_refused_by_time(tmp_path: Path) -> None:
    values = np.stack([temperature_map(), temperature_map() + 9])
    data = dataset(values, ("time", "latitude", "longitude"), time=("time", [TIME, TIME]))
    with pytest.raises(DataError, match="array t has the time 2026-06-24T00:00 twice; remove one"):
        read(saved(tmp_path, data))


def test_a_list_of_points_is_refused_as_unstructured(tmp_path: Path) -> None:
    data = dataset(
        temperature_map().ravel(),
        ("values",),
        latitude=("values", np.repeat(LATITUDES, 16)),
        longitude=("values", np.tile(LONGITUDES, 8)),
    )
    with pytest.raises(DataError, match="unstructured"):
        read(saved(tmp_path, data))


@pytest.mark.parametrize("file_format", ["NETCDF4", "NETCDF3_CLASSIC"])
def test_a_truncated_file_is_refused(tmp_path: Path, file_format: str) -> None:
    path = tmp_path / "state.nc"
    dataset(temperature_map()).to_netcdf(path, format=file_format)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DataError, match=r"state\.nc"):
        read(path)


FORMATS = ("NETCDF3_CLASSIC", "NETCDF3_64BIT_OFFSET", "NETCDF3_64BIT_DATA")


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("record_dims", [(), ("x",), ("x", "y")])
def test_a_classic_file_is_whole_by_its_header(
    tmp_path: Path, file_format: str, record_dims: tuple[str, ...]
) -> None:
    """The library reads zeros where a classic file has been cut off."""
    path = tmp_path / "a.nc"
    with netCDF4.Dataset(path, "w", format=file_format) as data:
        data.title = "odd"
        data.createDimension("time", None)
        data.createDimension("x", 5)
        data.createDimension("y", 3)
        data.createVariable("fixed", "f8", ("y", "x"))[:] = 1.0
        data["fixed"].units = "K"
        for dim in record_dims:  # one array of records is not padded, two are
            data.createVariable(f"of_{dim}", "i2", ("time", dim))[:3] = np.full((3, 5), 7)[
                :, : data.dimensions[dim].size
            ]
    whole = path.read_bytes()
    assert why_not_whole(path) == ""
    filling = 2 if len(record_dims) == 2 else 0  # after 3 values of 2 bytes
    path.write_bytes(whole[: len(whole) - filling])
    assert why_not_whole(path) == ""
    path.write_bytes(whole[: len(whole) - filling - 1])
    assert why_not_whole(path).startswith("truncated")
    path.write_bytes(whole[:60])
    assert why_not_whole(path).startswith("truncated")


def test_wind_that_was_cut_off_is_refused_although_it_reads_as_calm(tmp_path: Path) -> None:
    path = tmp_path / "wind.nc"
    wind = xr.DataArray(np.full((8, 16), 9.0), dims=("latitude", "longitude"))
    coords = {"latitude": LATITUDES, "longitude": LONGITUDES, "time": TIME}
    xr.Dataset({"u10": wind}, coords).to_netcdf(path, format="NETCDF3_CLASSIC")
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError, match=r"wind\.nc is truncated: its header tells of"):
        open_source(path)


def test_only_the_selected_time_is_read(tmp_path: Path) -> None:
    times = TIME + np.arange(100) * np.timedelta64(6, "h")
    values = np.broadcast_to(temperature_map().astype("f4"), (100, 8, 16))
    data = dataset(values, ("time", "latitude", "longitude"), time=("time", times))
    source = open_source(saved(tmp_path, data))
    plan_initial_state(source, [T500], GRID, TIME, regrid=False, plausible={}).read([T500])
    assert source.bytes_read == 8 * 16 * 4


def as_cfgrib_writes(standard_name: str = "time", **coords: object) -> xr.Dataset:
    """One step of six hours: scalar time (its start), step and valid_time."""
    times: dict[str, object] = {
        "time": ((), TIME - np.timedelta64(6, "h"), {"standard_name": standard_name}),
        "step": ((), np.timedelta64(6, "h").astype("timedelta64[ns]")),
        "valid_time": ((), TIME, {"standard_name": "time"}),
    }
    return dataset(temperature_map(), **(times | coords))


@pytest.mark.parametrize("standard_name", ["time", "forecast_reference_time"])
def test_the_step_of_cfgrib_is_in_its_valid_time_already(
    tmp_path: Path, standard_name: str
) -> None:
    source = open_source(saved(tmp_path, as_cfgrib_writes(standard_name)))
    (record,) = source.records()
    assert record.why == ""
    assert record.valid_time == TIME
    assert record.init_time == TIME - np.timedelta64(6, "h")


def test_cfgribs_own_netcdf_has_the_valid_time_of_its_grib(tmp_path: Path) -> None:
    grib = write(tmp_path / "a.grib", message(temperature_map(), stepRange="6"))
    with cfgrib.open_dataset(grib, indexpath="") as data:
        data.to_netcdf(tmp_path / "a.nc")
    (record,) = open_source(tmp_path / "a.nc").records()
    assert record.valid_time == np.datetime64("2026-06-24T06:00")


def test_several_steps_of_cfgrib_have_their_valid_times(tmp_path: Path) -> None:
    steps = np.array([6, 12], dtype="timedelta64[h]").astype("timedelta64[ns]")
    data = as_cfgrib_writes().drop_vars(["step", "valid_time"]).expand_dims(step=steps)
    data = data.assign_coords(valid_time=("step", TIME - np.timedelta64(6, "h") + steps))
    source = open_source(saved(tmp_path, data))
    np.testing.assert_array_equal(source.valid_times(), [TIME, TIME + np.timedelta64(6, "h")])


def test_times_along_a_valid_time_dimension_are_read(tmp_path: Path) -> None:
    times = np.array([TIME - np.timedelta64(6, "h"), TIME])
    maps = np.stack([temperature_map() + 9, temperature_map()])
    data = dataset(
        maps, ("valid_time", "latitude", "longitude"), time=None, valid_time=("valid_time", times)
    )
    np.testing.assert_array_equal(read(saved(tmp_path, data)), temperature_map())


def test_a_valid_time_that_disagrees_with_its_step_is_refused(tmp_path: Path) -> None:
    wrong = ((), TIME + np.timedelta64(6, "h"), {"standard_name": "time"})
    path = saved(tmp_path, as_cfgrib_writes(valid_time=wrong))
    with pytest.raises(
        DataError,
        match="times disagree: valid time 2026-06-24T06:00:00, but initial time "
        "2026-06-23T18:00:00 and lead time 6 hours make 2026-06-24T00:00:00",
    ):
        read(path)
