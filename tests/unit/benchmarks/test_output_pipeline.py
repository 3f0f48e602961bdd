"""The benchmarks of output at toy size: they run, all ways write the same, goals are right."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import eccodes
import numpy as np
import pytest
import torch
import xarray as xr
import zarr

from jigsaw_forecast.fields import WEATHERBENCH_FIELDS
from jigsaw_forecast.grid import Grid
from jigsaw_forecast.state import State
from tests.conftest import ROOT

GRID = "32x17"
TIMEOUT_S = 200


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import output_pipeline

    return output_pipeline


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import plain_writers

    return plain_writers


def figures(folder: Path, script: str, *arguments: str) -> Any:
    command = [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), f"--grid={GRID}"]
    command += [*arguments, f"--folder={folder}", "--json", str(folder / "figures.json")]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in folder.iterdir()] == ["figures.json"]
    return json.loads((folder / "figures.json").read_text())


def test_output_is_measured_beside_a_bare_loop(tmp_path: Path) -> None:
    few = ("--leads=2", "--few-leads=0", "--kinds=zarr", "--others")
    found = figures(tmp_path, "output_pipeline", *few)
    assert [row["way"] for row in found["rows"]] == ["compute", "bare zarr", "run zarr"]
    compute, bare, run = found["rows"]
    assert min(run["bytes"], bare["bytes"]) > compute["bytes"] > 0
    larger = max(compute["seconds"], bare["seconds"])
    assert found["goals"]["zarr of the larger"] == run["seconds"] / larger
    assert {"exchange", "wait", "drain", "join", "encode", "restart"} <= set(run["waits"])


def test_two_ranks_encode_beside_eccodes(tmp_path: Path) -> None:
    found = figures(tmp_path, "grib_encode", "--leads=2", "--fields=5", "--ranks", "2")
    assert [row["ranks"] for row in found] == [0, -2, 2]
    bare, loops, two = (row["seconds"][0] for row in found)
    assert found[1]["efficiency"] == bare / loops / 2
    assert found[2]["efficiency"] == bare / two / 2


def test_goals_are_ratios_to_the_larger_and_to_the_better(pipeline: ModuleType) -> None:
    seconds = {"compute": 10.0, "bare zarr": 8.0, "earth2studio": 24.0, "xarray": 30.0}
    rows = [
        {"way": way, "leads": 4, "seconds": s, "writing": s / 2, "peak": 5.0}
        for way, s in seconds.items()
    ]
    rows.append({"way": "run zarr", "leads": 4, "seconds": 12.0, "writing": 3.0, "peak": 6.0})
    rows.append({"way": "run zarr", "leads": 1, "seconds": 3.0, "writing": 1.0, "peak": 4.0})
    options = argparse.Namespace(
        leads=4, few_leads=1, kinds=["zarr"], others=["earth2studio", "xarray"]
    )
    goals = pipeline.judge(rows, options)
    assert goals["zarr of the larger"] == pytest.approx(12.0 / 10.0)
    assert goals["zarr memory"] == pytest.approx(6.0 / 4.0)
    assert goals["best other"] == "earth2studio"
    assert goals["speed-up"] == pytest.approx(24.0 / 12.0)
    assert goals["writing speed-up"] == pytest.approx(24.0 / 2 / 3.0)


def test_every_way_writes_the_same_values(plain: ModuleType, tmp_path: Path) -> None:
    grid, fields = Grid.parse(GRID), WEATHERBENCH_FIELDS
    random = torch.Generator().manual_seed(0)
    data = 250 + torch.rand(len(fields), grid.num_lat, grid.num_lon, generator=random)
    states = [State(data, fields, grid, plain.INIT_TIME, lead) for lead in plain.lead_times(2)]
    expected = data.numpy()
    plain.write_bare_zarr(tmp_path, expected, 2, GRID)
    bare = zarr.open_array(tmp_path / "bare.zarr", mode="r")
    np.testing.assert_array_equal(bare[1], expected)

    plain.write_with_xarray(tmp_path, iter(states), 2, GRID)
    with xr.open_zarr(tmp_path / "x.zarr", consolidated=False, decode_timedelta=True) as store:
        assert store.sizes["prediction_timedelta"] == 2
        for field, values in zip(fields, expected, strict=True):
            found = store[field.variable].isel(time=0, prediction_timedelta=1)
            found = found.sel(level=field.level_hpa) if field.level_hpa else found
            np.testing.assert_array_equal(found.values, values)

    plain.write_with_earth2studio(tmp_path, iter(states), 2, GRID)
    group = zarr.open_group(tmp_path / "e.zarr", mode="r")
    for field, values in zip(fields, expected, strict=True):
        array = group[field.short_name]
        assert isinstance(array, zarr.Array)
        np.testing.assert_array_equal(array[0, 1], values)

    plain.write_bare_grib(tmp_path, expected, 1, GRID)
    with (tmp_path / "bare.grib2").open("rb") as file:
        assert eccodes.codes_count_in_file(file) == len(fields)
