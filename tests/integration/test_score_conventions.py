"""`score` against formulas of WeatherBench 2 and of textbooks, written plainly with numpy."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from jigsaw_forecast.cli.main import main
from tests.unit.verify.made_up import INITS, LEADS_H, Case, make_case, paired, write
from tests.unit.verify.plain_weatherbench import PlainScores, metric, spatial_mean

HOUR = np.timedelta64(1, "h")


def scores_of(options: list[str], output: Path, *more: str, name: str = "scores.nc") -> xr.Dataset:
    command = ["score", *options, *more, "--output", str(output), "--no-report", "--quiet"]
    assert main(command) == 0
    with xr.open_dataset(output / name) as opened:
        return opened.load()


def overlaps(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Fraction of each target cell in each source cell, from the bounds of cells, [T, S]."""
    found = np.zeros((target.size - 1, source.size - 1))
    for i in range(target.size - 1):
        for j in range(source.size - 1):
            found[i, j] = max(0.0, min(target[i + 1], source[j + 1]) - max(target[i], source[j]))
    return found / found.sum(axis=1, keepdims=True)


def sines(latitudes: np.ndarray) -> np.ndarray:
    """Sines of the bounds of rows, which ascend."""
    between = (latitudes[1:] + latitudes[:-1]) / 2
    return np.sin(np.deg2rad([-90.0, *between, 90.0]))


def regridded(data: xr.DataArray, latitudes: np.ndarray, num_lon: int) -> xr.DataArray:
    """Area-weighted means over coarse cells, missing points left out; longitudes cell by cell."""
    rows = overlaps(sines(data["latitude"].values), sines(latitudes))
    spacing, own = 360.0 / num_lon, 360.0 / data.sizes["longitude"]
    columns = np.zeros((num_lon, data.sizes["longitude"]))
    for i in range(num_lon):
        for j in range(data.sizes["longitude"]):
            for turn in (-360.0, 0.0, 360.0):
                low = max((i - 0.5) * spacing, (j - 0.5) * own + turn)
                high = min((i + 0.5) * spacing, (j + 0.5) * own + turn)
                columns[i, j] += max(0.0, high - low) / spacing
    values = data.transpose(..., "latitude", "longitude").astype(np.float64)
    present = np.isfinite(values.values)
    total = rows @ np.where(present, values.values, 0.0) @ columns.T
    with np.errstate(invalid="ignore"):
        mean = total / (rows @ present.astype(np.float64) @ columns.T)
    coords = {name: one for name, one in values.coords.items()
              if name not in ("latitude", "longitude")}  # fmt: skip
    coords |= {"latitude": latitudes, "longitude": np.arange(num_lon) * spacing}
    return xr.DataArray(mean, dims=values.dims, coords=coords, attrs=data.attrs)


@pytest.mark.parametrize("resolution", ["12x7", "9x6"])
def test_regridding_is_conservative_from_any_grid(resolution: str, tmp_path: Path) -> None:
    case = make_case(variables=("2m_temperature",))
    case.truth["2m_temperature"][3, 7, 3:6] = np.nan
    columns, rows = (int(part) for part in resolution.split("x"))
    ends = 90.0 if rows % 2 else 90.0 - 90.0 / rows
    latitudes = np.linspace(-ends, ends, rows)
    coarse = Case(*(xr.Dataset({str(name): regridded(one, latitudes, columns)
                                for name, one in data.data_vars.items()})
                    for data in (case.forecast, case.truth, case.climatology)))  # fmt: skip
    flipped = Case(case.forecast.isel(latitude=slice(None, None, -1)), case.truth, case.climatology)
    found = scores_of(write(flipped, tmp_path), tmp_path / "out", "--resolution", resolution)
    plain = PlainScores(*paired(coarse, "2m_temperature"), coarse.truth["land_sea_mask"])
    for name in ("rmse", "bias", "acc"):
        for region in ("global", "europe", "tropics_land"):
            np.testing.assert_allclose(
                found["2m_temperature"].sel(metric=name, region=region).values,
                metric(plain, name)(region).values, rtol=1e-9, atol=1e-10,
            )  # fmt: skip


def test_the_probabilistic_climatology_has_the_same_day_of_other_years(tmp_path: Path) -> None:
    case = make_case(variables=("2m_temperature",))
    rng = np.random.default_rng(5)
    parts = [case.truth.drop_vars("land_sea_mask")]
    for year in (2016, 2018, 2019):
        times = np.arange(f"{year}-02-20T00", f"{year}-03-10T00", 6, dtype="datetime64[h]")
        shape = (times.size, 24, 19)
        values = rng.normal(280.0, 9.0, size=shape).astype(np.float32)
        one = xr.DataArray(values, dims=("time", "longitude", "latitude"), attrs={"units": "K"},
                           coords={"time": times.astype("datetime64[ns]")})  # fmt: skip
        parts.insert(0, xr.Dataset({"2m_temperature": one}).assign_coords(
            latitude=case.truth["latitude"], longitude=case.truth["longitude"]))  # fmt: skip
    history = xr.concat(parts, "time").sortby("time")
    case.truth = history
    options = write(case, tmp_path)[:4]
    found = scores_of(options, tmp_path / "out", "--baselines", "probabilistic-climatology",
                      "--climatology-years", "2016/2019", "--allow-missing",
                      name="scores_probabilistic-climatology.nc")  # fmt: skip
    forecast, truth, _ = paired(case, "2m_temperature")
    valid = (forecast["init"] + forecast["lead"]).values
    members = np.full((4, *truth.shape), np.nan)
    stored = history["2m_temperature"]
    for year in (2016, 2018, 2019):  # the truth has nothing of 2017: a member that is missing
        for place in np.ndindex(valid.shape):
            day = valid[place].astype("datetime64[D]") - valid[place].astype("datetime64[Y]")
            own = (np.datetime64(f"{year}-01-01", "D") + day).astype("datetime64[h]")
            own = own + (valid[place] - valid[place].astype("datetime64[D]"))
            members[year - 2016][place] = stored.sel(time=own).values
    skill = abs(members - truth.values).mean(axis=0)
    assert np.isnan(skill).all()
    assert found["2m_temperature"].sel(metric="crps").isnull().all()
    skipping = scores_of(options, tmp_path / "skipna", "--baselines", "probabilistic-climatology",
                         "--climatology-years", "2016/2019", "--skipna", "--allow-missing",
                         name="scores_probabilistic-climatology.nc")  # fmt: skip
    three = members[[0, 2, 3]]
    pairs = sum(abs(a - b) for a in three for b in three) / 6
    pointwise = truth.copy(data=abs(three - truth.values).mean(axis=0) - 0.5 * pairs)
    expected = spatial_mean(pointwise, "global", None).mean("init")
    got = skipping["2m_temperature"].sel(metric="crps", region="global").values
    np.testing.assert_allclose(got, expected.values, rtol=1e-9)


def test_ties_count_once_in_crps_and_rank(tmp_path: Path) -> None:
    case = make_case(variables=("2m_temperature",), num_members=4)
    for data in (case.forecast, case.truth):
        data["2m_temperature"] = data["2m_temperature"].round(-1).assign_attrs(units="K")
    options = write(case, tmp_path)[:4]
    found = scores_of(options, tmp_path / "out")
    forecast, truth, _ = paired(case, "2m_temperature")
    plain = PlainScores(forecast, truth)
    for name in ("crps", "crps_spread", "debiased_ensemble_mean_mse"):
        got = found["2m_temperature"].sel(metric=name, region="global").values
        np.testing.assert_allclose(got, metric(plain, name)("global").values, rtol=1e-9)
    with xr.open_dataset(tmp_path / "out" / "rank_histogram.nc") as ranks:
        got = ranks["2m_temperature"].values
    below = (forecast < truth).sum("number")
    equal = (forecast == truth).sum("number")
    assert int(equal.sum()) > 0, "there are ties"
    size = float(below.size) / below.sizes["lead"]
    for lead in range(got.shape[0]):
        low, high = (np.bincount(one.isel(lead=lead).values.ravel(), minlength=5).cumsum() / size
                     for one in (below + equal, below))  # fmt: skip
        # a tie takes one of the places among its equals
        assert (got[lead].cumsum() >= low - 1e-12).all()
        assert (got[lead].cumsum() <= high + 1e-12).all()
        assert np.isclose(got[lead].sum(), 1.0)


@pytest.mark.parametrize("dim", ["number", "realization", "member", "ensemble"])
def test_members_go_by_any_of_their_names(dim: str, tmp_path: Path) -> None:
    case = make_case(variables=("geopotential",), num_members=3)
    forecast, truth, _ = paired(case, "geopotential")
    case.forecast = case.forecast.rename(number=dim).transpose("time", ..., dim)
    found = scores_of(write(case, tmp_path)[:4], tmp_path / "out", "--no-spectra")
    got = found["geopotential"].sel(metric="crps", region="tropics")
    expected = PlainScores(forecast, truth).crps("tropics")
    np.testing.assert_allclose(got.values, expected.transpose("lead", "level").values, rtol=1e-9)


@pytest.mark.parametrize("num_lon", [24, 15])
def test_spectra_are_sums_of_squares_along_circles(num_lon: int, tmp_path: Path) -> None:
    case = make_case(num_lon=num_lon, variables=("2m_temperature",))
    scores_of(write(case, tmp_path), tmp_path / "out")
    forecast, truth, _ = paired(case, "2m_temperature")
    angles = 2.0 * np.pi * np.arange(num_lon) / num_lon
    with xr.open_dataset(tmp_path / "out" / "spectra.nc") as spectra:
        for name, data in (("forecast", forecast), ("truth", truth)):
            got = spectra["2m_temperature"].sel(model=name).sel(latitude=data["latitude"])
            values = data.transpose("init", "lead", "latitude", "longitude").values.astype(float)
            for wave in (0, 1, num_lon // 2):
                amplitude = (values * np.exp(-1j * wave * angles)).mean(axis=-1)
                circle = 2 * np.pi * 6367500.0 * np.cos(np.deg2rad(data["latitude"].values))
                energy = (1 if wave == 0 else 2) * circle * abs(amplitude) ** 2
                np.testing.assert_allclose(
                    got.sel(zonal_wavenumber=wave).values, energy.mean(axis=0),
                    rtol=1e-9, atol=1e-6 * float(energy.max()) if wave else 0.0,
                )  # fmt: skip


def test_seeps_is_the_cost_of_the_wrong_category(tmp_path: Path) -> None:
    case = make_case(variables=("2m_temperature",))
    name = "total_precipitation_24hr"
    rng = np.random.default_rng(3)
    for data in (case.forecast, case.truth):
        like = data["2m_temperature"]
        rain = np.maximum(rng.gamma(0.5, 0.004, size=like.shape) - 0.0006, 0.0)
        data[name] = like.copy(data=rain.astype(np.float32)).assign_attrs(units="m")
    like = case.climatology["2m_temperature"]
    threshold = like.copy(data=rng.uniform(0.001, 0.006, size=like.shape).astype(np.float32))
    dry = like.copy(data=rng.uniform(0.0, 1.0, size=like.shape[2:])[None, None] + 0.0 * like.values)
    case.climatology[name] = like.copy(data=0.001 + 0.0 * like.values).assign_attrs(units="m")
    case.climatology[f"{name}_seeps_threshold"] = threshold
    case.climatology[f"{name}_seeps_dry_fraction"] = dry
    found = scores_of(write(case, tmp_path), tmp_path / "out", "--variables", name)
    forecast, truth, _ = paired(case, name)
    valid = forecast["init"] + forecast["lead"]
    at = {"dayofyear": valid.dt.dayofyear, "hour": valid.dt.hour}
    wet = threshold.sel(at).drop_vars(["dayofyear", "hour"]).transpose(*forecast.dims).values
    fraction = dry.mean(("hour", "dayofyear")).values
    cost = np.zeros(forecast.shape)
    for place in np.ndindex(forecast.shape):
        amounts = [float(one.values[place]) for one in (forecast, truth)]
        ours, theirs = (0 if a < 0.00025 else 1 if a < wet[place] else 2 for a in amounts)
        p1 = fraction[place[-2:]]
        p2 = 2 * (1 - p1) / 3  # light rain is twice as frequent as heavy
        p3 = (1 - p1) / 3
        table = [[0, 1 / (1 - p1), 1 / p3 + 1 / (1 - p1)],
                 [1 / p1, 0, 1 / p3],
                 [1 / p1 + 1 / (1 - p3), 1 / (1 - p3), 0]]  # fmt: skip
        assert np.isclose(p1 + p2 + p3, 1.0)
        cost[place] = 0.5 * table[ours][theirs] if 0.1 < p1 < 0.85 else np.nan
    pointwise = forecast.copy(data=cost).astype(np.float64)
    expected = spatial_mean(pointwise, "extra-tropics", None, skipna=True).mean("init")
    got = found[name].sel(metric="seeps_24hr", region="extra-tropics").values
    np.testing.assert_allclose(got, expected.values, rtol=1e-6)


def test_a_comparison_may_lack_a_variable_and_initial_times(tmp_path: Path) -> None:
    case = make_case()
    other = case.forecast[["2m_temperature"]].isel(time=slice(1, 4))
    other.to_netcdf(tmp_path / "other.nc")
    options = [*write(case, tmp_path), "--compare", f"hres={tmp_path / 'other.nc'}"]
    found = scores_of(options, tmp_path / "out", "--allow-missing", name="scores_hres.nc")
    assert found["geopotential"].sel(metric="mse").isnull().all()
    assert found.attrs["num_init_times"] == 3
    assert found["num_init_times"].values.tolist() == [3] * len(LEADS_H)
    forecast, truth, _ = paired(case, "2m_temperature")
    few = slice(1, 4)
    expected = PlainScores(forecast.isel(init=few), truth.isel(init=few)).rmse("global")
    got = found["2m_temperature"].sel(metric="rmse", region="global").values
    np.testing.assert_allclose(got, expected.values, rtol=1e-9)
    protocol = (tmp_path / "out" / "protocol.json").read_text(encoding="utf-8")
    assert protocol.count('"num_init_times": 3') == 1
    assert str(INITS[0].astype("datetime64[s]")) in protocol
