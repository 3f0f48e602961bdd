"""A rank that is stopped, hangs, dies or differs ends the run on all ranks and is named."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.alone  # it stops ranks and waits for limits of time

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 3
SCRIPT = """
import os, sys, time
import torch
from jigsaw_forecast.errors import ForecastError, StoppedError
from jigsaw_forecast.parallel.collectives import all_gather
from jigsaw_forecast.parallel.mesh import close_mesh, make_mesh
from jigsaw_forecast.parallel.watch import note
fault = sys.argv[1] if os.environ["RANK"] == "1" else ""
try:
    mesh = make_mesh({"domain": 2}, plan={"recipe": "other" if fault == "differ" else "same"})
    for step in range(10_000):
        note(f"step {step}")
        all_gather(mesh, torch.ones(4), "domain", 0, "activations")
        if step == 5:
            print("running", flush=True)
            if fault == "hang":
                while True:
                    pass
            if fault == "die":
                os._exit(9)
        time.sleep(0.01)
except (StoppedError, ForecastError) as error:
    print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(3)
"""


def start(fault: str) -> list[subprocess.Popen[str]]:
    """Two ranks that no launcher watches over."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    environment = {
        **os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
        "JIGSAW_TIMEOUT_S": str(TIMEOUT_S), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    return [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, fault],
            env=environment | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def end(processes: list[subprocess.Popen[str]], within_s: float) -> list[tuple[int, str]]:
    """Exit code and stderr of each rank; fails where one still lives."""
    try:
        return [
            (process.returncode, error)
            for process in processes
            for _, error in [process.communicate(timeout=within_s)]
        ]
    finally:
        for process in processes:
            process.kill()


def test_a_rank_that_hangs_is_named_with_the_stacks_of_the_one_that_waits() -> None:
    waiting, hanging = start("hang")
    try:
        code, message = end([waiting], 60)[0]
    finally:
        hanging.kill()
        hanging.communicate()
    assert code == 3
    assert f"rank 1 on host {socket.gethostname()} does not go on" in message
    assert "last heard of in step 5" in message
    assert "waiting in all-gather of activations over domain" in message
    assert "in wait" in message  # a frame of the stack
    assert f"waited {TIMEOUT_S} s" in message


def test_a_stopped_rank_is_named() -> None:
    waiting, stopped = start("")
    assert stopped.stdout is not None
    assert stopped.stdout.readline() == "running\n"
    stopped.send_signal(signal.SIGSTOP)
    try:
        code, message = end([waiting], 60)[0]
    finally:
        stopped.kill()
        stopped.communicate()
    assert code == 3
    assert "rank 1 on host" in message
    assert "is stopped" in message


def test_a_rank_that_dies_is_named_at_once() -> None:
    began = time.monotonic()
    (code, message), (died, _) = end(start("die"), 60)
    assert (code, died) == (3, 9)
    assert message.startswith("StoppedError: rank 1 on host")
    assert "has ended" in message
    assert time.monotonic() - began < 60


def test_ranks_with_different_plans_all_refuse_and_name_the_one() -> None:
    for code, message in end(start("differ"), 60):
        assert code == 3
        assert "MeshError: rank 1 on host" in message
        assert "differs: recipe other, the others have same" in message


@pytest.mark.parametrize("text", ["0", "-3", "nan", "soon"])
def test_a_timeout_that_is_no_positive_number_is_refused(text: str) -> None:
    environment = {**os.environ, "JIGSAW_TIMEOUT_S": text}
    command = [sys.executable, "-m", "jigsaw_forecast.cli.main", "selfcheck", "--mesh", "domain=2"]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT
    )
    assert done.returncode == 2
    assert f"JIGSAW_TIMEOUT_S={text}: expected a positive number of seconds" in done.stderr
