"""A command on several ranks: how they start, fail, are stopped and end, seen from a shell."""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

# The command `selfcheck --mesh` with its measurement replaced by what a test asks of the ranks.
PROGRAM = """
import os, pathlib, signal, sys, time
from jigsaw_forecast.cli import main as cli, selfcheck
from jigsaw_forecast.errors import ForecastError, StoppedError
from jigsaw_forecast.parallel import launch

launch._MODULE = "program"  # ranks run this file again

def act(degrees, device):
    what, rank = os.environ["ACT"], int(os.environ["RANK"])
    folder = pathlib.Path(os.environ["FOLDER"])
    # those that need no mesh come first and save the seconds that torch takes to import
    if what == "all refuse":
        raise ForecastError("grid 3x3 is not the checkpoint's")
    if what == "wait" or (what == "one stops" and rank == 0):
        (folder / f"{os.getpid()}.part").write_text("")
        (folder / f"{os.getpid()}.part").rename(folder / f"{os.getpid()}.pid")
        time.sleep(600)
    if what == "one stops":
        raise StoppedError("saved step 7; add --resume to go on")
    if what == "count threads":
        (folder / f"{rank}.threads").write_text(os.environ["OMP_NUM_THREADS"])
        os._exit(0)
    from jigsaw_forecast.parallel.together import barrier
    from jigsaw_forecast.parallel.mesh import close_mesh, make_mesh
    mesh = make_mesh(degrees)
    if rank == 1 and what == "one refuses":
        raise ForecastError("file a.grib is truncated")
    if rank == 1 and what == "one has a bug":
        [][0]
    if rank == 1 and what == "one is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    barrier(mesh)
    close_mesh()
    return []

selfcheck._measure = act
if __name__ == "__main__":
    sys.exit(cli.main())
"""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
LAUNCHERS_LIMIT_S = 60.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "out").mkdir()
    return tmp_path


def environment(folder: Path, act: str) -> dict[str, str]:
    return {
        **os.environ,
        "ACT": act,
        "FOLDER": str(folder / "out"),
        "PYTHONPATH": str(folder),
        "TMPDIR": str(folder / "out"),
    }


def command(num_ranks: int = 2) -> list[str]:
    mesh = f"domain={num_ranks}"
    return [sys.executable, "-m", "program", "selfcheck", "--json", "--mesh", mesh]


def launch(folder: Path, act: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(),
        capture_output=True,
        text=True,
        env=environment(folder, act),
        timeout=LAUNCHERS_LIMIT_S,
    )


@pytest.fixture
def waiting_run(folder: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A launcher whose two ranks have begun and wait, and the ranks' process ids."""
    with subprocess.Popen(
        command(), stderr=subprocess.PIPE, text=True, env=environment(folder, "wait")
    ) as process:
        deadline_s = time.monotonic() + LAUNCHERS_LIMIT_S
        while len(found := list((folder / "out").glob("*.pid"))) < 2:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline_s, "the ranks did not begin"
            time.sleep(0.05)
        ranks = [int(path.stem) for path in found]
        yield process, ranks
        for pid in [process.pid, *ranks]:
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that ended and awaits its parent does not."""
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return done.stdout.strip() not in ("", "Z", "Zs", "Zl")


def assert_all_end(pids: list[int]) -> None:
    deadline_s = time.monotonic() + LAUNCHERS_LIMIT_S
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline_s, "ranks outlived their launcher"
        time.sleep(0.05)


def test_a_bare_command_runs_on_its_own_ranks_and_rank_0_reports(folder: Path) -> None:
    done = launch(folder, "nothing")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["problems"] == []
    assert done.stderr == ""


def test_nothing_is_left_in_the_temporary_folder(folder: Path) -> None:
    launch(folder, "all refuse")
    assert list((folder / "out").iterdir()) == []


def test_ranks_share_the_cores(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert launch(folder, "count threads").returncode == 0
    num_threads = [int(path.read_text()) for path in (folder / "out").glob("*.threads")]
    num_cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    assert num_threads == [max(1, num_cores // 2)] * 2


def test_what_all_ranks_refuse_is_told_once(folder: Path) -> None:
    done = launch(folder, "all refuse")
    assert done.returncode == 2
    assert done.stderr == "error: grid 3x3 is not the checkpoint's\n"


def test_what_one_rank_refuses_is_the_only_message(folder: Path) -> None:
    done = launch(folder, "one refuses")
    assert done.returncode == 2
    assert done.stderr == "error: file a.grib is truncated\n"


def test_a_rank_that_stops_decides_the_exit_code(folder: Path) -> None:
    done = launch(folder, "one stops")
    assert done.returncode == 3
    assert done.stderr == "error: saved step 7; add --resume to go on\n"


def test_a_bug_keeps_its_traceback_and_is_told_once(folder: Path) -> None:
    done = launch(folder, "one has a bug")
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.endswith("IndexError: list index out of range\n")


def test_a_rank_that_is_killed_is_named(folder: Path) -> None:
    done = launch(folder, "one is killed")
    assert done.returncode == 3
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert lines == [
        f"error: rank 1 on host {platform.node()} was ended by SIGKILL; "
        "the system kills so when memory runs out"
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_a_signal_to_the_launcher_stops_the_ranks(
    waiting_run: tuple[subprocess.Popen[str], list[int]], number: signal.Signals
) -> None:
    process, ranks = waiting_run
    process.send_signal(number)
    _, errors = process.communicate(timeout=LAUNCHERS_LIMIT_S)
    assert process.returncode == 3
    assert errors == f"error: stopped by {number.name}\n"
    assert_all_end(ranks)


def test_ranks_end_when_their_launcher_is_killed(
    waiting_run: tuple[subprocess.Popen[str], list[int]],
) -> None:
    process, ranks = waiting_run
    process.kill()
    assert_all_end(ranks)


def test_torchrun_is_joined(folder: Path) -> None:
    done = subprocess.run(
        [*TORCHRUN, "-m", "program", "selfcheck", "--json", "--mesh", "tensor=2"],
        capture_output=True,
        text=True,
        env=environment(folder, "nothing"),
        timeout=LAUNCHERS_LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["problems"] == []


def test_a_mesh_that_torchrun_did_not_start_is_told_once(folder: Path) -> None:
    done = subprocess.run(
        [*TORCHRUN, "-m", "program", "selfcheck", "--mesh", "domain=3"],
        capture_output=True,
        text=True,
        env=environment(folder, "nothing"),
        timeout=LAUNCHERS_LIMIT_S,
    )
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "the mesh has 3 ranks, torchrun started 2" in lines[0]


def test_selfcheck_measures_every_rank_of_a_mesh() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jigsaw_forecast.cli.main", *command()[3:]],
        capture_output=True,
        text=True,
        timeout=LAUNCHERS_LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    ranks = json.loads(done.stdout)["ranks"]
    assert [rank["rank"] for rank in ranks] == [0, 1]
    assert all(rank["sum_is_right"] for rank in ranks)
    for name in ("matrix_flops_per_second", "matrix_flops_per_second_alone"):
        assert all(rank[name] > 0 for rank in ranks)
    assert all(rank["link_bytes_per_second"] > 0 for rank in ranks)
    assert all(list(rank["axis_bytes_per_second"]) == ["domain"] for rank in ranks)
    assert all(rank["axis_bytes_per_second"]["domain"] > 0 for rank in ranks)
