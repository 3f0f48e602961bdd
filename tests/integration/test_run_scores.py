"""Scoring while the forecast is made, against scoring what it writes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from jigsaw_forecast.cli.main import main
from jigsaw_forecast.forecast import rolling
from jigsaw_forecast.forecast.staging import Staging
from jigsaw_forecast.verify import report
from tests.integration import inputs

FIELDS = inputs.CONFIG.prognostic_fields
INITS = ("2026-06-24T00", "2026-06-24T06", "2026-06-24T12")
LEADS_H = 24
Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, its input at three times, a truth and a climatology."""
    folder = tmp_path_factory.mktemp("scores")
    inputs.make_checkpoint(folder / "tiny")
    for seed, time in enumerate(INITS):
        values = inputs.maps(FIELDS, 12, 24, seed)
        inputs.write_grib(folder / "in.grib2", values, time=np.datetime64(time), append=True)
    write_truth(folder / "truth.nc")
    truth = xr.open_dataset(folder / "truth.nc")
    mean = truth.mean("time").expand_dims(hour=[0, 6, 12, 18], dayofyear=range(170, 182))
    mean.drop_vars("land_sea_mask").to_netcdf(folder / "climatology.nc", engine="netcdf4")
    truth.close()
    return folder


def write_truth(path: Path, num_times: int = 8, scale: float = 1.0) -> None:
    """Analyses every 6 hours from the first initial time on, each another map."""
    rows, columns = 12, 24
    times = np.datetime64(INITS[0], "ns") + np.arange(num_times) * np.timedelta64(6, "h")
    made = [inputs.maps(FIELDS, rows, columns, seed) for seed in range(num_times)]
    arrays: dict[str, xr.DataArray] = {}
    for field in FIELDS:
        values = np.stack([one[field] for one in made])
        if field.level_hpa:
            one = xr.DataArray(
                values[:, None], dims=("time", "level", "latitude", "longitude"),
                coords={"level": [field.level_hpa]},
            )  # fmt: skip
            old = arrays.get(field.variable)
            arrays[field.variable] = one if old is None else xr.concat([old, one], "level")
        else:
            arrays[field.variable] = xr.DataArray(values, dims=("time", "latitude", "longitude"))
    arrays["total_precipitation_6hr"] = arrays["2m_temperature"] * 1e-6
    arrays["geopotential"] = arrays["geopotential"] * scale
    coords = {
        "time": times,
        "latitude": 90 - 15 * (np.arange(rows) + 0.5),
        "longitude": np.arange(columns) * 15.0,
    }
    data = xr.Dataset(arrays).assign_coords(coords)
    land = np.linspace(0, 1, rows * columns, dtype=np.float32).reshape(rows, columns)
    data["land_sea_mask"] = (("latitude", "longitude"), land)
    data.to_netcdf(path, engine="netcdf4")


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares the seconds of drawing."""
    monkeypatch.setattr(report, "write_report", lambda _: None)


@pytest.fixture
def run(folder: Path, no_report: None, capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str | Path) -> tuple[int, str]:
        return main(command(folder, *arguments)), capfd.readouterr().err

    return call


def command(folder: Path, *arguments: str | Path) -> list[str]:
    given = ["run", "--quiet", "--checkpoint", folder / "tiny", "--input", folder / "in.grib2"]
    given += ["--init", ",".join(INITS), "--lead-time", f"{LEADS_H}h"]
    given += ["--truth", folder / "truth.nc", "--climatology", folder / "climatology.nc"]
    return [str(one) for one in (*given, *arguments)]


@pytest.fixture(scope="module")
def offline(folder: Path) -> Path:
    """Scores of what the run writes."""
    store = folder / "whole.zarr"
    assert main(command(folder, "--output", store)) == 0
    options = ["--truth", folder / "truth.nc", "--climatology", folder / "climatology.nc"]
    options += ["--forecast", store, "--output", folder / "offline", "--no-report", "--quiet"]
    assert main(["score", *map(str, options)]) == 0
    return folder / "offline"


def assert_equal_scores(found: Path, expected: Path, rtol: float = 1e-12) -> None:
    """Every table of scores, maps and spectra, every statistic: the same names and numbers."""
    names = sorted(str(p.relative_to(expected)) for p in expected.rglob("*.nc"))
    assert names == sorted(str(p.relative_to(found)) for p in found.rglob("*.nc"))
    assert "statistics/forecast.nc" in names
    assert "statistics/persistence.nc" in names
    for name in names:
        with xr.open_dataset(found / name) as own, xr.open_dataset(expected / name) as other:
            assert set(own.data_vars) == set(other.data_vars), name
            for variable in other.data_vars:
                values, made = other[variable].values, own[variable].values
                if "statistic" in other[variable].dims:  # a store counts levels it has no field of
                    is_field = other[variable].sel(statistic="mse").notnull()
                    values = other[variable].where(is_field).values
                    made = own[variable].where(is_field).values
                size = np.nanmax(np.abs(values)) if np.isfinite(values).any() else 0.0
                np.testing.assert_allclose(
                    made, values, rtol=rtol, atol=rtol * size,
                    err_msg=f"{name} {variable}",
                )  # fmt: skip


def test_scores_made_on_the_way_are_those_of_the_store(folder: Path, offline: Path) -> None:
    # the run that wrote the store made them beside it
    made = folder / "whole.scores"
    assert_equal_scores(made, offline)
    assert (made / "report.html").exists()
    protocol = json.loads((made / "protocol.json").read_text())
    assert protocol["models"][0]["notes"][-1] == "scored while it was made"
    assert not list(folder.glob("*.partial"))


@pytest.mark.parametrize("mesh", ["domain=2,tensor=2", "data=2"])
def test_ranks_score_what_they_write(folder: Path, tmp_path: Path, mesh: str) -> None:
    arguments = command(folder, "--mesh", mesh, "--output", tmp_path / "f.zarr")
    # few variables: the report has a picture of each
    arguments += ["--report", str(tmp_path / "r.json"), "--variables", "z500,2t"]
    done = subprocess.run(
        [sys.executable, "-m", "jigsaw_forecast.cli.main", *arguments], capture_output=True,
        text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    options = ["--truth", folder / "truth.nc", "--climatology", folder / "climatology.nc"]
    options += ["--forecast", tmp_path / "f.zarr", "--output", tmp_path / "off", "--no-report"]
    assert main(["score", "--quiet", *map(str, options)]) == 0
    assert_equal_scores(tmp_path / "f.scores", tmp_path / "off")
    written = json.loads((tmp_path / "r.json").read_text())
    assert written["scores"] == [str(tmp_path / "f.scores")]


def test_a_stopped_run_goes_on_to_the_same_scores(
    run: Run, offline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, seen = rolling.look_at, iter(range(1, 1000))

    def look(*arguments: object) -> object:
        if next(seen) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(rolling, "look_at", look)
    code, message = run("--output", tmp_path / "s.scores")
    assert code == 3
    assert "s.scores.partial holds 6 of 12 lead times" in message
    assert not (tmp_path / "s.scores").exists()
    assert run("--output", tmp_path / "s.scores", "--resume") == (0, "")
    assert not list(tmp_path.glob("*.zarr*"))
    assert_equal_scores(tmp_path / "s.scores", offline)
    assert run("--output", tmp_path / "s.scores", "--resume") == (0, "")  # whole: nothing to do


def test_scores_that_had_not_got_their_name_need_no_forecast_again(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = ("--init", INITS[0], "--lead-time", "12h", "--variables", "2t", "--output")
    assert run(*short, tmp_path / "whole.scores") == (0, "")

    def rename(self: Staging) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as full:
        full.setattr(Staging, "_rename", rename)
        code, message = run(*short, tmp_path / "s.scores")
        assert code == 3
        assert "the finished product is" in message
    assert not (tmp_path / "s.scores.partial" / "lead-times").exists()
    monkeypatch.setattr("jigsaw_forecast.forecast.run.load_checkpoint", None)
    assert run(*short, tmp_path / "s.scores", "--resume") == (0, "")
    assert_equal_scores(tmp_path / "s.scores", tmp_path / "whole.scores")
    left = {path.name for path in tmp_path.iterdir() if not path.name.startswith("whole")}
    assert left == {"s.scores", "s.scores.json"}


def test_scores_of_runs_merge_into_those_of_one(run: Run, offline: Path, tmp_path: Path) -> None:
    arguments = ["score", "--output", str(tmp_path / "all"), "--no-report", "--quiet"]
    for number, init in enumerate(INITS):
        made = tmp_path / f"{number}.scores"
        assert run("--init", init, "--output", made) == (0, "")
        arguments += ["--merge", str(made)]
    assert main(arguments) == 0
    assert_equal_scores(tmp_path / "all", offline)


def test_scores_that_exist_are_kept(run: Run, tmp_path: Path) -> None:
    short = ("--init", INITS[0], "--lead-time", "6h", "--output", tmp_path / "s.scores")
    assert run(*short) == (0, "")
    code, message = run(*short)
    assert code == 2
    assert "s.scores exists; add --overwrite" in message
    assert run(*short, "--overwrite") == (0, "")
    (tmp_path / "other.scores").mkdir()
    code, message = run(*short[:-1], tmp_path / "other.scores", "--overwrite")
    assert code == 2
    assert "is not a folder of scores" in message


def test_another_truth_is_refused_when_going_on(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_truth(tmp_path / "other.nc")
    original = rolling.look_at

    def look(*arguments: object) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(rolling, "look_at", look)
    one = ("--init", INITS[0], "--output", tmp_path / "s.scores")
    assert run(*one)[0] == 3
    code, message = run(*one, "--resume", "--truth", tmp_path / "other.nc")
    assert code == 2
    assert "truth:" in message
    assert "there" in message
    assert "other.nc" in message


@pytest.mark.parametrize("name", ["run", "check"])
def test_a_truth_that_lacks_times_is_refused_before_anything_is_made(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    write_truth(tmp_path / "short.nc", num_times=6)
    arguments = command(folder, "--truth", tmp_path / "short.nc", "--output", tmp_path / "s.scores")
    if name == "check":
        arguments = ["check", str(folder / "tiny"), *arguments[4:]]
    assert main(arguments) == 2
    message = capfd.readouterr().err
    assert "--truth: missing valid times in the truth" in message
    assert "2026-06-25T12" in message
    assert "--allow-missing" in message
    assert list(tmp_path.iterdir()) == [tmp_path / "short.nc"]


def test_what_the_truth_lacks_can_be_left_out(run: Run, tmp_path: Path) -> None:
    write_truth(tmp_path / "short.nc", num_times=6)
    truth = ("--truth", tmp_path / "short.nc", "--allow-missing")
    assert run(*truth, "--output", tmp_path / "s.scores")[0] == 0
    with xr.open_dataset(tmp_path / "s.scores" / "scores.nc") as scores:
        assert scores["num_init_times"].values.tolist() == [3, 3, 3, 2]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--members", "2"), "--truth scores single forecasts"),
        (("--truth", "missing.nc"), "missing missing.nc"),
        (("--plot", "p.png"), "missing an --output that holds maps"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], expected: str
) -> None:
    code, message = run(*arguments, "--output", tmp_path / "s.scores")
    assert code == 2
    assert expected in message
    assert not list(tmp_path.iterdir())


def test_scores_without_a_truth_are_refused(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", "--quiet", "--checkpoint", str(folder / "tiny"), "--init", INITS[0]]
    assert main([*arguments, "--output", str(tmp_path / "s.scores")]) == 2
    assert "s.scores holds scores: missing --truth" in capfd.readouterr().err
    assert main([*arguments, "--climatology", "c.nc"]) == 2
    assert "missing --truth" in capfd.readouterr().err


def test_a_truth_in_other_units_is_refused(run: Run, tmp_path: Path) -> None:
    write_truth(tmp_path / "height.nc", scale=1 / 9.80665)
    code, message = run("--truth", tmp_path / "height.nc", "--output", tmp_path / "s.scores")
    assert code == 2
    assert "units of geopotential at 500 hPa differ" in message
    assert "(--force: of `jigsaw-forecast score`, for the product)" in message
    assert not (tmp_path / "s.scores").exists()
