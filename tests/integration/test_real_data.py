"""Every file of the real-data manifest is read as an independent reader reads it, or refused.

The independent readers are eccodes' own point iterator (coordinates and values, point by point),
cfgrib with xarray, and netCDF4. Files that no forecast can use are expected to say why.
"""

import functools
import json
import re
from pathlib import Path

import eccodes
import netCDF4
import numpy as np
import pytest
import xarray as xr

from jigsaw_forecast.cli.main import main
from jigsaw_forecast.data.records import FieldRecord
from jigsaw_forecast.data.source import open_source, plan_initial_state
from jigsaw_forecast.errors import DataError
from jigsaw_forecast.fields import NATURE_RUN_FIELDS, WEATHERBENCH_FIELDS, Field, plausible_range
from jigsaw_forecast.grid import Grid

REFUSED = {
    "broken/empty_file.grib": "is empty",
    "broken/test_padding.grib": "belong to no GRIB message",
    "era5-eda/era5-levels-corrupted.grib": "no 7777",
    "series-gfs10m/gfs.1p00.2018101018.f000.html_error": "HTML page",
    "series-gfs10m/gfs.1p00.2018101018.f003.html_error": "HTML page",
}
# Files in which some field can be used: path and number of fields, usable fields.
USABLE = {
    "broken/regular_ll_wrong_increment.grib": (1, 1),
    "dates/hdate.grib": (1, 1),
    "ens/regular_ll_msl.grib": (1, 1),
    "era5-eda/era5-levels-members.grib": (160, 160),
    "gfs-misc/flxf2006040100.grb": (96, 5),
    "grids/wind_20x20.grib": (2, 2),
    "ifs-opendata/20240101000000-0h-oper-fc.grib2.0-10": (10, 8),
    "ifs-pl10/pl_regular_ll.grib": (240, 240),
    "magics-global/uv.grib": (2, 2),
    "magics-global/z500.grib": (1, 1),
    "missing/fields_with_missing_values.grib": (2, 2),
    "missing/test_single_with_missing.grib": (1, 1),
    "mixed/data_uv.grib": (16, 16),
    "mixed/hpa_and_pa.grib": (3, 3),
    "mixed/multi_param_on_multi_dims.grib": (48, 48),
    "mixed/t_on_different_level_types.grib": (2, 1),
    "mixed/tuv_pl.grib": (18, 18),
    "mixed/uv_on_different_levels.grib": (16, 16),
    "nc-erai/2005-01-23-0000-t.nc": (37, 37),
    "nc-erai/2005-01-23-0000-u.nc": (37, 37),
    "nc-erai/2005-01-23-0000-v.nc": (37, 37),
    "nc-misc/era5_2t_1.nc": (1, 1),
    "nc-misc/era5_2t_2.nc": (1, 1),
    "packing/ens_none.grib": (1, 1),
    "reduced/regular_gg_pl.grib": (1, 1),
    "series-gfs10m/gfs.1p00.2018100618.f000": (2, 2),
    "series-gfs10m/gfs.1p00.2018100618.f003": (2, 2),
    "steps/t_analysis_and_fc_0.grib": (1, 1),
    "zarr-v2/test_zarr": (4, 4),
}
# Files in which no field can be used: number of fields, why the first cannot.
UNUSABLE = {
    "ens/ens_50.grib": (51, "regional grid"),
    "ens/z_tigge_c_egrr_20061028120000_0000_pt_glob_prod.grib2": (24, "unknown parameter pv"),
    "gfs-misc/gdas.t00z.sfluxgrbf000.grib2.0": (1, "hybrid"),
    "grids/MET9_IR108_cosmode_0909210000.grb2": (1, "rotated_ll"),
    "grids/ngm.grb": (5, "polar_stereographic"),
    "grids/rotated_wind_20x20.grib": (2, "rotated_ll"),
    "grids/shifted_ll_subarea.grib": (2, "regional grid"),
    "magics-global/era5_2mt.nc": (1, "regional grid"),
    "magics-global/t850.grb": (1, "not a value at a point in time"),
    "mixed/tilde_shortname.grib": (1, "unknown parameter ~"),
    "ml/forecast_ml.grib": (550, "hybrid"),
    "ml/regular_gg_ml_g2.grib": (3, "hybrid"),
    "multifield/Z__C_RJTD_20170221120000_MSG_GPV_Gll0p5deg_Pys_B20170221120000_"
    "F2017022115-2017022212_grib2.bin": (16, "unknown parameter"),
    "nc-era5-2025/era5_msl_2025120100_0.25x0.25.nc": (1, "no time coordinate"),
    "nc-era5-2025/era5_msl_2025120100_2.5x2.5.nc": (1, "no time coordinate"),
    "nc-era5-2025/era5_uv850_2025120100_2.5x2.5.nc": (2, "no time coordinate"),
    "nc-erai-daily/u_QGPV_240hPa_2012Oct28to31.nc": (8, "no time coordinate"),
    "nc-misc/tas_Amon_HadGEM2-ES_historical_r1i1p1_198412-200511.nc": (252, "calendar 360_day"),
    "nc-misc/test_data_20180101.nc": (75, "regional grid"),
    "packing/200711210135_NCV_FLIGHTCAT_A.grb2": (1, "lambert"),
    "packing/chem_ll.grib2": (1, "unknown parameter tcvimd"),
    "packing/ds.waveh.5.grib": (1, "mercator"),
    "reduced/O32_global.grib1": (1, "reduced_gg"),
    "reduced/reduced_gg.grib": (1, "reduced_gg"),
    "reduced/reduced_latlon_surface.grib2": (1, "reduced_ll"),
    "reduced/t2m_grib.grib": (1, "reduced_gg"),
    "scan/regular_ll_sfc.grib": (1, "unknown parameter skt"),
    "scan/scanning_mode.grib2": (1, "meanSea"),
    "scan/scanning_mode_64.grib": (1, "unknown parameter skt"),
    "scan/scanning_mode_with_bitmap.grib2": (1, "meanSea"),
    "series-echam/t_in_Celsius_1.nc": (40, "unknown variable tC"),
    "series-z500anom/anom_test.nc": (11, "unknown variable anom"),
    "spectral/spherical_harmonics.grib": (1, "(sh)"),
    "steps/cfrzr_and_cprat.grib": (4, "unknown parameter cpr"),
}
# What eccodes' iterator cannot place by itself: it trusts the increments of the first file.
POINTWISE = [
    name
    for name in USABLE
    if not name.endswith((".nc", "zarr")) and name != "broken/regular_ll_wrong_increment.grib"
]
WIND_SERIES = re.compile(r"series-gfs10m/gfs\.1p00\.20181\d{5}\.f00[03]")
MIXED = {"gfs-full/gfs.grb": 344}  # usable and unusable fields, tested one by one below
GFS_TIME = np.datetime64("2011-10-11T00:00")
MODEL_GRID = Grid.parse("64x32")


def test_every_file_of_the_folder_has_an_expectation(real_data: Path) -> None:
    files = {str(path.relative_to(real_data)) for path in real_data.rglob("*") if path.is_file()}
    expected = {*REFUSED, *USABLE, *UNUSABLE, *MIXED, "MANIFEST.md"}
    expected |= {name for name in files if WIND_SERIES.fullmatch(name)}
    assert {name for name in files if not name.startswith("zarr-v2/test_zarr/")} <= expected
    listed = re.findall(r"^\| (\S+/\S+) \|", (real_data / "MANIFEST.md").read_text(), re.MULTILINE)
    assert {name for name in listed if not name.startswith("zarr-v2/")} <= expected


def test_every_file_of_the_wind_series_is_read_exactly(real_data: Path) -> None:
    """One grid in the message's own order, so that eccodes' values compare as they come."""
    paths = sorted((real_data / "series-gfs10m").glob("gfs.1p00.*.f00[03]"))
    assert len(paths) == 80
    for path in paths:
        source = open_source(path)
        records = source.records()
        assert [record.usable for record in records] == [True, True]
        start = np.datetime64(
            f"{path.name[9:13]}-{path.name[13:15]}-{path.name[15:17]}T{path.name[17:19]}", "s"
        )
        lead = np.timedelta64(int(path.suffix[2:]), "h")
        assert all(record.valid_time == start + lead for record in records)
        for record, values in zip(records, source.read(records), strict=True):
            expected = raw_values(path, record.short_name)
            np.testing.assert_allclose(values.ravel(), expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", [*UNUSABLE, "broken/regular_ll_wrong_increment.grib"])
def test_a_run_from_what_is_no_whole_state_is_refused(real_data: Path, name: str) -> None:
    source = open_source(real_data / name)
    times = source.valid_times()
    with pytest.raises(DataError) as caught:
        plan_initial_state(
            source,
            NATURE_RUN_FIELDS,
            MODEL_GRID,
            times[0] if times.size else GFS_TIME,
            regrid=True,
            plausible={},
        )
    assert str(caught.value).startswith(f"{real_data / name} gives no initial state for ")


@pytest.mark.parametrize("name", REFUSED)
def test_a_broken_file_ends_a_command_with_exit_code_2(
    real_data: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(real_data / name), "--json"]) == 2
    out, errors = capfd.readouterr()
    assert out == ""
    assert errors.startswith(f"error: {real_data / name}")
    assert errors.count("\n") == 1
    assert REFUSED[name] in errors


def test_every_field_of_a_mixed_file_is_described(
    real_data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The contract of `inspect --json`, on fields of several kinds, against eccodes."""
    path = real_data / "mixed/hpa_and_pa.grib"
    assert main(["inspect", str(path), "--json"]) == 0
    rows = json.loads(capfd.readouterr().out)
    keys = {"variable", "level", "valid_time", "init_time", "member", "grid", "min", "max"}
    assert keys | {"mean", "missing", "usable", "why"} <= rows[0].keys()
    with path.open("rb") as stream:
        for row in rows:
            handle = eccodes.codes_grib_new_from_file(stream)
            is_pa = eccodes.codes_get_string(handle, "typeOfLevel") == "isobaricInPa"
            level = eccodes.codes_get_double(handle, "level") / (100.0 if is_pa else 1.0)
            missing = eccodes.codes_get_long(handle, "numberOfMissing")
            found = eccodes.codes_get_double(handle, "max") if missing < 2664 else None
            eccodes.codes_release(handle)
            assert (row["variable"], row["level"], row["missing"]) == (
                "temperature",
                level,
                missing,
            )
            assert row["max"] == (pytest.approx(found) if found is not None else None)
            assert row["usable"] == (missing < 2664)


@pytest.mark.parametrize("name", REFUSED)
def test_a_broken_file_is_refused(real_data: Path, name: str) -> None:
    with pytest.raises(DataError, match=REFUSED[name]):
        open_source(real_data / name)


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_file_without_usable_fields_says_why(real_data: Path, name: str) -> None:
    records = open_source(real_data / name).records()
    num_fields, why = UNUSABLE[name]
    assert len(records) == num_fields
    assert not any(record.usable for record in records)
    assert any(why in record.why for record in records), records[0].why


@pytest.mark.parametrize("name", USABLE)
def test_the_number_of_usable_fields(real_data: Path, name: str) -> None:
    records = open_source(real_data / name).records()
    assert (len(records), sum(record.usable for record in records)) == USABLE[name]


@pytest.mark.parametrize("name", POINTWISE)
def test_grib_values_are_where_eccodes_iterator_puts_them(real_data: Path, name: str) -> None:
    source = open_source(real_data / name)
    usable = [record for record in source.records() if record.usable][:6]
    for record, values in zip(usable, source.read(usable), strict=True):
        points = points_of(real_data / name, record.message)
        assert record.axes is not None
        rows = nearest(record.axes.latitudes, points[:, 0])
        columns = nearest(record.axes.longitudes, points[:, 1] % 360.0, period=360.0)
        expected = np.full(values.shape, np.nan)
        expected[rows, columns] = np.where(points[:, 2] == 9999.0, np.nan, points[:, 2])
        np.testing.assert_allclose(values, expected, rtol=1e-6)
        found = source.statistics(record)
        assert found.missing == np.isnan(expected).sum()
        if found.missing == expected.size:
            continue
        assert found.min == pytest.approx(np.nanmin(expected))
        assert found.max == pytest.approx(np.nanmax(expected))
        assert found.mean == pytest.approx(np.nanmean(expected), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", [name for name in USABLE if name.endswith(".nc")])
def test_netcdf_values_are_those_of_netcdf4(real_data: Path, name: str) -> None:
    source = open_source(real_data / name)
    records = source.records()
    with netCDF4.Dataset(real_data / name) as stored:
        values = stored[records[0].short_name][:].astype(np.float64)
        latitudes = stored["latitude"][:]
    maps = values.reshape(-1, *values.shape[-2:])
    if latitudes[0] < latitudes[-1]:
        maps = maps[:, ::-1]
    assert len(maps) == len(records)
    for record, expected in list(zip(records, maps, strict=True))[:5]:
        np.testing.assert_allclose(next(source.read([record])), expected, rtol=1e-6)
        found = source.statistics(record)
        assert (found.min, found.max) == pytest.approx((expected.min(), expected.max()), rel=1e-6)
        assert found.mean == pytest.approx(expected.mean(), rel=1e-6)


def test_zarr_values_are_those_of_xarray(real_data: Path) -> None:
    source = open_source(real_data / "zarr-v2/test_zarr")
    expected = xr.open_zarr(real_data / "zarr-v2/test_zarr", chunks=None)
    for record in source.records():
        np.testing.assert_allclose(
            next(source.read([record])),
            expected[record.short_name].sel(time=record.valid_time, level=record.level),
            rtol=1e-6,
        )


def test_wrong_increments_are_overruled_by_first_and_last_point(real_data: Path) -> None:
    source = open_source(real_data / "broken/regular_ll_wrong_increment.grib")
    (record,) = source.records()
    with (real_data / "broken/regular_ll_wrong_increment.grib").open("rb") as stream:
        handle = eccodes.codes_grib_new_from_file(stream)
    expected = eccodes.codes_get_values(handle).reshape(37, 72)
    eccodes.codes_release(handle)
    assert record.axes is not None
    np.testing.assert_array_equal(record.axes.longitudes, 5.0 * np.arange(72))
    np.testing.assert_allclose(next(source.read([record])), expected, rtol=1e-6)


def test_both_scan_directions_of_one_field_agree(real_data: Path) -> None:
    maps = []
    for name in ("scan/regular_ll_sfc.grib", "scan/scanning_mode_64.grib"):
        source = open_source(real_data / name)
        record = source.records()[0]
        maps.append(next(source.read([record])))
    np.testing.assert_allclose(maps[0], maps[1], atol=0.5)  # 8 bit packing of 91 K


def test_gfs_keeps_every_v_of_its_multi_field_messages(real_data: Path) -> None:
    records = open_source(real_data / "gfs-full/gfs.grb").records()
    assert len(records) == MIXED["gfs-full/gfs.grb"]
    levels = {
        name: sorted(r.level for r in records if r.variable == name and r.usable and r.level)
        for name in ("u_component_of_wind", "v_component_of_wind")
    }
    assert levels["u_component_of_wind"] == levels["v_component_of_wind"]
    assert len(levels["v_component_of_wind"]) == 26


def test_the_gfs_state_agrees_with_cfgrib(real_data: Path) -> None:
    values = read_gfs(real_data, Grid(73, 144, has_poles=True), NATURE_RUN_FIELDS, regrid=False)
    for field, found in zip(NATURE_RUN_FIELDS, values, strict=True):
        expected = cfgrib_map(real_data / "gfs-full/gfs.grb", field)
        # q is converted with the IFS formula in float64 here and there; the rest is only scaled
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-9, err_msg=str(field))


def test_the_regridded_gfs_state_agrees_with_xarray_interpolation(real_data: Path) -> None:
    values = read_gfs(real_data, MODEL_GRID, NATURE_RUN_FIELDS, regrid=True)
    weights = np.broadcast_to(MODEL_GRID.area_weights()[:, None], values.shape[1:])
    for field, found in zip(NATURE_RUN_FIELDS, values, strict=True):
        source = cfgrib_map(real_data / "gfs-full/gfs.grb", field)
        wrapped = np.concatenate([source, source[:, :1]], axis=1)
        axes = {"latitude": np.linspace(90, -90, 73), "longitude": np.linspace(0, 360, 145)}
        expected = xr.DataArray(wrapped, axes, ("latitude", "longitude")).interp(
            latitude=MODEL_GRID.latitudes, longitude=MODEL_GRID.longitudes
        )
        error = found - expected.values
        # a cell mean differs from the value at its centre by what varies inside of the cell
        assert np.sqrt(np.average(error**2, weights=weights)) < 0.2 * source.std(), str(field)
        assert abs(np.average(error, weights=weights)) < 0.01 * source.std(), str(field)


def test_all_69_fields_of_the_gfs_file_are_plausible(real_data: Path) -> None:
    values = read_gfs(real_data, MODEL_GRID, WEATHERBENCH_FIELDS, regrid=True)
    assert np.isfinite(values).all()


def read_gfs(real_data: Path, grid: Grid, fields: tuple[Field, ...], *, regrid: bool) -> np.ndarray:
    plan = plan_initial_state(
        open_source(real_data / "gfs-full/gfs.grb"),
        fields,
        grid,
        GFS_TIME,
        regrid=regrid,
        plausible={field: plausible_range(field) for field in fields},
    )
    return plan.read(fields)


def cfgrib_map(path: Path, field: Field) -> np.ndarray:
    """A field of the GFS file as cfgrib and formulas of the definitions give it."""
    if field.variable == "geopotential":
        return 9.80665 * cfgrib_variable(path, 156, field.level_hpa)
    if field.variable == "specific_humidity":
        relative = cfgrib_variable(path, 157, field.level_hpa)
        temperature = cfgrib_variable(path, 130, field.level_hpa)
        return humidity(relative, temperature, field.level_hpa * 100.0)
    param = 260074 if field.variable == "mean_sea_level_pressure" else field.spec.param_ids[0]
    return cfgrib_variable(path, param, field.level_hpa)


def cfgrib_variable(path: Path, param_id: int, level_hpa: int) -> np.ndarray:
    array = cfgrib_array(path, param_id, is_pressure=level_hpa > 0)
    chosen = array.sel(isobaricInhPa=level_hpa) if level_hpa else array
    return np.asarray(chosen.values, dtype=np.float64)


@functools.cache
def cfgrib_array(path: Path, param_id: int, *, is_pressure: bool) -> xr.DataArray:
    keys: dict[str, object] = {"paramId": param_id}
    if is_pressure:
        keys |= {"typeOfLevel": "isobaricInhPa"}
    dataset = xr.open_dataset(
        path,
        engine="cfgrib",
        backend_kwargs={"filter_by_keys": keys, "indexpath": ""},
        decode_timedelta=True,
    )
    (name,) = dataset.data_vars
    return dataset[name].load()


def humidity(relative: np.ndarray, temperature: np.ndarray, pressure: float) -> np.ndarray:
    """Specific humidity by the IFS's mixed-phase saturation (CY47R3 part IV, chapter 12)."""
    water = 611.21 * np.exp(17.502 * (temperature - 273.16) / (temperature - 32.19))
    ice = 611.21 * np.exp(22.587 * (temperature - 273.16) / (temperature + 0.7))
    alpha = np.clip((temperature - 250.16) / 23.0, 0.0, 1.0) ** 2
    vapour = relative / 100.0 * (alpha * water + (1 - alpha) * ice)
    eps = 287.0597 / 461.5250
    return eps * vapour / (pressure - (1 - eps) * vapour)


def points_of(path: Path, message: int) -> np.ndarray:
    """Latitude, longitude and value of every point by eccodes' iterator, [N, 3]."""
    with path.open("rb") as stream:
        for _ in range(message - 1):
            eccodes.codes_release(eccodes.codes_grib_new_from_file(stream))
        handle = eccodes.codes_grib_new_from_file(stream)
    latitudes = eccodes.codes_get_array(handle, "latitudes")
    longitudes = eccodes.codes_get_array(handle, "longitudes")
    values = eccodes.codes_get_values(handle)
    eccodes.codes_release(handle)
    return np.stack([latitudes, longitudes, values], axis=1)


def raw_values(path: Path, short_name: str) -> np.ndarray:
    """Values of a variable as eccodes decodes them, in the order of the message."""
    with path.open("rb") as stream:
        while (handle := eccodes.codes_grib_new_from_file(stream)) is not None:
            is_it = eccodes.codes_get_string(handle, "shortName") == short_name
            values = eccodes.codes_get_values(handle).astype(np.float32) if is_it else None
            eccodes.codes_release(handle)
            if values is not None:
                return values
    raise AssertionError(f"{path} has no {short_name}")


def nearest(axis: np.ndarray, points: np.ndarray, period: float | None = None) -> np.ndarray:
    """Index of the point of an axis nearest to each coordinate; asserts that it is close."""
    distance = np.abs(axis[None, :] - np.unique(points)[:, None])
    if period is not None:
        distance = np.minimum(distance, period - distance)
    index = distance.argmin(axis=1)
    assert distance.min(axis=1).max() < 0.05 * np.abs(np.diff(axis)).min()
    return index[np.searchsorted(np.unique(points), points)]


def test_records_name_the_file_and_message(real_data: Path) -> None:
    records: list[FieldRecord] = open_source(real_data / "magics-global/uv.grib").records()
    assert [record.message for record in records] == [1, 2]
    assert records[0].path.name == "uv.grib"
