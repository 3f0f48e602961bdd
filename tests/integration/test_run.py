"""`jigsaw-forecast run` from the command line: products, meshes, and every kind of bad input."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from jigsaw_forecast.cli.main import main
from jigsaw_forecast.fields import Field
from tests.integration import inputs

FIELDS = inputs.CONFIG.prognostic_fields
Z500, T850 = Field("geopotential", 500), Field("temperature", 850)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return inputs.make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture
def run(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Runs the command in this process; returns the exit code and the lines on stderr."""

    def call(*arguments: str | Path) -> tuple[int, str]:
        common = ["run", "--init", "2026-06-24T00", "--lead-time", "12h", "--quiet"]
        where = ["--checkpoint", str(checkpoint)]
        if "--output" not in arguments:
            where += ["--output", str(tmp_path / "forecast.zarr")]
        code = main([*common, *where, *map(str, arguments)])
        return code, capfd.readouterr().err

    return call


@pytest.fixture
def refused(run: Callable[..., tuple[int, str]], tmp_path: Path) -> Callable[..., str]:
    """Runs with bad input: exit code 2, one message, nothing under the final name."""

    def call(*arguments: str | Path) -> str:
        code, message = run(*arguments)
        assert code == 2, message
        assert message.startswith("error: ")
        assert message.count("error: ") == 1
        assert "Traceback" not in message
        assert not (tmp_path / "forecast.zarr").exists()
        assert not (tmp_path / "forecast.zarr.partial").exists()
        return message

    return call


def whole_state(rows: int = 12, columns: int = 24, seed: int = 0) -> dict[Field, np.ndarray]:
    return inputs.maps(FIELDS, rows, columns, seed)


def test_store_holds_every_field_and_lead_time(
    run: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    code, message = run("--write-initial-state")
    assert (code, message) == (0, "")
    store = xr.open_zarr(tmp_path / "forecast.zarr")
    hours = store.prediction_timedelta / np.timedelta64(1, "h")
    assert hours.values.tolist() == [0, 6, 12]
    for field, values in whole_state().items():
        found = store[field.variable].isel(time=0)
        found = found.sel(level=field.level_hpa) if field.level_hpa else found
        np.testing.assert_array_equal(found.isel(prediction_timedelta=0).values, values)
        assert np.isfinite(found.values).all()
    rain = store["total_precipitation_6hr"]
    assert np.isnan(rain.isel(prediction_timedelta=0)).all()
    assert (rain.isel(prediction_timedelta=slice(1, None)) >= 0).all()
    assert store.attrs["notice"] == "Random weights for a test."


@pytest.mark.parametrize("mesh", ["domain=2", "tensor=3", "domain=2,tensor=2"])
def test_any_mesh_writes_what_one_rank_writes(
    run: Callable[..., tuple[int, str]], checkpoint: Path, tmp_path: Path, mesh: str
) -> None:
    run("--write-initial-state", "--output", tmp_path / "one.zarr")
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "jigsaw_forecast.cli.main", "run", "--init", "2026-06-24T00"]
    command += ["--lead-time", "12h", "--checkpoint", str(checkpoint), "--mesh", mesh]
    command += ["--output", str(tmp_path / "many.zarr"), "--output", str(tmp_path / "many.grib2")]
    command += ["--write-initial-state", "--report", str(report), "--weights", "streamed"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    one, many = (xr.open_zarr(tmp_path / name) for name in ("one.zarr", "many.zarr"))
    for name in one:
        rounding = 4 * float(np.spacing(np.float32(abs(one[name]).max())))
        tolerance = 1e-5 * float(one[name].std()) + rounding
        assert float(abs(one[name] - many[name]).max()) <= tolerance, name
    figures = json.loads(report.read_text())
    assert len(figures["ranks"]) == math.prod(int(part.split("=")[1]) for part in mesh.split(","))
    whole = figures["parameters"]
    stored = [rank["parameter_bytes"] for rank in figures["ranks"]]
    assert sum(stored) == 4 * whole
    received = [rank["bytes_received_per_step"] for rank in figures["ranks"]]
    for axis in ("domain", "tensor"):
        if axis in mesh:
            assert all(rank[axis]["activations"] > 0 for rank in received)


def test_forecast_written_as_grib_is_accepted_as_input(
    run: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    first = tmp_path / "first.grib2"
    assert run("--write-initial-state", "--output", first)[0] == 0
    assert run("--input", first, "--write-initial-state")[0] == 0
    store = xr.open_zarr(tmp_path / "forecast.zarr")
    for field, values in whole_state().items():
        found = store[field.variable].isel(time=0, prediction_timedelta=0)
        found = found.sel(level=field.level_hpa) if field.level_hpa else found
        packing = (values.max() - values.min()) / 2**16 + 1e-6 * abs(values).max()
        np.testing.assert_allclose(found.values, values, rtol=0, atol=packing)


def test_finer_input_with_poles_is_regridded_where_asked(
    run: Callable[..., tuple[int, str]], refused: Callable[..., str], tmp_path: Path
) -> None:
    fine = inputs.write_grib(tmp_path / "fine.grib2", whole_state(37, 72))
    message = refused("--input", fine)
    assert "--regrid" in message
    assert "72x37" in message or "37x72" in message
    assert run("--input", fine, "--regrid")[0] == 0


def test_missing_fields_are_all_listed_with_what_is_there(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    state = whole_state()
    for lost in (Z500, Field("2m_temperature")):
        del state[lost]
    message = refused("--input", inputs.write_grib(tmp_path / "in.grib2", state))
    missing = message.partition("missing")[2]
    assert "z500" in missing
    assert "2t" in missing
    assert "z850" in message or "850" in message


def test_truncated_file_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    path = inputs.write_grib(tmp_path / "in.grib2", whole_state())
    path.write_bytes(path.read_bytes()[:-100])
    message = refused("--input", path)
    assert str(path) in message
    assert "truncated" in message


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
        (b"no weather here " * 100, "neither GRIB"),
    ],
)
def test_files_that_are_no_data_are_refused_by_name(
    refused: Callable[..., str], tmp_path: Path, content: bytes, word: str
) -> None:
    path = tmp_path / "in.grib2"
    path.write_bytes(content)
    message = refused("--input", path)
    assert str(path) in message
    assert word in message


def test_duplicates_that_disagree_are_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    path = inputs.write_grib(tmp_path / "in.grib2", whole_state())
    inputs.write_grib(path, {T850: whole_state(seed=5)[T850]}, append=True)
    message = refused("--input", path)
    assert "t850" in message
    assert "10" in message  # the number of the second message


def test_other_valid_time_lists_the_files_times(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    time = np.datetime64("2026-06-23T18", "s")
    message = refused("--input", inputs.write_grib(tmp_path / "i.grib2", whole_state(), time=time))
    assert "2026-06-24T00" in message
    assert "2026-06-23T18" in message


def test_mixed_grids_are_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    state = whole_state()
    path = inputs.write_grib(tmp_path / "in.grib2", state)
    other = {Z500: whole_state(19, 36)[Z500]}
    path.unlink()
    del state[Z500]
    inputs.write_grib(path, state)
    inputs.write_grib(path, other, append=True)
    message = refused("--input", path, "--regrid")
    assert "grids" in message


def test_height_under_the_name_of_geopotential_is_refused(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    state = whole_state()
    state[Z500] = state[Z500] / np.float32(9.80665)
    message = refused("--input", inputs.write_grib(tmp_path / "in.grib2", state))
    assert "z500" in message
    assert "height" in message


def test_missing_values_are_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    state = whole_state()
    state[T850][3, 5] = np.nan
    message = refused("--input", inputs.write_grib(tmp_path / "in.grib2", state))
    assert "t850" in message
    assert "missing" in message


def test_regional_grid_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    path = inputs.write_grib(tmp_path / "in.grib2", whole_state(), south=20.0)
    message = refused("--input", path, "--regrid")
    assert "global" in message or "regional" in message


def test_mesh_that_does_not_divide_lists_the_degrees_that_do(refused: Callable[..., str]) -> None:
    message = refused("--mesh", "domain=5,tensor=7")
    assert "domain=5 does not divide 6 token rows" in message
    assert "use 1, 2, 3 or 6" in message
    assert "tensor=7 does not divide 24 channels" in message


def test_existing_output_is_kept_without_overwrite(
    run: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    assert run()[0] == 0
    before = (tmp_path / "forecast.zarr" / "zarr.json").read_bytes()
    code, message = run()
    assert code == 2
    assert "forecast.zarr exists" in message
    assert "--overwrite" in message
    assert (tmp_path / "forecast.zarr" / "zarr.json").read_bytes() == before
    assert run("--overwrite")[0] == 0


def test_folder_that_does_not_exist_is_named(refused: Callable[..., str], tmp_path: Path) -> None:
    message = refused("--output", tmp_path / "nowhere" / "f.zarr")
    assert "nowhere" in message


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder that not even root may write")
def test_unwritable_folder_is_named(refused: Callable[..., str]) -> None:
    assert "/proc" in refused("--output", "/proc/forecast.zarr")


def test_damaged_checkpoint_is_refused_by_shard(
    run: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    folder = inputs.make_checkpoint(tmp_path / "damaged")
    shard = next(folder.glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)
    code, message = run("--checkpoint", folder)
    assert code == 2
    assert shard.name in message
    assert "sha256" in message


def test_lead_time_off_the_models_step_is_refused(refused: Callable[..., str]) -> None:
    message = refused("--lead-time", "7h")
    assert "7 hours" in message
    assert "6 hours" in message


def test_a_forecast_that_overflows_stops_with_its_fields_and_keeps_what_was_made(
    run: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    folder = inputs.make_checkpoint(tmp_path / "wild", tendency_factor=1e34)
    code, message = run("--checkpoint", folder)
    assert code == 3
    assert "not finite at lead time 12 h" in message
    assert "z500" in message
    assert "forecast.zarr.partial holds 1 of 2 lead times; --resume goes on from there" in message
    assert not (tmp_path / "forecast.zarr").exists()


def test_report_and_picture_are_refused_before_the_forecast(refused: Callable[..., str]) -> None:
    message = refused("--report", "nowhere/r.json", "--plot", "nowhere/p.png")
    assert "--report nowhere/r.json" in message
    assert "--plot nowhere/p.png" in message


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("forecast.zarr", "is the product"),
        ("forecast.zarr.json", "is the record of the product"),
        ("forecast.zarr.progress", "is the progress of the product"),
        ("forecast.zarr.partial", "is a part of the product"),
        ("in.grib2", "is the input"),
        ("folder", "is a folder"),
    ],
)
def test_report_and_picture_do_not_take_the_names_of_other_files(
    refused: Callable[..., str], tmp_path: Path, name: str, told: str
) -> None:
    source = inputs.write_grib(tmp_path / "in.grib2", whole_state())
    (tmp_path / "folder").mkdir()
    before = source.read_bytes()
    for option in ("--report", "--plot"):
        message = refused(option, tmp_path / name, "--input", source)
        assert f"{option} {tmp_path / name} {told}" in message
    assert source.read_bytes() == before


def test_report_and_picture_are_two_files(refused: Callable[..., str], tmp_path: Path) -> None:
    message = refused("--report", tmp_path / "r", "--plot", tmp_path / "r")
    assert f"--plot {tmp_path / 'r'} is the file of --report" in message


@pytest.mark.parametrize("name", ["x" * 300 + ".zarr", "{lead:0300d}.nc", "zero\0byte.nc"])
def test_names_that_the_system_does_not_take_are_refused(
    refused: Callable[..., str], tmp_path: Path, name: str
) -> None:
    assert "output '" in refused("--output", f"{tmp_path}/{name}")
    assert not list(tmp_path.iterdir())


def test_output_frequency_that_loses_the_end_is_refused(refused: Callable[..., str]) -> None:
    assert "does not divide" in refused("--lead-time", "18h", "--output-frequency", "12h")


def test_several_initial_times_and_leads_fill_templates(
    run: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    states = {
        time: whole_state(seed=seed) for seed, time in enumerate(("2026-06-24T00", "2026-06-24T06"))
    }
    path = tmp_path / "in.grib2"
    for time, state in states.items():
        inputs.write_grib(path, state, time=np.datetime64(time, "s"), append=True)
    template = tmp_path / "f-{init:%Y%m%d%H}-{lead:03d}.grib2"
    report = tmp_path / "report.json"
    arguments = ("--input", path, "--init", ",".join(states), "--report", report)
    assert run(*arguments, "--output", template, "--output", tmp_path / "all.nc")[0] == 0
    assert sorted(found.name for found in tmp_path.glob("f-*.grib2")) == [
        f"f-20260624{init}-{lead}.grib2" for init in ("00", "06") for lead in ("006", "012")
    ]
    both = xr.open_dataset(tmp_path / "all.nc", decode_timedelta=True)
    assert both.sizes["time"] == 2
    assert np.isfinite(both["2m_temperature"].values).all()
    assert not np.array_equal(both["2m_temperature"][0], both["2m_temperature"][1])
    read = json.loads(report.read_text())["ranks"][0]["input_bytes_read"]
    assert 0 < read <= 2 * path.stat().st_size


def test_a_checkpoint_whose_name_has_a_dot_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs.make_checkpoint(tmp_path / "wm-0.1m")
    monkeypatch.setenv("JIGSAW_CHECKPOINTS", str(tmp_path))
    assert main(["inspect", "wm-0.1m", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "wm-0.1m"


def test_unknown_variable_lists_what_there_is(refused: Callable[..., str]) -> None:
    message = refused("--variables", "z500,t333")
    assert "t333" in message
    assert "t850" in message
