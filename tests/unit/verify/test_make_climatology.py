"""`data climatology` against WeatherBench 2's definition written with xarray."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from jigsaw_forecast.cli.main import main
from jigsaw_forecast.verify.seeps_climatology import weighted_quantile

WINDOW = 61


@pytest.fixture(scope="module")
def truth() -> xr.Dataset:
    rng = np.random.default_rng(0)
    times = np.arange("2019-01-01T00", "2021-01-01T00", 12, dtype="datetime64[h]")
    shape = (times.size, 3, 4)
    rain = np.maximum(rng.gamma(0.5, 0.004, size=shape) - 0.0003, 0.0)
    return xr.Dataset(
        {
            "geopotential": (
                ("time", "level", "latitude", "longitude"),
                rng.normal(5e4, 500.0, size=(times.size, 2, 3, 4)).astype(np.float32),
                {"units": "m2 s-2"},
            ),
            "total_precipitation_24hr": (
                ("time", "latitude", "longitude"), rain.astype(np.float32), {"units": "m"}
            ),
        },
        coords={"time": times.astype("datetime64[ns]"), "level": [500, 850],
                "latitude": [-60.0, 0.0, 60.0], "longitude": [0.0, 90.0, 180.0, 270.0]},
    )  # fmt: skip


def windows(data: xr.Dataset, hour: int) -> tuple[xr.Dataset, xr.DataArray]:
    """All years by day of year with the window around each day, and the window's weights."""
    data = data.isel(time=data["time"].dt.hour == hour).astype(np.float64)
    years = []
    for year in np.unique(data["time"].dt.year):
        one = data.sel(time=str(year))
        years.append(one.assign_coords(time=one["time"].dt.dayofyear).rename(time="dayofyear"))
    stacked = xr.concat(years, "year", join="outer")
    stacked = stacked.fillna(stacked.sel(dayofyear=365)).pad(dayofyear=WINDOW // 2, mode="wrap")
    stacked = stacked.rolling(dayofyear=WINDOW, center=True).construct("window")
    ramp = np.linspace(0, 1, WINDOW // 2 + 1)
    weights = xr.DataArray(np.concatenate([ramp, ramp[::-1][1:]]), dims="window")
    return stacked.isel(dayofyear=slice(WINDOW // 2, -(WINDOW // 2))), weights


def test_means_and_seeps_thresholds_are_those_of_weatherbench(
    truth: xr.Dataset, tmp_path: Path
) -> None:
    truth.chunk(time=50).to_zarr(tmp_path / "truth.zarr", zarr_format=2, consolidated=False)
    output = tmp_path / "climatology.zarr"
    arguments = ["data", "climatology", str(tmp_path / "truth.zarr"), "--output", str(output)]
    assert main([*arguments, "--seeps", "--quiet"]) == 0
    with xr.open_zarr(output, chunks=None, consolidated=False) as opened:
        found = opened.sortby("latitude").load()
    assert found.sizes["dayofyear"] == 366
    assert found["hour"].values.tolist() == [0, 12]
    for hour in (0, 12):
        stacked, weights = windows(truth, hour)
        means = stacked.weighted(weights).mean(("window", "year"))
        for name, expected in means.data_vars.items():
            got = found[name].sel(hour=hour).transpose(*expected.dims)
            np.testing.assert_allclose(got.values, expected.values, rtol=1e-9)
        rain = stacked["total_precipitation_24hr"]
        is_dry = rain < 0.25e-3
        some = {"dayofyear": [0, 100, 365]}
        wet = rain.where(~is_dry).isel(some).weighted(weights)
        expected = wet.quantile(2 / 3, dim=("window", "year"))
        got = found["total_precipitation_24hr_seeps_threshold"].sel(hour=hour).isel(some)
        np.testing.assert_allclose(got.values, expected.transpose(*got.dims).values, rtol=1e-9)
        fraction = is_dry.mean(("window", "year"))
        got = found["total_precipitation_24hr_seeps_dry_fraction"].sel(hour=hour)
        np.testing.assert_allclose(got.values, fraction.transpose(*got.dims).values, rtol=1e-12)


def test_a_weighted_quantile_of_equal_weights_is_the_plain_one() -> None:
    values = np.random.default_rng(0).normal(size=(9, 5))
    found = weighted_quantile(values, np.ones(9), 2 / 3)
    np.testing.assert_allclose(found, np.quantile(values, 2 / 3, axis=0))
    values[:, 2] = np.nan
    assert np.isnan(weighted_quantile(values, np.ones(9), 2 / 3)[2])


def test_gaps_and_wrong_options_are_listed(
    truth: xr.Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    gone = np.datetime64("2019-05-03T12", "ns")
    truth.drop_sel(time=gone).to_netcdf(tmp_path / "truth.nc")
    output = str(tmp_path / "climatology.zarr")
    arguments = ["data", "climatology", str(tmp_path / "truth.nc"), "--output", output, "--quiet"]
    arguments += ["--variables", "tp_24hr,geopotential", "--window", "60"]
    assert main(arguments) == 2
    message = capfd.readouterr().err
    assert "tp_24hr" in message
    arguments[-3] = "geopotential"
    assert main(arguments) == 2
    message = capfd.readouterr().err
    assert "2019-05-03T12:00" in message
    assert "--window 60" in message
    assert not Path(output).exists()


def test_a_truth_of_days_warns_of_the_rest_of_the_year_and_opens_without_warning(
    truth: xr.Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    days = truth[["geopotential"]].sel(time=slice("2019-06-24", "2019-06-26"), level=[500])
    days.to_zarr(tmp_path / "truth.zarr", zarr_format=2, consolidated=False)
    output = tmp_path / "climatology.zarr"
    arguments = ["data", "climatology", str(tmp_path / "truth.zarr"), "--output", str(output)]
    assert main([*arguments, "--window", "5", "--quiet"]) == 0
    told = capfd.readouterr().err
    # 24 to 26 June and one day on each side: the ends of a window of five have no weight
    assert "361 of the 366 days of the year have no analysis" in told
    assert "(1 to 173, 179 to 366)" in told
    with xr.open_zarr(output, chunks=None) as opened:
        mean = opened["geopotential"].isel(level=0, latitude=0, longitude=0, hour=0).values
    assert np.flatnonzero(np.isfinite(mean)).tolist() == [173, 174, 175, 176, 177]
