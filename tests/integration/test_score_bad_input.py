"""What `score` refuses, each with one message that lists everything, and exit code 2."""

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from jigsaw_forecast.cli.main import main
from tests.unit.verify.made_up import INITS, make_case, write


def refusal(capfd: pytest.CaptureFixture[str], *options: str) -> str:
    """The message with which these options are refused."""
    assert main(["score", *options, "--no-report", "--quiet"]) == 2
    message = capfd.readouterr().err
    assert message.startswith("error: ")
    return message


def accepted(*options: str) -> None:
    assert main(["score", *options, "--no-report", "--quiet"]) == 0


@pytest.fixture
def output(tmp_path: Path) -> list[str]:
    return ["--output", str(tmp_path / "out")]


def test_all_that_the_truth_lacks_is_listed(
    tmp_path: Path, output: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    case = make_case(variables=("2m_temperature",))
    gone = [np.datetime64("2020-02-28T06"), np.datetime64("2020-02-29T00")]
    case.truth = case.truth.drop_sel(time=np.array(gone, dtype="datetime64[ns]"))
    options = write(case, tmp_path)
    message = refusal(capfd, *options, *output)
    for time in ("2020-02-28T06:00", "2020-02-29T00:00", "missing", "--allow-missing"):
        assert time in message
    assert not (tmp_path / "out" / "scores.nc").exists()
    accepted(*options, *output, "--allow-missing")
    with xr.open_dataset(tmp_path / "out" / "scores.nc") as found:
        assert found["num_init_times"].values.tolist() == [6, 6, 6, 6]
    protocol = json.loads((tmp_path / "out" / "protocol.json").read_text())
    missing = protocol["models"][0]["missing"]
    assert {one["why"] for one in missing} == {f"the truth lacks {t}:00:00" for t in map(str, gone)}


def test_grids_that_differ_are_refused_and_regridded_where_asked(
    tmp_path: Path, output: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    case = make_case(tuple(np.linspace(-87.5, 87.5, 36)), num_lon=72, variables=("2m_temperature",))
    coarse = make_case(tuple(np.linspace(-85, 85, 18)), num_lon=36, variables=("2m_temperature",))
    case.truth, case.climatology = coarse.truth, coarse.climatology
    options = write(case, tmp_path)
    message = refusal(capfd, *options, *output)
    assert "grids differ" in message
    assert "72x36" in message
    assert "36x18" in message
    assert "--resolution" in message
    accepted(*options, *output, "--resolution", "36x18")


@pytest.mark.parametrize(
    ("variable", "factor", "units", "words"),
    [
        ("geopotential", 1 / 9.80665, "m2 s-2", "geopotential height"),
        ("geopotential", 1 / 9.80665, "m", "m2 s-2"),
        ("mean_sea_level_pressure", 0.01, "", "hPa"),
        ("total_precipitation_24hr", 1000.0, "", "mm"),
        ("total_precipitation_24hr", 1000.0, "mm", "'mm' against 'm'"),
    ],
)
def test_units_that_differ_are_refused(
    variable: str,
    factor: float,
    units: str,
    words: str,
    tmp_path: Path,
    output: list[str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    case = make_case(variables=("geopotential", "2m_temperature"))
    base = {"mean_sea_level_pressure": (1.01e5, 800.0, "Pa"),
            "total_precipitation_24hr": (0.003, 0.0005, "m")}  # fmt: skip
    if variable in base:
        mean, deviation, own = base[variable]
        for data in (case.forecast, case.truth):
            noise = data["2m_temperature"] * 0.0 + np.random.default_rng(1).normal(
                mean, deviation, data["2m_temperature"].shape
            )
            data[variable] = noise.assign_attrs(units=own)
    changed = case.forecast[variable] * factor
    case.forecast[variable] = changed.assign_attrs({"units": units} if units else {})
    options = [*write(case, tmp_path)[:4], *output]
    message = refusal(capfd, *options)
    assert f"units of {variable}" in message
    assert words in message


def test_a_climatology_without_the_days_and_hours_is_refused(
    tmp_path: Path, output: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    case = make_case(variables=("2m_temperature",))
    case.climatology = case.climatology.sel(dayofyear=[58, 59, 61, 62], hour=[0, 12])
    message = refusal(capfd, *write(case, tmp_path), *output)
    assert "missing days in the climatology" in message
    for day in ("day 60 00 UTC", "day 58 06 UTC", "day 60 18 UTC"):
        assert day in message
    assert "day 61 00 UTC" not in message


def test_levels_that_truth_or_climatology_lack_are_refused(
    tmp_path: Path, output: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    case = make_case(variables=("geopotential",))
    case.truth = case.truth.sel(level=[500])
    case.climatology = case.climatology.sel(level=[500])
    options = write(case, tmp_path)
    assert "missing levels of geopotential" in refusal(capfd, *options, *output)
    assert "missing levels" in refusal(capfd, *options, *output, "--levels", "300,500")
    accepted(*options, *output, "--levels", "500")


def test_no_overlap_in_time_is_told_with_both_periods(
    tmp_path: Path, output: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    case = make_case(variables=("2m_temperature",))
    later = case.truth["time"] + np.timedelta64(366, "D")
    case.truth = case.truth.assign_coords(time=later)
    message = refusal(capfd, *write(case, tmp_path)[:4], *output)
    assert "no overlap in time" in message
    assert "2020-02-27T00:00 to 2020-03-03T00:00" in message
    assert "2021-02-27T00:00" in message


def test_an_unfinished_store_is_refused(
    tmp_path: Path, output: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    case = make_case(variables=("2m_temperature",))
    truth = write(case, tmp_path)[2:4]
    case.forecast.to_zarr(tmp_path / "f.zarr.partial", zarr_format=3, consolidated=False)
    message = refusal(capfd, "--forecast", str(tmp_path / "f.zarr"), *truth, *output)
    assert "not finished" in message
    message = refusal(capfd, "--forecast", str(tmp_path / "f.zarr.partial"), *truth, *output)
    assert "not complete" in message


def test_lead_times_that_are_not_marked_done_are_missing(
    tmp_path: Path, output: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    case = make_case(variables=("2m_temperature",))
    truth = write(case, tmp_path)[2:4]
    store = tmp_path / "f.zarr"
    case.forecast.to_zarr(store, zarr_format=3, consolidated=False)
    done = [[str(init)[:19], lead] for init in INITS for lead in (0, 6, 24, 48)]
    done.remove(["2020-02-28T12:00:00", 24])
    zarr.open_group(store, mode="r+").attrs["finished_lead_times"] = done
    message = refusal(capfd, "--forecast", str(store), *truth, *output)
    assert "is not complete" in message
    assert "2020-02-28T12:00:00: 24 h" in message


def test_chunks_that_were_never_written_are_missing(
    tmp_path: Path, output: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    case = make_case(variables=("2m_temperature", "geopotential"))
    truth = write(case, tmp_path)[2:4]
    store = tmp_path / "f.zarr"
    chunks = {"time": 1, "prediction_timedelta": 1}
    sizes = case.forecast.sizes
    encoding = {
        name: {"chunks": tuple(chunks.get(str(d), sizes[d]) for d in array.dims)}
        for name, array in case.forecast.data_vars.items()
    }
    case.forecast.to_zarr(store, zarr_format=3, consolidated=False, encoding=encoding)
    (gone,) = (store / "2m_temperature" / "c" / "2" / "1").rglob("0/0")
    gone.unlink()
    message = refusal(capfd, "--forecast", str(store), *truth, *output)
    assert "2020-02-28T00:00:00: 6 h" in message
    accepted("--forecast", str(store), *truth, *output, "--allow-missing")
    with xr.open_dataset(tmp_path / "out" / "scores.nc") as found:
        assert found["2m_temperature"].sel(metric="mse", region="global").notnull().all()


def test_a_comparison_at_another_resolution_is_refused_unless_forced(
    tmp_path: Path, output: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    case = make_case(tuple(np.linspace(-87.5, 87.5, 36)), num_lon=72, variables=("2m_temperature",))
    other = make_case(tuple(np.linspace(-85, 85, 18)), num_lon=36, variables=("2m_temperature",))
    options = [*write(case, tmp_path), "--compare", f"coarse={tmp_path / 'other.nc'}", *output]
    other.forecast.to_netcdf(tmp_path / "other.nc")
    message = refusal(capfd, *options)
    assert "coarse would be scored at another resolution: 36x18" in message
    accepted(*options, "--force")
    with xr.open_dataset(tmp_path / "out" / "scores_coarse.nc") as found:
        assert found.attrs["resolution"] == "36x18"
        assert "another resolution" in found.attrs["comparison"]
    protocol = json.loads((tmp_path / "out" / "protocol.json").read_text())
    assert not protocol["models"][-1]["comparable"]


def test_a_comparison_against_another_truth_is_refused_unless_forced(
    tmp_path: Path, output: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    case = make_case(variables=("2m_temperature",))
    options = [*write(case, tmp_path), *output]
    case.truth.to_netcdf(tmp_path / "own.nc")
    options += ["--compare", f"ifs={tmp_path / 'forecast.nc'}"]
    options += ["--compare-truth", f"ifs={tmp_path / 'own.nc'}"]
    assert "not the same truth" in refusal(capfd, *options)
    accepted(*options, "--force")


def test_everything_wrong_is_told_at_once(
    tmp_path: Path, output: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    message = refusal(
        capfd, *output, "--forecast", "f.nc", "--regions", "atlantis", "--lead-times", "soon",
        "--resolution", "big", "--compare", "noname", "--baselines", "luck",
    )  # fmt: skip
    for part in ("--truth", "atlantis", "soon", "big", "noname", "luck"):
        assert part in message
    missing = [str(tmp_path / name) for name in ("a.zarr", "b.nc", "c.nc")]
    message = refusal(
        capfd, *output, "--forecast", missing[0], "--truth", missing[1], "--climatology", missing[2]
    )
    for path in missing:
        assert f"missing {path}" in message or f"missing climatology {path}" in message


def test_a_score_is_not_replaced_by_accident(
    tmp_path: Path, output: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    options = [*write(make_case(variables=("2m_temperature",)), tmp_path), *output]
    accepted(*options)
    before = (tmp_path / "out" / "scores.nc").read_bytes()
    assert "--overwrite" in refusal(capfd, *options)
    accepted(*options, "--resume")  # whole already
    assert (tmp_path / "out" / "scores.nc").read_bytes() == before
    assert "another request" in refusal(capfd, *options, "--resume", "--lead-times", "6h")
    accepted(*options, "--overwrite", "--lead-times", "6h")
