"""`data convert` and `data statistics`, killed and not, and training on what they make."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from jigsaw_forecast.cli.main import main
from jigsaw_forecast.data.mock import mock_fields, write_mock_store
from jigsaw_forecast.data.training_store import TrainingStore
from jigsaw_forecast.fields import Field
from jigsaw_forecast.grid import Grid
from tests.unit.data.grib_files import message
from tests.unit.train.made_up import FIELDS, RECIPE, write_recipe

GRID = Grid.parse("16x8")
TIMES = np.arange(
    np.datetime64("2020-01-01T00", "h"), np.datetime64("2020-02-01", "h"), np.timedelta64(6, "h")
)
TIMEOUT_S = 120


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "mock.zarr"
    write_mock_store(path, FIELDS, GRID, TIMES)
    return path


@pytest.fixture(scope="module")
def converted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("converted") / "set.zarr"
    assert main(["data", "convert", str(source), str(path), "--processes", "1"]) == 0
    return path


def _refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one message of a command that is refused."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    message = capsys.readouterr().err
    assert message.count("error: ") == 1
    return message.partition("error: ")[2]


def test_help_says_what_it_takes_and_gives_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("convert", "statistics"):
        assert main(["data", command, "--help"]) == 0
        assert f"jigsaw-forecast data {command}" in capsys.readouterr().out


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_conversion_goes_on_where_it_was(
    converted: Path, source: Path, tmp_path: Path, signal_number: signal.Signals
) -> None:
    """Two workers, killed as soon as some shards are done; orphans write nothing more."""
    output = tmp_path / "set.zarr"
    partial = tmp_path / "set.zarr.partial"
    command = [sys.executable, "-m", "jigsaw_forecast.cli.main", "data", "convert"]
    command += [str(source), str(output), "--processes", "2", "--quiet"]
    process = subprocess.Popen(
        [sys.executable, "-c", _SLOW, *command[3:]],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while len(list(partial.glob("progress/*.npz"))) < 3:
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)
        process.send_signal(signal_number)
        errors = process.communicate(timeout=TIMEOUT_S)[1]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    expected = 3 if signal_number is signal.SIGTERM else -signal.SIGKILL
    assert process.returncode == expected, errors
    assert not output.exists()
    assert main(["data", "convert", str(source), str(output), "--processes", "1"]) == 0
    one, other = TrainingStore(converted, FIELDS), TrainingStore(output, FIELDS)
    assert one.digest == other.digest
    everything = np.arange(len(TIMES)), FIELDS, slice(0, 8)
    np.testing.assert_array_equal(one.read(*everything), other.read(*everything))


# the command, each shard a little slower, so that there is a moment to kill it in
_SLOW = """
import sys, time
from jigsaw_forecast.data.shards import ShardBuffer
write = ShardBuffer.write
def slow(buffer, path):
    time.sleep(0.05)
    return write(buffer, path)
ShardBuffer.write = slow
if __name__ == "__main__":
    from jigsaw_forecast.cli.main import main
    sys.exit(main(sys.argv[1:]))
"""


def test_statistics_agree_and_report(converted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["data", "statistics", str(converted), "--processes", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["problems"] == []
    assert report["digest"] == TrainingStore(converted).digest
    values = mock_fields(FIELDS, GRID, TIMES)[:, FIELDS.index(Field("temperature", 500))]
    weights = (GRID.area_weights() / (8 * 16))[:, None]
    mean = (values.astype(np.float64) * weights).sum((1, 2)).mean()
    assert report["fields"]["t500"]["mean"] == pytest.approx(mean, rel=1e-6)
    assert report["fields"]["t500"]["max"] == pytest.approx(float(values.max()), rel=1e-7)


def test_training_on_the_set_is_training_on_the_store(
    converted: Path, source: Path, tmp_path: Path
) -> None:
    losses = []
    for name, store in (("store", source), ("set", converted), ("streamed", converted)):
        folder = tmp_path / name
        folder.mkdir()
        recipe = write_recipe(folder, store)
        arguments = ["train", str(recipe), "--output", str(folder / "output"), "--max-steps", "4"]
        arguments += ["--set", f"data.in_memory={'false' if name == 'streamed' else 'true'}"]
        assert main([*arguments, "--device", "cpu"]) == 0
        lines = (folder / "output" / "metrics.jsonl").read_text().splitlines()
        losses.append([found["loss"] for found in map(json.loads, lines) if "loss" in found])
    assert losses[0] == losses[1] == losses[2]
    assert len(losses[0]) == 2


def test_training_on_half_a_conversion_says_what_is_missing(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    partial = tmp_path / "set.zarr.partial"
    (partial / "progress").mkdir(parents=True)
    plan = {"times": [str(time) for time in TIMES[:6]], "times_per_shard": 2}
    (partial / "plan.json").write_text(json.dumps(plan))
    (partial / "progress" / "1.npz").touch()
    recipe = write_recipe(tmp_path, tmp_path / "set.zarr")
    found = _refused(capsys, "train", recipe, "--output", tmp_path / "output")
    assert (
        f"{partial} is half converted: missing 2 of 3 shards of 2 times from 2020-01-01T00" in found
    )
    assert "run the same `data convert` again to go on" in found
    assert not (tmp_path / "output").exists()


def test_training_refuses_sets_that_are_not_the_recipes(
    converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(*settings: str) -> str:
        recipe = write_recipe(tmp_path, converted, RECIPE)
        options = [part for setting in settings for part in ("--set", setting)]
        output = tmp_path / f"output{len(list(tmp_path.iterdir()))}"
        return _refused(capsys, "train", recipe, "--output", output, *options)

    assert "missing fields: t850; it holds z500" in train('model.fields=["z500", "t500", "t850"]')
    assert "grid 16x8, but the recipe's model has 32x16" in train("model.grid=32x16")
    missing = train("data.statistics=none.safetensors")
    assert "missing none.safetensors" in missing


def test_training_refuses_statistics_of_another_data_set(
    converted: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    statistics = tmp_path / "statistics.safetensors"
    recipe = write_recipe(tmp_path, source)
    make = ["data", "statistics", str(source), "--recipe", str(recipe), "--output", str(statistics)]
    assert main([*make, "--processes", "1"]) == 0
    other = write_recipe(tmp_path, converted)
    setting = f"data.statistics={statistics}"
    found = _refused(capsys, "train", other, "--output", tmp_path / "output", "--set", setting)
    assert "statistics of another data set: digest" in found


def test_training_uses_whole_sequences_where_gaps_are_allowed(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = xr.open_zarr(source, chunks=None, consolidated=False).load()
    keep = np.delete(np.arange(len(TIMES)), [7, 30, 31])
    gaps = tmp_path / "gaps.zarr"
    data.isel(time=keep).drop_encoding().to_zarr(gaps, zarr_format=3, consolidated=False)
    recipe = write_recipe(tmp_path, gaps)
    output = tmp_path / "output"
    found = _refused(capsys, "train", recipe, "--output", tmp_path / "refused")
    assert "2020-01-02T12:00:00 to 2020-01-03T00:00:00 (1 missing)" in found
    assert "2020-01-08T06:00:00 to 2020-01-09T00:00:00 (2 missing)" in found
    allowed = ["--set", "data.allow_gaps=true", "--max-steps", "2", "--device", "cpu"]
    assert main(["train", str(recipe), "--output", str(output), *allowed]) == 0


def test_grib_files_are_converted(tmp_path: Path) -> None:
    """Heights in metres on 500 hPa and 2t, one file a day, the land-sea mask in one of its own."""
    times = TIMES[:8]
    fields = (Field("geopotential", 500), Field("2m_temperature"))
    values = mock_fields(fields, GRID, times).astype(np.float64)
    files = []
    for day in (0, 1):
        content = b""
        for at in range(4 * day, 4 * day + 4):
            date = {"dataDate": 20200101 + day, "dataTime": 600 * (at % 4)}
            height = values[at, 0] / 9.80665
            content += message(height, paramId=156, bitsPerValue=24, **date)
            content += message(
                values[at, 1],
                edition=1,
                bitsPerValue=24,
                indicatorOfTypeOfLevel=1,
                level=0,
                paramId=167,
                **date,
            )
        files.append(tmp_path / f"day{day}.grib")
        files[-1].write_bytes(content)
    mask = tmp_path / "mask.grib"
    keys = {"indicatorOfTypeOfLevel": 1, "level": 0, "paramId": 172, "dataDate": 19790101}
    mask.write_bytes(message(np.eye(8, 16), edition=1, **keys))
    output = tmp_path / "set.zarr"
    inputs = [str(path) for path in (*files, mask)]
    arguments = ["data", "convert", *inputs, str(output), "--processes", "1"]
    assert main([*arguments, "--fields", "z500,2t"]) == 0
    store = TrainingStore(output, fields)
    np.testing.assert_array_equal(store.times, times.astype("datetime64[s]"))
    found = store.read(np.arange(8), fields, slice(0, 8))
    np.testing.assert_allclose(found[:, 0], values[:, 0], rtol=1e-6)
    np.testing.assert_allclose(found[:, 1], values[:, 1], rtol=1e-6)
    np.testing.assert_allclose(store.static("land_sea_mask"), np.eye(8, 16), atol=1e-4)


def test_wrong_options_are_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "set.zarr"

    def convert(*options: str) -> str:
        return _refused(capsys, "data", "convert", source, output, *options)

    assert "--interval 'often' is not hours" in convert("--interval", "often")
    assert "--interval 5 h does not divide a day" in convert("--interval", "5h")
    assert "no such fields: foo, bar; write" in convert("--fields", "foo,z500,bar")
    assert "--period '2020' is not START/END" in convert("--period", "2020")
    assert "missing times: 0 at intervals" in convert("--period", "1990-01-01/1990-02-01")
    assert "missing z100" in convert("--fields", "z100,2t")
    assert "name of a training set ends in .zarr" in _refused(
        capsys, "data", "convert", source, tmp_path / "set"
    )
    assert not list(tmp_path.iterdir())


def test_real_era5_files_are_converted(real_data: Path, tmp_path: Path) -> None:
    files = [
        real_data / "nc-era5-2025" / f"era5_{name}_2025120100_2.5x2.5.nc"
        for name in ("msl", "uv850")
    ]
    if not all(file.exists() for file in files):
        pytest.skip(f"no {files[0].name}")
    fields = "msl,u850,v850"
    output = tmp_path / "set.zarr"
    arguments = ["data", "convert", *map(str, files), str(output), "--fields", fields]
    code = main([*arguments, "--processes", "1", "--interval", "1h", "--allow-gaps"])
    with xr.open_dataset(files[0]) as data:
        num_times = data.sizes.get("valid_time", data.sizes.get("time", 1))
        assert code == (0 if num_times > 1 else 2)  # one time is no training set
