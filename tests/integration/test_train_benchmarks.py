"""The benchmarks of training at toy size: they run, and what they find holds at any size."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

TIMEOUT_S = 300


def _figures(folder: Path, script: str, *arguments: str) -> Any:
    path = folder / "figures.json"
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "benchmarks" / f"{script}.py"),
            *arguments,
            "--json",
            str(path),
        ],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(path.read_text())


def test_killed_runs_go_on_as_if_they_had_not_been(tmp_path: Path) -> None:
    found = _figures(tmp_path, "train_resume", "--places=9")
    assert found["kills"] == 10
    assert found["not_equal"] == []
    assert found["latest_after_the_kill"]["step-00000005"] > 0


def test_a_save_goes_on_beside_the_training(tmp_path: Path) -> None:
    size = ("--gigabytes=0.01", "--channels=128")
    found = _figures(tmp_path, "async_save", *size, "--saves=1", "--plain-steps=1")
    assert found["state_bytes"] > 0.01e9
    assert found["rounds"][0]["copy_seconds"] < found["rounds"][0]["save_seconds"]
