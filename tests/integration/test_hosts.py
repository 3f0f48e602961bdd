"""One forecast over two hosts: two network namespaces with a rank in each."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from benchmarks.shaped_link import ADDRESSES, INTERFACE, Link, NotPermittedError, shaped_link
from tests.integration import inputs

pytestmark = pytest.mark.alone  # it stops ranks and waits for limits of time

BIN = Path(sys.executable).parent
TIMEOUT_S = 180
RUN = ["run", "--init", "2026-06-24T00", "--lead-time", "12h", "--checkpoint", "made-up"]


@pytest.fixture
def link() -> Iterator[Link]:
    """Two hosts; the test skips, saying why, where namespaces are not permitted."""
    try:
        with shaped_link() as made:
            yield made
    except NotPermittedError as error:
        pytest.skip(f"no network namespaces here: {error}")


def test_torchrun_runs_the_command_on_two_hosts(link: Link, tmp_path: Path) -> None:
    inputs.make_checkpoint(tmp_path / "made-up")
    jigsaw = str(BIN / "jigsaw-forecast")
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": INTERFACE, "OMP_NUM_THREADS": "1"}
    link.set_rate(50e6)
    hosts = []
    for side in (0, 1):
        torchrun = [
            str(BIN / "torchrun"),
            "--nnodes=2",
            "--nproc-per-node=1",
            f"--node-rank={side}",
            f"--master-addr={ADDRESSES[0]}",
            "--master-port=29500",
            "--no-python",
        ]
        mesh = ["--mesh", "domain=2", "--output", "two-hosts.zarr"]
        hosts.append(
            subprocess.Popen(
                link.command(side, *torchrun, jigsaw, *RUN, *mesh),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=tmp_path,
                env=environment,
            )
        )
    try:
        said = [host.communicate(timeout=TIMEOUT_S) for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    assert [host.returncode for host in hosts] == [0, 0], said
    alone = subprocess.run(
        [jigsaw, *RUN, "--output", "alone.zarr"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert alone.returncode == 0, alone.stderr
    with (
        xr.open_zarr(tmp_path / "two-hosts.zarr") as found,
        xr.open_zarr(tmp_path / "alone.zarr") as expected,
    ):
        assert set(found.data_vars) == set(expected.data_vars)
        for name, values in expected.items():
            scale = float(np.abs(values).max())
            np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-5 * scale, err_msg=name)
