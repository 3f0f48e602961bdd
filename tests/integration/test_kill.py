"""Ranks and runs that are killed, hang or lose their numbers: what is told and what remains."""

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from tests.integration import inputs

pytestmark = pytest.mark.alone  # it stops ranks and waits for limits of time

ROOT = Path(__file__).resolve().parents[2]
HOST = re.escape(platform.node())
LIMIT_S = 240.0  # slow machines included
FAULT_STEP = 7
# `run` in which rank 1 has a fault after a rollout step
PROGRAM = """
import os, signal, sys
import torch
from jigsaw_forecast.cli import main as cli
from jigsaw_forecast.forecast import rollout
from jigsaw_forecast.parallel import launch, watch

launch._MODULE = "program"  # ranks run this file again
watch.OUTLIVE_S = 2.0
advance, seen = rollout.advance, iter(range(1, 1000))

def loop_for_ever():
    while True:
        pass

def with_fault(*arguments):
    normalised, physical = advance(*arguments)
    if next(seen) == int(os.environ["FAULT_STEP"]) and os.environ["RANK"] == "1":
        open(os.path.join(os.environ["FOLDER"], f"{os.getpid()}.pid"), "w").close()
        fault = os.environ["FAULT"]
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "kill launcher":
            os.kill(os.getppid(), signal.SIGKILL)
            loop_for_ever()
        if fault == "hang":
            loop_for_ever()
        physical[0, 0, 0] = torch.nan
    return normalised, physical

rollout.advance = with_fault
if __name__ == "__main__":
    sys.exit(cli.main())
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return inputs.make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture
def fail(checkpoint: Path, tmp_path: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Runs ten steps on two ranks, of which the second has a fault in the seventh."""
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "pids").mkdir()

    def call(fault: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "program", "run", "--init", "2026-06-24T00", "--quiet"]
        command += ["--lead-time", "60h", "--checkpoint", str(checkpoint), "--mesh", "domain=2"]
        command += ["--output", str(tmp_path / "f.zarr"), "--output", str(tmp_path / "f.grib2")]
        environment = {
            **os.environ,
            "FAULT": fault,
            "FAULT_STEP": str(FAULT_STEP),
            "FOLDER": str(tmp_path / "pids"),
            "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]),
            "TMPDIR": str(tmp_path / "pids"),
            "OMP_NUM_THREADS": "1",
            "JIGSAW_TIMEOUT_S": "4",
        }
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=LIMIT_S, check=False
        )

    return call


def assert_left(folder: Path, most_hours: int) -> None:
    """Nothing has its final name; what is marked is there, whole, and before the fault."""
    assert not (folder / "f.zarr").exists()
    assert not (folder / "f.grib2").exists()
    text = (folder / "f.zarr.progress").read_text()
    done = [line["done"][1] for line in map(json.loads, text.splitlines()) if "done" in line]
    assert done == list(range(6, done[-1] + 1, 6))
    assert done[-1] <= most_hours
    store = xr.open_zarr(folder / "f.zarr.partial")
    for field in inputs.CONFIG.prognostic_fields:
        found = store[field.variable].sel(
            prediction_timedelta=[np.timedelta64(h, "h") for h in done]
        )
        found = found.sel(level=field.level_hpa) if field.level_hpa else found
        assert np.isfinite(found.values).all()


def is_running(folder: Path) -> bool:
    """Whether the rank at fault still runs; one that waits to be buried does not."""
    (noted,) = (folder / "pids").glob("*.pid")
    try:
        state = Path(f"/proc/{noted.stem}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def test_nan_in_one_ranks_state_stops_all_and_names_field_and_lead_time(
    fail: Callable[[str], subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = fail("nan")
    assert done.returncode == 3
    assert done.stderr.count("error: ") == 1
    told = "the forecast from 2026-06-24T00:00:00 is not finite at lead time 42 h: z500;"
    assert told in done.stderr
    assert "f.zarr.partial holds 6 of 10 lead times; " in done.stderr
    assert_left(tmp_path, 36)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("kill", rf"rank 1 on host {HOST} (was ended by SIGKILL|has ended)"),
        ("hang", rf"rank 1 on host {HOST} does not go on \(last heard of in the step to lead time"),
    ],
)
def test_a_rank_that_is_lost_ends_the_run_and_is_named(
    fail: Callable[[str], subprocess.CompletedProcess[str]], tmp_path: Path, fault: str, told: str
) -> None:
    done = fail(fault)
    assert done.returncode == 3, done.stderr
    assert re.search(told, done.stderr), done.stderr
    assert_left(tmp_path, 36)
    assert not is_running(tmp_path)


def test_no_rank_outlives_a_killed_launcher(
    fail: Callable[[str], subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    assert fail("kill launcher").returncode == -9  # its output ends when the last rank does
    assert not is_running(tmp_path)
    assert_left(tmp_path, 36)


def test_runs_killed_at_random_moments_end_as_if_undisturbed(checkpoint: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks/kill_sweep.py"), str(checkpoint)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--kills", "5", "--lead-time", "3d"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 kills" in done.stdout
    assert "all files are those of the undisturbed run" in done.stdout
