"""Whether a model fits where it is about to run, before anything of it is allocated."""

import os
from collections.abc import Callable

import torch

from jigsaw_forecast.errors import MeshError
from jigsaw_forecast.model.config import ModelConfig
from jigsaw_forecast.parallel.layout import Layout
from jigsaw_forecast.parallel.mesh import Mesh
from jigsaw_forecast.plan.meshes import Workload, all_meshes, memory_needed, trace_workload
from jigsaw_forecast.plan.trace import described_mesh, make_traced_model

BASE_BYTES = 400 << 20  # of a process with torch and the readers; measured 0.3 to 0.4 GB
# A model so small against the memory needs no trace, which takes a second.
SMALL_SHARE = 0.1
MOST_RANKS = 64


def available_bytes(device: torch.device) -> int:
    """Memory that this rank may take: a GPU's free memory, or its share of the machine's.

    The ranks of one machine share what is available; their number is the launcher's
    LOCAL_WORLD_SIZE. Where the system tells nothing the answer is very large.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
    except OSError:
        return 1 << 62
    available = int(lines["MemAvailable"].split()[0]) * 1024
    return available // max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)


def check_memory(
    mesh: Mesh, config: ModelConfig, make_workload: Callable[[bool], Workload], *, is_streamed: bool
) -> None:
    """Refuses what would not fit, naming the smallest mesh that does.

    Args:
        mesh: The mesh of the run.
        config: Architecture.
        make_workload: The workload, given whether weights are streamed.
        is_streamed: Whether they are to be.

    Raises:
        MeshError: Says what is needed, what is there, and what would fit.
    """
    available = available_bytes(mesh.device)
    if parameter_bytes(config) < SMALL_SHARE * available:
        return
    needed = needed_bytes(make_workload(is_streamed), mesh.degrees)
    if needed <= available:
        return
    advice = []
    if not is_streamed and needed_bytes(make_workload(True), mesh.degrees) <= available:
        advice.append("use --weights streamed")
    # the ranks of one CPU share its memory, each GPU has its own
    total = available * (mesh.size if mesh.device.type == "cpu" else 1)
    for num_ranks in range(mesh.model.size + 1, MOST_RANKS + 1):
        own = total // num_ranks if mesh.device.type == "cpu" else available
        fitting = _first_that_fits(make_workload(is_streamed), num_ranks, own)
        if fitting:
            advice.append(f"use --mesh {fitting}, the smallest that fits")
            break
    else:
        advice.append(
            f"no mesh of up to {MOST_RANKS} ranks fits here: use devices with more memory"
        )
    raise MeshError(
        f"too little memory: mesh {_text(mesh.degrees)} needs {needed / 1e9:.2f} GB a rank, "
        f"{available / 1e9:.2f} GB is available to each; {' or '.join(advice)}"
    )


def needed_bytes(workload: Workload, degrees: dict[str, int]) -> int:
    """Predicted peak of the busiest rank's process."""
    traced = trace_workload(workload, degrees)
    assert not isinstance(traced, str), "the mesh was checked"
    return memory_needed(workload, traced)


def parameter_bytes(config: ModelConfig) -> int:
    """Bytes of all parameters in float32."""
    model = make_traced_model(config, described_mesh({}), torch.float32, matrices_in_dtype=False)
    layouts: dict[str, Layout] = model.layouts()
    return sum(4 * torch.Size(layout.full_shape).numel() for layout in layouts.values())


def _first_that_fits(workload: Workload, num_ranks: int, available: int) -> str | None:
    for degrees in all_meshes(num_ranks, with_data=False):
        traced = trace_workload(workload, degrees)
        if not isinstance(traced, str) and memory_needed(workload, traced) <= available:
            return _text(degrees)
    return None


def _text(degrees: dict[str, int]) -> str:
    return ",".join(f"{axis}={n}" for axis, n in degrees.items() if n > 1) or "of one rank"
