"""`score` against WeatherBench 2's numbers, stored and plainly written, by the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from jigsaw_forecast.cli.main import main
from tests.unit.verify.made_up import LEVELS, Case, make_case, paired, write
from tests.unit.verify.plain_weatherbench import BOXES, LAND, PlainScores, metric

REGIONS = (*BOXES, *LAND)
DETERMINISTIC = ("mse", "rmse", "mae", "bias", "acc", "acc_pooled")
FEW_REGIONS = ("global", "europe", "tropics_land")
ENSEMBLE = (
    "crps",
    "crps_skill",
    "crps_spread",
    "energy_score",
    "ensemble_variance",
    "ensemble_mean_mse",
    "debiased_ensemble_mean_mse",
)


def score(*options: str) -> int:
    return main(["score", *options, "--no-report", "--quiet"])


@pytest.fixture(scope="module")
def verification(real_data: Path) -> Path:
    folder = real_data.parent / "verification"
    if not folder.is_dir():
        pytest.skip(f"no reference cases: {folder} does not exist")
    return folder


def assert_equal(found: xr.Dataset, expected: xr.Dataset) -> None:
    for name, array in expected.data_vars.items():
        for one in expected["metric"].values:
            wanted = array.sel(metric=one)
            if wanted.isnull().all():
                continue
            got = found[name].sel(metric=one)
            got = got.sel({dim: expected[dim] for dim in wanted.dims}).transpose(*wanted.dims)
            np.testing.assert_allclose(
                got.values, wanted.values, rtol=1e-9, err_msg=f"{name} {one}"
            )


def test_every_stored_deterministic_score_is_met(verification: Path, tmp_path: Path) -> None:
    case = verification / "det_64x32"
    options = [f"--{name}={case / name}.nc" for name in ("forecast", "truth", "climatology")]
    assert score(*options, "--output", str(tmp_path / "out")) == 0
    with xr.open_dataset(tmp_path / "out" / "scores.nc") as found:
        with xr.open_dataset(case / "expected_wb2.nc") as expected:
            assert_equal(found, expected)
        with xr.open_dataset(case / "expected_wbx.nc") as pooled:
            wanted = pooled["acc.geopotential"].sel(region="global")
            got = found["geopotential"].sel(metric="acc_pooled", region="global")
            np.testing.assert_allclose(got.values, wanted.values, rtol=1e-9)


def test_every_stored_ensemble_score_and_rank_is_met(verification: Path, tmp_path: Path) -> None:
    case = verification / "ens_64x32"
    options = [f"--{name}={case / name}.nc" for name in ("forecast", "truth")]
    assert score(*options, "--output", str(tmp_path / "out")) == 0
    with (
        xr.open_dataset(tmp_path / "out" / "scores.nc") as found,
        xr.open_dataset(case / "expected_wb2.nc") as expected,
    ):
        assert_equal(found, expected)
    with (
        xr.open_dataset(tmp_path / "out" / "rank_histogram.nc") as ranks,
        xr.open_dataset(case / "expected_wb2_rank_histogram_unweighted.nc") as expected,
    ):
        for name, array in expected.data_vars.items():
            # where truth and members tie, the place depends on the machine's sort
            np.testing.assert_allclose(ranks[name].values, array.values, atol=0.03)
            np.testing.assert_allclose(ranks[name].sum("bins").values, 1.0)


def test_stored_spectra_are_met(verification: Path, tmp_path: Path) -> None:
    case = verification / "spectrum_64x32"
    forecast = str(case / "forecast.nc")
    options = ["--forecast", forecast, "--truth", forecast, "--output", str(tmp_path / "out")]
    assert score(*options) == 0
    with (
        xr.open_dataset(tmp_path / "out" / "spectra.nc") as found,
        xr.open_dataset(case / "expected_wb2.nc") as expected,
    ):
        for name, array in expected.data_vars.items():
            got = found[name].sel(model="forecast", latitude=expected["latitude"])
            got = got.transpose(*array.dims)
            np.testing.assert_allclose(got.values, array.values, rtol=1e-9)


def with_latitudes_descending(data: xr.Dataset) -> xr.Dataset:
    return data.isel(latitude=slice(None, None, -1))


def with_other_dims(data: xr.Dataset) -> xr.Dataset:
    return data.transpose("latitude", "longitude", ...)


def with_longitudes_from_minus_180(data: xr.Dataset) -> xr.Dataset:
    shifted = data.assign_coords(longitude=(data["longitude"] + 180.0) % 360.0 - 180.0)
    return shifted.sortby("longitude")


def with_float64(data: xr.Dataset) -> xr.Dataset:
    return data.astype(np.float64)


def with_whole_hours(data: xr.Dataset) -> xr.Dataset:
    if "prediction_timedelta" not in data.coords:
        return data
    hours = (data["prediction_timedelta"].values / np.timedelta64(1, "h")).astype(np.int64)
    return data.assign_coords(prediction_timedelta=hours)


def unchanged(data: xr.Dataset) -> xr.Dataset:
    return data


LAYOUTS = (
    unchanged,
    with_latitudes_descending,
    with_other_dims,
    with_longitudes_from_minus_180,
    with_float64,
    with_whole_hours,
)


def check(
    case: Case,
    options: list[str],
    output: Path,
    names: tuple[str, ...],
    regions: tuple[str, ...] = REGIONS,
) -> xr.Dataset:
    assert score(*options, "--output", str(output)) == 0
    with xr.open_dataset(output / "scores.nc") as opened:
        found = opened.load()
    for variable in case.forecast.data_vars:
        forecast, truth, climatology = paired(case, str(variable))
        plain = PlainScores(forecast, truth, climatology, case.truth["land_sea_mask"])
        for name in names:
            for region in regions:
                wanted = metric(plain, name)(region)
                got = found[str(variable)].sel(metric=name, region=region)
                got = got.transpose(*("level" if d == "level" else "lead_time"
                                      for d in wanted.dims))  # fmt: skip
                np.testing.assert_allclose(
                    got.values,
                    wanted.values,
                    rtol=1e-9,
                    atol=1e-12 * float(abs(truth).max()) if name == "bias" else 0.0,
                    err_msg=f"{variable} {name} {region}",
                )
    return found


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda one: one.__name__)
def test_any_layout_gives_the_plain_scores(layout: object, tmp_path: Path) -> None:
    case = make_case()
    assert callable(layout)
    stored = Case(*(layout(one) for one in (case.forecast, case.truth, case.climatology)))
    check(case, write(stored, tmp_path), tmp_path / "out", ("rmse", "acc"), FEW_REGIONS)


def test_a_zarr_store_gives_the_same_as_netcdf(tmp_path: Path) -> None:
    case = make_case()
    options = []
    for name, zarr_format in (("forecast", 3), ("truth", 2), ("climatology", 2)):
        path = tmp_path / f"{name}.zarr"
        getattr(case, name).to_zarr(path, zarr_format=zarr_format, consolidated=False)
        options += [f"--{name}", str(path)]
    check(case, options, tmp_path / "out", ("mae", "acc_pooled"), FEW_REGIONS)


def test_poles_and_cropped_latitudes_have_weatherbench_weights(tmp_path: Path) -> None:
    for number, latitudes in enumerate((np.linspace(-90, 90, 13), np.linspace(-45, 70, 24))):
        folder = tmp_path / str(number)
        folder.mkdir()
        case = make_case(tuple(latitudes))
        found = check(case, write(case, folder), folder / "out", ("rmse", "bias", "acc"))
        antarctic = found["2m_temperature"].sel(metric="mse", region="antarctic")
        assert bool(antarctic.isnull().all()) == (latitudes.min() > -60)


def test_missing_values_follow_the_stated_policy(tmp_path: Path) -> None:
    case = make_case()
    # a point in Europe at one init and lead, and one at sea that only land regions do without
    case.forecast["2m_temperature"][1, 2, 0, 15] = np.nan
    case.truth["geopotential"][3, 1, 5, 9] = np.nan
    case.truth["land_sea_mask"][5, 9] = 0.0
    found = check(case, write(case, tmp_path), tmp_path / "out", DETERMINISTIC)
    mse = found["2m_temperature"].sel(metric="mse", lead_time=24)
    assert np.isnan(mse.sel(region="europe"))
    assert np.isfinite(mse.sel(region="tropics"))
    heights = found["geopotential"].sel(metric="mse", level=LEVELS[1])
    assert heights.sel(region="global").isnull().any()
    assert heights.sel(region="global_land").notnull().all()
    assert "skipna=False" in found.attrs["nan_policy"]


def test_skipna_leaves_missing_values_out(tmp_path: Path) -> None:
    case = make_case(variables=("2m_temperature",))
    case.forecast["2m_temperature"][1, 2, :3, 10:] = np.nan
    options = [*write(case, tmp_path), "--skipna", "--output", str(tmp_path / "out")]
    assert score(*options) == 0
    forecast, truth, climatology = paired(case, "2m_temperature")
    plain = PlainScores(forecast, truth, climatology, case.truth["land_sea_mask"], skipna=True)
    with xr.open_dataset(tmp_path / "out" / "scores.nc") as found:
        for name in DETERMINISTIC:
            for region in FEW_REGIONS:
                got = found["2m_temperature"].sel(metric=name, region=region).values
                np.testing.assert_allclose(
                    got, metric(plain, name)(region).values, rtol=1e-9, atol=1e-10
                )


def test_members_give_the_plain_ensemble_scores(tmp_path: Path) -> None:
    case = make_case(num_members=5)
    # members that are equal among themselves and to the truth
    case.forecast["2m_temperature"][1] = case.forecast["2m_temperature"][0]
    found = check(case, write(case, tmp_path), tmp_path / "out", ENSEMBLE)
    ratio = found["geopotential"].sel(metric="spread_skill_ratio", region="global")
    parts = found["geopotential"].sel(region="global")
    expected = parts.sel(metric="ensemble_variance") / parts.sel(metric="ensemble_mean_mse")
    np.testing.assert_allclose(ratio.values, np.sqrt(expected.values))


def test_wind_vectors_are_scored_by_the_length_of_their_error(tmp_path: Path) -> None:
    winds = ("u_component_of_wind", "v_component_of_wind")
    surface = ("10m_u_component_of_wind", "10m_v_component_of_wind")
    case = make_case(variables=(*winds, *surface))
    options = [*write(case, tmp_path), "--output", str(tmp_path / "out")]
    assert score(*options) == 0
    with xr.open_dataset(tmp_path / "out" / "scores.nc") as found:
        for vector, components in (("wind_vector", winds), ("10m_wind_vector", surface)):
            plain = [PlainScores(*paired(case, one)[:2]) for one in components]
            for region in BOXES:
                wanted = np.sqrt(sum(one.mse(region) for one in plain))
                got = found[vector].sel(metric="rmse", region=region)
                np.testing.assert_allclose(got.values, wanted.values, rtol=1e-9)


def test_baselines_are_made_of_truth_and_climatology(tmp_path: Path) -> None:
    case = make_case(variables=("2m_temperature",))
    options = [*write(case, tmp_path), "--output", str(tmp_path / "out")]
    assert score(*options) == 0
    forecast, truth, climatology = paired(case, "2m_temperature")
    start = case.truth["2m_temperature"].sel(time=forecast["init"]).drop_vars("time")
    with xr.open_dataset(tmp_path / "out" / "scores_persistence.nc") as found:
        plain = PlainScores(start.broadcast_like(truth), truth, climatology)
        for name in ("rmse", "mae", "acc"):
            got = found["2m_temperature"].sel(metric=name, region="europe")
            np.testing.assert_allclose(got.values, metric(plain, name)("europe").values, rtol=1e-9)
    with xr.open_dataset(tmp_path / "out" / "scores_climatology.nc") as found:
        plain = PlainScores(climatology, truth)
        got = found["2m_temperature"].sel(metric="rmse", region="tropics")
        np.testing.assert_allclose(got.values, plain.rmse("tropics").values, rtol=1e-9)


def test_every_output_states_the_protocol(tmp_path: Path) -> None:
    case = make_case(variables=("2m_temperature",))
    options = [*write(case, tmp_path), "--output", str(tmp_path / "out")]
    assert score(*options, "--regions", "global,europe", "--lead-times", "6h,2d") == 0
    with xr.open_dataset(tmp_path / "out" / "scores.nc") as found:
        assert found["lead_time"].values.tolist() == [6, 48]
        assert found["region"].values.tolist() == ["global", "europe"]
        assert found["num_init_times"].values.tolist() == [7, 7]
        for name in ("truth", "resolution", "init_times", "acc", "land_sea_mask", "nan_policy"):
            assert found.attrs[name]
    protocol = json.loads((tmp_path / "out" / "protocol.json").read_text())
    assert [model["name"] for model in protocol["models"]] == [
        "forecast", "persistence", "climatology",
    ]  # fmt: skip
    assert (tmp_path / "out" / "scores.csv").read_text().startswith("model,variable,level,region,")
