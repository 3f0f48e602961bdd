"""Several forecasts in one run: initial times, ensemble members, and the data axis over both."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import eccodes
import numpy as np
import pytest
import xarray as xr

from jigsaw_forecast.cli.main import main
from tests.integration import inputs

FIELDS = inputs.CONFIG.prognostic_fields
INITS = ("2026-06-24T00", "2026-06-24T06", "2026-06-24T12")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return inputs.make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture(scope="module")
def three_times(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("input") / "in.grib2"
    for seed, time in enumerate(INITS):
        values = inputs.maps(FIELDS, 12, 24, seed)
        inputs.write_grib(path, values, time=np.datetime64(time, "s"), append=True)
    return path


@pytest.fixture(scope="module")
def three_members(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_members(tmp_path_factory.mktemp("members") / "members.grib2", range(3))


def write_members(path: Path, members: range) -> Path:
    """One GRIB2 file of an ensemble of initial states, member by member."""
    for member in members:
        part = path.with_suffix(".part")
        inputs.write_grib(part, inputs.maps(FIELDS, 12, 24, member))
        with part.open("rb") as source, path.open("ab") as target:
            while (message := eccodes.codes_grib_new_from_file(source)) is not None:
                eccodes.codes_set(message, "productDefinitionTemplateNumber", 1)
                eccodes.codes_set(message, "perturbationNumber", member)
                eccodes.codes_write(message, target)
                eccodes.codes_release(message)
        part.unlink()
    return path


@pytest.fixture
def run(checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def call(*arguments: str | Path) -> tuple[int, str]:
        common = ["run", "--lead-time", "12h", "--quiet", "--checkpoint", str(checkpoint)]
        code = main([*common, *map(str, arguments)])
        return code, capfd.readouterr().err

    return call


def content(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def test_the_data_axis_makes_the_same_forecasts_two_at_a_time(
    run: Callable[..., tuple[int, str]], checkpoint: Path, three_times: Path, tmp_path: Path
) -> None:
    arguments = ["--input", str(three_times), "--init", ",".join(INITS), "--lead-time", "12h"]
    names = ("all.zarr", "{init:%H}.grib2", "all.nc")
    outputs = {
        folder: [f"--output={tmp_path / folder / name}" for name in names] for folder in "12"
    }
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    assert run(*arguments, *outputs["1"]) == (0, "")
    command = [sys.executable, "-m", "jigsaw_forecast.cli.main", "run", "--mesh", "data=2"]
    command += ["--checkpoint", str(checkpoint), *arguments, *outputs["2"]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("all.zarr", "00.grib2", "06.grib2", "12.grib2"):
        assert content(tmp_path / "1" / name) == content(tmp_path / "2" / name), name
    one, two = (
        xr.open_dataset(tmp_path / folder / "all.nc", decode_timedelta=True) for folder in "12"
    )
    xr.testing.assert_identical(one, two)
    assert one.sizes["time"] == 3


def test_more_groups_than_forecasts_are_refused(
    run: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    code, message = run("--init", INITS[0], "--output", tmp_path / "f.zarr", "--mesh", "data=2")
    assert code == 2
    assert "data=2: the run makes 1 forecast" in message
    assert "use data=1 or less" in message


def test_members_of_one_file_get_a_dim_and_member_keys(
    run: Callable[..., tuple[int, str]], three_members: Path, tmp_path: Path
) -> None:
    names = ("f.zarr", "f.nc", "f.grib2", "{member:02d}.grib2")
    outputs = [f"--output={tmp_path / name}" for name in names]
    where = ("--init", INITS[0], "--input", three_members, "--members", "3")
    assert run(*where, *outputs, "--write-initial-state") == (0, "")
    store = xr.open_zarr(tmp_path / "f.zarr")
    assert store["2m_temperature"].dims[:3] == ("time", "number", "prediction_timedelta")
    assert store.number.values.tolist() == [0, 1, 2]
    for member in range(3):
        expected = inputs.maps(FIELDS, 12, 24, member)
        for field, values in expected.items():
            found = store[field.variable].isel(time=0, number=member, prediction_timedelta=0)
            found = found.sel(level=field.level_hpa) if field.level_hpa else found
            packing = np.ptp(values) / 2**23 + 1e-6 * abs(values).max()
            np.testing.assert_allclose(found.values, values, rtol=0, atol=packing)
    file = xr.open_dataset(tmp_path / "f.nc", decode_timedelta=True)
    for name in store:
        np.testing.assert_array_equal(store[name].values, file[name].values)
    keys = ("number", "numberOfForecastsInEnsemble", "typeOfProcessedData", "step")
    found_keys = read_keys(tmp_path / "f.grib2", *keys)
    assert len(found_keys) == 3 * (9 + 10 + 10)
    assert {member for member, *_ in found_keys} == {0, 1, 2}
    assert {(member, kind) for member, _, kind, _ in found_keys} == {(0, 3), (1, 4), (2, 4)}
    assert {count for _, count, *_ in found_keys} == {3}
    assert {member for member, *_ in read_keys(tmp_path / "01.grib2", *keys)} == {1}


def test_grib_members_of_an_ensemble_of_another_size_are_not_gone_on_with(
    run: Callable[..., tuple[int, str]], three_members: Path, tmp_path: Path
) -> None:
    where = ("--init", INITS[0], "--input", three_members, "--lead-time", "6h")
    outputs = [f"--output={tmp_path / '{member}'}{kind}" for kind in (".grib2", ".zarr")]
    assert run(*where, *outputs, "--members", "1") == (0, "")
    code, message = run(*where, *outputs, "--members", "2", "--resume")
    assert code == 2
    assert "ensemble size" in message
    assert "0.zarr" not in message


def test_a_member_is_the_forecast_from_its_own_file(
    run: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    for member in range(2):
        values = inputs.maps(FIELDS, 12, 24, member)
        inputs.write_grib(tmp_path / f"in-{member}.grib2", values)
    template = tmp_path / "in-{member}.grib2"
    assert run("--init", INITS[0], "--input", template, "--members", "2",
               "--output", tmp_path / "f.zarr") == (0, "")  # fmt: skip
    assert run("--init", INITS[0], "--input", tmp_path / "in-1.grib2",
               "--output", tmp_path / "one.zarr") == (0, "")  # fmt: skip
    both, one = (xr.open_zarr(tmp_path / name) for name in ("f.zarr", "one.zarr"))
    for name in one:
        np.testing.assert_array_equal(both[name].sel(number=1).values, one[name].values)


def test_members_that_the_file_lacks_are_named(
    run: Callable[..., tuple[int, str]], three_members: Path, tmp_path: Path
) -> None:
    where = ("--init", INITS[0], "--input", three_members, "--output", tmp_path / "f.zarr")
    code, message = run(*where, "--members", "5")
    assert code == 2
    assert "missing" in message
    assert "3" in message
    assert "4" in message
    assert list(tmp_path.iterdir()) == []


def test_members_of_a_file_without_any_are_refused(
    run: Callable[..., tuple[int, str]], three_times: Path, tmp_path: Path
) -> None:
    where = ("--init", INITS[0], "--input", three_times, "--output", tmp_path / "f.zarr")
    code, message = run(*where, "--members", "2")
    assert code == 2
    assert "missing member 1: no field has an ensemble member" in message
    assert list(tmp_path.iterdir()) == []
    assert run(*where, "--members", "1") == (0, "")  # the control alone


def read_keys(path: Path, *keys: str) -> list[tuple[int, ...]]:
    found = []
    with path.open("rb") as file:
        while (handle := eccodes.codes_grib_new_from_file(file)) is not None:
            found.append(tuple(eccodes.codes_get(handle, key, int) for key in keys))
            eccodes.codes_release(handle)
    return found
