"""Ranks that die, stop, hang, refuse or never come end the whole run, whoever launched it."""

import os
import platform
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.alone  # it stops ranks and waits for limits of time

# The command `selfcheck --mesh` with its measurement replaced by a fault of one rank.
PROGRAM = """
import os, pathlib, signal, sys, time
import torch.distributed as dist
from jigsaw_forecast.cli import main as cli, selfcheck
from jigsaw_forecast.errors import ForecastError
from jigsaw_forecast.parallel import launch, watch
from jigsaw_forecast.parallel.mesh import close_mesh, make_mesh

launch._MODULE = "program"  # ranks run this file again
watch.OUTLIVE_S = 2.0

def loop_for_ever():
    while True:
        pass

def act(degrees, device):
    mesh = make_mesh(degrees)
    (pathlib.Path(os.environ["FOLDER"]) / f"{os.getpid()}.pid").write_text("")
    watch.note("train step 12")
    try:
        with watch.waiting("all-reduce over domain"):
            dist.barrier()
        if mesh.rank == int(os.environ["AT_FAULT"]):
            fault = os.environ["FAULT"]
            if fault.startswith("SIG"):
                os.kill(os.getpid(), getattr(signal, fault))
            if fault == "loop":
                loop_for_ever()
            raise ForecastError("file a.grib is truncated")
        with watch.waiting("all-gather over tensor"):
            dist.barrier()
        return []
    finally:
        close_mesh()

selfcheck._measure = act
if __name__ == "__main__":
    sys.exit(cli.main())
"""
COMMAND = [sys.executable, "-m", "program", "selfcheck", "--mesh", "domain=2"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
HOST = re.escape(platform.node())
TIMEOUT_S = 2
LIMIT_S = TIMEOUT_S + 60.0  # slow machines included
STORY = r"\(last heard of \d+ s ago.*\)"
WAITED = rf"; rank 0 on host {HOST} waited in all-gather over tensor"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "out").mkdir()
    return tmp_path


def environment(folder: Path, fault: str, at_fault: int) -> dict[str, str]:
    return {
        **os.environ,
        "FAULT": fault,
        "AT_FAULT": str(at_fault),
        "FOLDER": str(folder / "out"),
        "PYTHONPATH": str(folder),
        "TMPDIR": str(folder / "out"),
        "OMP_NUM_THREADS": "1",
        "JIGSAW_TIMEOUT_S": str(TIMEOUT_S),
    }


def launch(
    folder: Path, fault: str, command: list[str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a launcher with a fault in rank 1; fails where a rank outlives it."""
    done = subprocess.run(
        command or COMMAND,
        capture_output=True,
        text=True,
        env=environment(folder, fault, 1),
        timeout=LIMIT_S,
    )
    pids = [int(path.stem) for path in (folder / "out").glob("*.pid")]
    assert len(pids) == 2, done.stderr
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    return done


@contextmanager
def by_hand(
    folder: Path, fault: str, at_fault: int, ranks: tuple[int, ...] = (0, 1)
) -> Iterator[dict[int, subprocess.Popen[str]]]:
    """Two ranks without a launcher, each as if on a machine of its own."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    processes = {}
    for rank in ranks:
        (folder / f"tmp{rank}").mkdir()
        place = {
            "RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2",
            "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
            "TMPDIR": str(folder / f"tmp{rank}"),
        }  # fmt: skip
        processes[rank] = subprocess.Popen(
            COMMAND,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(folder, fault, at_fault) | place,
        )
    try:
        yield processes
    finally:
        for process in processes.values():
            process.kill()
            process.communicate()


def errors_of(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith("error: ")]


def assert_told(stderr: str, pattern: str) -> None:
    (line,) = errors_of(stderr)
    assert re.fullmatch(f"error: {pattern}", line), line


def test_a_stopped_rank_ends_the_run_and_is_killed(folder: Path) -> None:
    began_s = time.monotonic()
    done = launch(folder, "SIGSTOP")
    assert done.returncode == 3
    told = rf"rank 1 on host {HOST} is stopped by a signal {STORY}{WAITED}"
    assert_told(done.stderr, rf"waited 2 s \(JIGSAW_TIMEOUT_S\) in vain: {told}")
    assert time.monotonic() - began_s < LIMIT_S


def test_a_rank_in_an_endless_loop_ends_the_run_and_shows_where_it_is(folder: Path) -> None:
    done = launch(folder, "loop")
    assert done.returncode == 3
    told = rf"rank 1 on host {HOST} does not go on \(last heard of in train step 12\){WAITED}"
    assert_told(done.stderr, rf"waited 2 s \(JIGSAW_TIMEOUT_S\) in vain: {told}")
    waits, _, loops = done.stderr.partition("stacks of rank 1")
    assert "stacks of rank 0" in waits
    assert "in loop_for_ever" in loops


def test_a_rank_that_is_killed_under_torchrun_is_named(folder: Path) -> None:
    done = launch(folder, "SIGKILL", [*TORCHRUN, "--no-python", *COMMAND])
    assert done.returncode != 0
    # torchrun may stop the other rank before the broken connection does
    assert_told(done.stderr, rf"rank 1 on host {HOST} has ended; .*")


def test_a_killed_rank_0_is_named_without_a_launcher(folder: Path) -> None:
    with by_hand(folder, "SIGKILL", 0) as processes:
        _, stderr = processes[1].communicate(timeout=LIMIT_S)
        assert processes[1].returncode == 3
    waited = rf"; rank 1 on host {HOST} waited in all-gather over tensor"
    assert_told(stderr, rf"rank 0 on host {HOST} has ended or cannot be reached{waited}")


def test_a_stopped_rank_0_is_named_and_killed_without_a_launcher(folder: Path) -> None:
    # it keeps the store, which then does not answer
    with by_hand(folder, "SIGSTOP", 0) as processes:
        _, stderr = processes[1].communicate(timeout=LIMIT_S)
        assert processes[1].returncode == 3
        assert processes[0].wait(LIMIT_S) == -signal.SIGKILL
    assert f"rank 0 on host {platform.node()}" in errors_of(stderr)[0]


def test_a_rank_in_an_endless_loop_ends_without_a_launcher(folder: Path) -> None:
    with by_hand(folder, "loop", 1) as processes:
        stderr = {rank: processes[rank].communicate(timeout=LIMIT_S)[1] for rank in (0, 1)}
        assert [process.returncode for process in processes.values()] == [3, 3]
    assert errors_of(stderr[0]) == errors_of(stderr[1])
    assert "in loop_for_ever" in stderr[1]


def test_what_one_rank_refuses_is_told_on_every_machine(folder: Path) -> None:
    with by_hand(folder, "refuse", 1) as processes:
        stderr = {rank: processes[rank].communicate(timeout=LIMIT_S)[1] for rank in (0, 1)}
        assert [process.returncode for process in processes.values()] == [3, 2]
    assert_told(stderr[1], "file a.grib is truncated")
    assert_told(stderr[0], rf"rank 1 on host {HOST} has ended: file a.grib is truncated")


def test_a_rank_that_does_not_come_is_named(folder: Path) -> None:
    with by_hand(folder, "", 0, ranks=(0,)) as processes:
        _, stderr = processes[0].communicate(timeout=LIMIT_S)
        assert processes[0].returncode == 3
    missing = r"rank 1 of 2 did not come to localhost:\d+ within 2 s"
    assert_told(stderr, rf"{missing}; rank 0 on host {HOST} waited")


def test_a_rank_0_that_does_not_come_is_named(folder: Path) -> None:
    with by_hand(folder, "", 0, ranks=(1,)) as processes:
        _, stderr = processes[1].communicate(timeout=LIMIT_S)
        assert processes[1].returncode == 3
    assert_told(stderr, rf"rank 0 of 2 could not be reached by rank 1 on host {HOST} at .*")
