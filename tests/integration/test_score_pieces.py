"""Scores made in pieces, in processes, on ranks, resumed and on real files."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from jigsaw_forecast.cli.main import main
from jigsaw_forecast.data.grib import GribSource
from jigsaw_forecast.grid import area_weights
from jigsaw_forecast.verify import scoring
from tests.unit.verify.made_up import INITS, make_case, write

FILES = (
    "scores.nc",
    "scores_persistence.nc",
    "scores_climatology.nc",
    "statistics/forecast.nc",
    "statistics/persistence.nc",
    "maps_forecast.nc",
    "spectra.nc",
)


def score(*options: str) -> None:
    assert main(["score", *options, "--no-report", "--quiet"]) == 0


def assert_same(first: Path, second: Path) -> None:
    for name in FILES:
        with xr.open_dataset(first / name) as one, xr.open_dataset(second / name) as other:
            xr.testing.assert_equal(one.drop_attrs(), other.drop_attrs())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("case")
    options = write(make_case(), folder)
    score(*options, "--output", str(folder / "whole"))
    return folder, options


@pytest.mark.parametrize("pieces", [2, 7])
def test_pieces_merge_to_the_last_bit(
    files: tuple[Path, list[str]], pieces: int, tmp_path: Path
) -> None:
    folder, options = files
    merge: list[str] = []
    for number, some in enumerate(np.array_split(INITS.astype("datetime64[s]"), pieces)):
        part = tmp_path / f"part-{number}"
        score(*options, "--init-times", f"{some[0]}/{some[-1]}", "--output", str(part))
        merge = ["--merge", str(part), *merge]  # the last comes first
    score(*merge, "--output", str(tmp_path / "merged"))
    assert_same(folder / "whole", tmp_path / "merged")


def test_pieces_that_share_times_or_differ_do_not_merge(
    files: tuple[Path, list[str]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, options = files
    score(*options, "--output", str(tmp_path / "few"), "--lead-times", "6h")
    merge = ["--merge", str(folder / "whole"), "--merge", str(tmp_path / "few")]
    assert main(["score", *merge, "--output", str(tmp_path / "out")]) == 2
    message = capfd.readouterr().err
    assert "lead_times: [0, 6, 24, 48] against [6]" in message
    assert "in more than one of the scores: 2020-02-27T00:00:00" in message


def test_a_cache_of_two_valid_times_gives_the_same(
    files: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, options = files
    of_one_time = 2 * 2 * 19 * 24 * 4  # truth and climatology on two levels
    monkeypatch.setattr(scoring, "cache_bytes", lambda plan, count: 2 * of_one_time)
    score(*options, "--output", str(tmp_path / "out"))
    assert_same(folder / "whole", tmp_path / "out")


def test_worker_processes_give_the_same(files: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, options = files
    command = [sys.executable, "-m", "jigsaw_forecast.cli.main", "score", *options, "--no-report"]
    subprocess.run([*command, "--workers", "2", "--output", str(tmp_path / "out")], check=True)
    assert_same(folder / "whole", tmp_path / "out")


def test_ranks_under_torchrun_share_the_work(files: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, options = files
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
               "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0",
               "-m", "jigsaw_forecast.cli.main", "score", *options, "--no-report"]  # fmt: skip
    subprocess.run([*command, "--output", str(tmp_path / "out")], check=True)
    assert_same(folder / "whole", tmp_path / "out")


def test_a_stopped_score_is_resumed(tmp_path: Path) -> None:
    options = write(make_case(), tmp_path)
    folder = tmp_path / "out"
    code = (
        "import sys, time\n"
        "from jigsaw_forecast.verify import score, workers\n"
        "score.UNIT_BYTES = 1\n"
        "save = workers.Piece.save\n"
        "def slowly(*arguments):\n"
        "    save(*arguments)\n"
        "    time.sleep(0.3)\n"
        "workers.Piece.save = slowly\n"
        "from jigsaw_forecast.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [
        sys.executable,
        "-c",
        code,
        "score",
        *options,
        "--no-report",
        "--output",
        str(folder),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not list(folder.glob(".partial/*/*.npz")):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, message = process.communicate()
    assert process.returncode == 3
    assert "stopped by SIGTERM" in message
    done = {path: path.stat().st_mtime_ns for path in folder.glob(".partial/*/*.npz")}
    assert not (folder / "scores.nc").exists()
    script = code.replace("    time.sleep(0.3)\n", "    print(arguments[1])\n")
    command = [sys.executable, "-c", script, *command[3:], "--resume"]
    made = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert not any(path.name in made for path in done), "pieces are not made twice"
    assert (folder / "scores.nc").exists()
    assert not (folder / ".partial").exists()


def test_persistence_of_real_analyses_with_a_gap(
    real_data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    series = str(real_data / "series-gfs10m")
    options = ["--forecast", "persistence", "--truth", series, "--lead-times", "6,24,48,120"]
    assert main(["score", *options, "--no-report", "--output", str(tmp_path / "out")]) == 0
    with xr.open_dataset(tmp_path / "out" / "scores.nc") as found:
        rmse = found["10m_u_component_of_wind"].sel(metric="rmse", region="global").values
        np.testing.assert_allclose(rmse, [2.3673, 4.2626, 4.9911, 5.4610], atol=6e-5)
        assert found["num_init_times"].values.tolist() == [38, 35, 31, 20]
    assert "has a gap at 2018-10-10T18:00" in capfd.readouterr().err


def test_ten_real_members_against_their_first_as_truth(real_data: Path, tmp_path: Path) -> None:
    """CRPS and spread of the ERA5 ensemble, by loops over pairs of decoded members."""
    path = real_data / "era5-eda" / "era5-levels-members.grib"
    source = GribSource(path)
    records = [r for r in source.records() if r.variable == "geopotential" and r.level == 500]
    times = sorted({r.valid_time for r in records})
    maps = {
        (r.valid_time, r.member): one.astype(np.float64)
        for r, one in zip(records, source.read(records), strict=True)
    }
    axes = records[0].axes
    assert axes is not None
    truth = xr.Dataset(
        {"geopotential": (("time", "level", "latitude", "longitude"),
                          np.stack([[maps[time, 0] + 50.0] for time in times]))},
        coords={"time": [t.astype("datetime64[ns]") for t in times], "level": [500],
                "latitude": axes.latitudes, "longitude": axes.longitudes},
    )  # fmt: skip
    truth["geopotential"].attrs["units"] = "m2 s-2"
    truth.to_netcdf(tmp_path / "truth.nc")
    score("--forecast", str(path), "--truth", str(tmp_path / "truth.nc"), "--variables", "z500",
          "--output", str(tmp_path / "out"), "--baselines", "none")  # fmt: skip
    rows = area_weights(axes.latitudes) / axes.latitudes.size
    skill, spread, variance = [], [], []
    for valid in times:
        members = np.stack([maps[valid, member] for member in range(10)])
        observed = maps[valid, 0] + 50.0
        pairs = sum(abs(a - b) for a in members for b in members) / 90
        for total, one in ((skill, abs(members - observed).mean(0)), (spread, pairs),
                           (variance, members.var(0, ddof=1))):  # fmt: skip
            total.append(float(one.mean(-1) @ rows))
    expected = {
        "crps": np.mean(skill) - 0.5 * np.mean(spread),
        "crps_spread": np.mean(spread),
        "ensemble_variance": np.mean(variance),
    }
    with xr.open_dataset(tmp_path / "out" / "scores.nc") as found:
        for name, value in expected.items():
            got = found["geopotential"].sel(metric=name, region="global", level=500).item()
            np.testing.assert_allclose(got, value, rtol=1e-9)


def test_our_own_grib_is_read_as_forecast_and_truth(real_data: Path, tmp_path: Path) -> None:
    """Steps 0 to 36 h of z, t and u on four levels, scored against themselves."""
    path = str(real_data / "mixed" / "multi_param_on_multi_dims.grib")
    score("--forecast", path, "--truth", path, "--output", str(tmp_path / "out"),
          "--allow-missing", "--baselines", "none")  # fmt: skip
    with xr.open_dataset(tmp_path / "out" / "scores.nc") as found:
        mse = found["temperature"].sel(metric="mse", region="global")
        assert float(mse.isel(lead_time=0).max()) == 0.0
