"""Every mesh of a number of ranks, with what a model needs and takes on it, best first."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from jigsaw_forecast.errors import MeshError
from jigsaw_forecast.model.config import ModelConfig
from jigsaw_forecast.plan.devices import DeviceKind
from jigsaw_forecast.plan.simulate import simulate
from jigsaw_forecast.plan.trace import Kept, Step, Trace, busiest_rank, make_traced_model, trace

MEMORY_RESERVE = 0.05  # of a device's memory: the driver, the communication library, fragments


@dataclass(frozen=True)
class Workload:
    """What is planned.

    Attributes:
        config: Architecture.
        mode: `inference` or `training`.
        dtype: Of the products: `bfloat16` or `float32`.
        is_streamed: Whether weights are gathered in each step; always so in training.
        make_step: Gives one step of a model, with a batch of so many samples.
        kept: Makes what a training holds from step to step.
        batch_size: Samples of a model group.
        global_batch_size: Samples of all model groups together, if the groups are to share them;
            then `batch_size` does not count.
        base_bytes: Of a process before the model.
        adjust: Sets up a model before it is traced.
    """

    config: ModelConfig
    mode: str
    dtype: str
    is_streamed: bool
    make_step: Callable[[int], Step]
    kept: Kept = lambda model: {}
    batch_size: int = 1
    global_batch_size: int | None = None
    base_bytes: int = 0
    adjust: Callable[[Any], None] = lambda model: None


def all_meshes(num_ranks: int, *, with_data: bool) -> Iterator[dict[str, int]]:
    """Every way to write a number of ranks as data x domain x tensor."""
    for data in _divisors(num_ranks) if with_data else [1]:
        for domain in _divisors(num_ranks // data):
            yield {"data": data, "domain": domain, "tensor": num_ranks // data // domain}


def plan_meshes(workload: Workload, num_ranks: int, device: DeviceKind) -> list[dict[str, Any]]:
    """What every mesh would hold, receive and take; those that fit first, fastest first.

    Speed is that of samples: a mesh with a data axis makes several at a time. Figures are those of
    the busiest rank. The traffic and memory come from the model's own code on meta tensors.
    """
    meshes = list(all_meshes(num_ranks, with_data=workload.mode == "training"))
    return describe_meshes(workload, meshes, device)


def describe_meshes(
    workload: Workload, meshes: Iterable[dict[str, int]], device: DeviceKind
) -> list[dict[str, Any]]:
    """As `plan_meshes`, of these meshes."""
    traces: dict[tuple[int, int, int], Trace | str] = {}
    rows = []
    for degrees in meshes:
        own = workload
        if workload.global_batch_size is not None:
            batch_size, rest = divmod(workload.global_batch_size, degrees["data"])
            if rest or not batch_size:
                reason = (
                    f"data={degrees['data']} does not divide {workload.global_batch_size} samples"
                )
                rows.append(_describe(workload, degrees, reason, device))
                continue
            own = replace(workload, batch_size=batch_size, global_batch_size=None)
        key = degrees["domain"], degrees["tensor"], own.batch_size
        if key not in traces:
            traces[key] = trace_workload(own, degrees)
        rows.append(_describe(own, degrees, traces[key], device))
    return sorted(rows, key=_rank_key)


def _rank_key(row: dict[str, Any]) -> tuple[bool, bool, float]:
    seconds = row["seconds_per_step"]
    return not row["fits"], seconds is None, -row.get("samples_per_second", 0.0)


def trace_workload(workload: Workload, degrees: dict[str, int]) -> Trace | str:
    """The trace of the busiest rank, or why the mesh cannot be."""
    try:
        workload.config.check()
        workload.config.check_mesh(degrees["domain"], degrees["tensor"])
    except MeshError as error:
        return str(error)
    is_inference = workload.mode == "inference"
    model = make_traced_model(
        workload.config,
        busiest_rank(degrees),
        getattr(torch, workload.dtype),
        matrices_in_dtype=is_inference,
    )
    workload.adjust(model)
    if is_inference:
        model.requires_grad_(False)
        if not workload.is_streamed:
            model.make_resident()
    return trace(model, workload.make_step(workload.batch_size), workload.kept)


def memory_needed(workload: Workload, traced: Trace) -> int:
    """Peak bytes of a rank: what the step holds, the optimizer's tensors and the process."""
    return traced.peak_bytes + workload.base_bytes


def _describe(
    workload: Workload, degrees: dict[str, int], traced: Trace | str, device: DeviceKind
) -> dict[str, Any]:
    row: dict[str, Any] = {"mesh": degrees, "mode": workload.mode}
    if isinstance(traced, str):
        return row | {"fits": False, "reason": traced, "seconds_per_step": None}
    needed = memory_needed(workload, traced)
    times = simulate(
        traced.events,
        device,
        workload.dtype,
        degrees,
        optimizer_bytes=_optimizer_bytes(traced),
    )
    data, group = degrees["data"], degrees["domain"] * degrees["tensor"]
    received = {axis: sum(kinds.values()) for axis, kinds in traced.received.items()}
    received["data"] = 2 * (data - 1) * traced.gradient_bytes // data
    usable = (1.0 - MEMORY_RESERVE) * device.memory_bytes
    row |= {
        "fits": needed <= usable,
        "per_rank": {
            "parameter_bytes": traced.parameter_bytes,
            "gradient_bytes": traced.gradient_bytes,
            "moment_bytes": traced.kept_bytes.get("moment", 0),
            "average_bytes": traced.kept_bytes.get("average", 0),
            "activation_bytes": traced.activation_bytes,
            "buffer_bytes": traced.buffer_bytes,
            "peak_bytes": needed,
        },
        "bytes_received_per_step": received,
        "flops_per_step": traced.flops * group * data,
        "seconds_per_step": times.step,
        "compute_seconds": times.compute,
        "communication_seconds": times.communication,
        "batch_size": workload.batch_size,
        "samples_per_second": workload.batch_size * data / times.step,
        "efficiency": traced.flops / device.matrix_flops_per_second[workload.dtype] / times.step,
    }
    if not row["fits"]:
        row["reason"] = (
            f"needs {needed / 1e9:.1f} GB a rank; {device.name} has "
            f"{device.memory_bytes / 1e9:.1f} GB, of which {usable / 1e9:.1f} GB are used"
        )
    return row


def _optimizer_bytes(traced: Trace) -> int:
    """What an optimizer's step reads and writes: all but the gradients both ways."""
    kept = sum(traced.kept_bytes.values())
    return 2 * (traced.parameter_bytes + kept) + traced.gradient_bytes if kept else 0


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
