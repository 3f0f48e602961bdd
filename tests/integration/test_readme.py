"""Every command of the README runs as it stands there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from jigsaw_forecast.data.mock import mock_fields, write_mock_store
from jigsaw_forecast.fields import NATURE_RUN_FIELDS, Field
from jigsaw_forecast.grid import Grid
from tests.integration import inputs

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
TIMEOUT_S = 300
# what stands for hours of work: one step of training on a few days of made-up weather
SMALL_TRAINING = (
    "--max-steps 1 --set data.train=2026-01-01/2026-01-12 "
    "--set data.validation=2026-01-13/2026-01-20 --set train.num_validation_inits=1"
)
SMALL_SKILL = "--test 2026-01-01/2026-01-20 --training 2026-01-01/2026-01-20"


def readme_commands() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.S | re.M)
    text = "".join(blocks).replace("\\\n", " ")
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


COMMANDS = readme_commands()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a reader of the README has at hand, and a jcm that runs at once."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("checkpoints", "recipes", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    time = np.datetime64("2011-10-11T00", "s")
    maps = mock_fields(NATURE_RUN_FIELDS, Grid.parse("144x73"), np.array([time]))[0]
    state = dict(zip(NATURE_RUN_FIELDS, maps, strict=True))
    inputs.write_grib(folder / "gfs.grb", state, time=time)
    return folder


def test_the_readme_shows_each_command_of_the_tool() -> None:
    shown = {command.split()[1] for command in COMMANDS if command.startswith("jigsaw-forecast")}
    assert {"run", "train", "inspect", "plot", "selfcheck", "checkpoint", "data"} <= shown
    assert {"plan", "bench", "check", "score"} <= shown
    assert {"make forecast", "make test"} <= set(COMMANDS)


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 200
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    named = re.findall(r"`((?:docs|recipes|benchmarks|checkpoints)/[\w./-]+)`", text)
    assert len(links) >= 2
    assert [path for path in (*links, *named) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_command_runs(command: str, workplace: Path) -> None:
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    folder = workplace
    if command.startswith("make "):
        # what make does is tested by doing it: this only holds that the target exists
        command, folder = f"make --dry-run {command.removeprefix('make ')}", ROOT
    elif " data nature-run " in f" {command} ":
        write_fake_jcm(workplace)
        environment["JIGSAW_NATURE_PYTHON"] = str(workplace / "python-with-jcm")
    elif command.startswith("jigsaw-forecast train"):
        command = f"{command} {SMALL_TRAINING}"
    elif "nature_run_skill" in command:
        command = f"{command} {SMALL_SKILL}"
    done = subprocess.run(
        shlex.split(command),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def write_fake_jcm(folder: Path) -> None:
    """An interpreter that writes made-up weather where the simulator would write its own."""
    program = folder / "python-with-jcm"
    program.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.integration.test_readme import write_weather\n"
        "write_weather(sys.argv[2])\n"
    )
    program.chmod(0o755)


def write_weather(path: str) -> None:
    """Twenty days of mock weather with the static fields."""
    grid = Grid.parse("64x32")
    fields = (*NATURE_RUN_FIELDS, Field("total_precipitation_6hr"))
    times = np.arange("2026-01-01T00", "2026-01-21T00", 6, dtype="datetime64[h]")
    write_mock_store(Path(path), fields, grid, times)
    assert {"land_sea_mask", "geopotential_at_surface"} <= set(xr.open_zarr(path))
