"""A worker ends with its parent, also where it comes to life after the parent's end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
LIMIT_S = 60
PROGRAM = """
import multiprocessing, os, sys, time
from pathlib import Path
from jigsaw_forecast.parallel.workers import end_with_parent

def work(folder, is_late):
    (folder / "pid.partial").write_text(str(os.getpid()))
    (folder / "pid.partial").rename(folder / "pid")
    while is_late and not (folder / "go").exists():
        time.sleep(0.01)
    end_with_parent()
    time.sleep(600)

if __name__ == "__main__":
    multiprocessing.get_context("fork").Process(
        target=work, args=(Path(sys.argv[1]), sys.argv[2] == "late")
    ).start()
    time.sleep(600)
"""


def _lives(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody has asked after does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize("when", ["early", "late"])
def test_a_worker_ends_with_a_killed_parent(tmp_path: Path, when: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path), when],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    deadline = time.monotonic() + LIMIT_S
    while not (tmp_path / "pid").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    worker = int((tmp_path / "pid").read_text())
    try:
        assert _lives(worker)
        parent.send_signal(signal.SIGKILL)
        parent.wait(LIMIT_S)
        (tmp_path / "go").touch()
        while _lives(worker):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        if _lives(worker):
            os.kill(worker, signal.SIGKILL)
