"""Grids of 0.25 and 0.125 degrees through the command line, with a model of few parameters."""

import subprocess
import sys
from pathlib import Path

import eccodes
import numpy as np
import pytest
import xarray as xr

from jigsaw_forecast.cli.main import main
from jigsaw_forecast.model.config import PRESETS, ModelConfig
from tests.integration import inputs

NUM_POINTS = 1441 * 2880
BITS = 16


def small_config(grid: str, patch: tuple[int, int]) -> ModelConfig:
    return ModelConfig(
        grid=grid,
        fields=("z500", "2t"),
        diagnostics=("tp",),
        forcings=("land_sea_mask", "sin_year"),
        patch=patch,
        overlap=1,
        channels=8,
        token_hidden=8,
        channel_hidden=8,
        num_blocks=1,
    )


@pytest.fixture(scope="module")
def eighth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint on the grid and patches of the 0.125 degree preset."""
    preset = PRESETS["wm-3.2b-0.125"]
    assert (preset.grid, preset.patch) == ("2880x1441", (18, 16))
    config = small_config(preset.grid, preset.patch)
    return inputs.make_checkpoint(tmp_path_factory.mktemp("eighth") / "tiny", config)


def test_a_step_at_an_eighth_of_a_degree(eighth: Path, tmp_path: Path) -> None:
    values = inputs.maps(small_config("2880x1441", (18, 16)).prognostic_fields, 1441, 2880)
    source = inputs.write_grib(tmp_path / "in.grib2", values)
    arguments = ["run", "--quiet", "--checkpoint", str(eighth), "--init", "2026-06-24T00"]
    arguments += ["--input", str(source), "--lead-time", "6h", "--variables", "z500,2t"]
    arguments += [f"--output={tmp_path / name}" for name in ("f.zarr", "f.grib2")]
    assert main(arguments) == 0
    with xr.open_zarr(tmp_path / "f.zarr") as store:
        assert store["geopotential"].shape == (1, 1, 1, 1441, 2880)
        np.testing.assert_array_equal(store["latitude"], np.linspace(90, -90, 1441))
        np.testing.assert_array_equal(store["longitude"], np.arange(2880) / 8)
        stored = [store["geopotential"].values.ravel(), store["2m_temperature"].values.ravel()]
    with (tmp_path / "f.grib2").open("rb") as file:
        for expected in stored:
            message = eccodes.codes_grib_new_from_file(file)
            assert eccodes.codes_get(message, "numberOfDataPoints") == NUM_POINTS
            assert eccodes.codes_get(message, "jDirectionIncrementInDegrees") == 0.125
            found = eccodes.codes_get_values(message)
            eccodes.codes_release(message)
            assert np.isfinite(found).all()
            step = np.ptp(expected.astype(np.float64)) / (2**BITS - 1)
            assert np.abs(found - expected).max() <= 2 * step
        assert eccodes.codes_grib_new_from_file(file) is None


def test_a_missing_point_at_a_quarter_of_a_degree_stops_all_ranks_with_one_message(
    tmp_path: Path,
) -> None:
    config = small_config("1440x721", (9, 8))
    checkpoint = inputs.make_checkpoint(tmp_path / "tiny", config)
    values = inputs.maps(config.prognostic_fields, 721, 1440)
    values[config.prognostic_fields[1]][700, 5] = np.nan  # in the second rank's band
    source = inputs.write_grib(tmp_path / "in.grib2", values)
    command = [sys.executable, "-m", "jigsaw_forecast.cli.main", "run", "--quiet"]
    command += ["--checkpoint", str(checkpoint), "--init", "2026-06-24T00", "--mesh", "domain=2"]
    command += ["--input", str(source), "--output", str(tmp_path / "f.zarr"), "--lead-time", "6h"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert [line.startswith("error: ") for line in lines] == [True], done.stderr
    assert "2t (message 2): 1 of 1038240 points" in lines[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.grib2", "tiny"]
