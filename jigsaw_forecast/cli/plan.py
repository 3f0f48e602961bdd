"""`jigsaw-forecast plan`: every mesh of a number of ranks with memory, traffic and time."""

import dataclasses
import json
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jigsaw_forecast.cli.plan_report import GB, assumptions, best_line, compare, table
from jigsaw_forecast.cli.run import Precision, Weights
from jigsaw_forecast.errors import CheckpointError, ForecastError

if TYPE_CHECKING:
    from jigsaw_forecast.model.config import ModelConfig
    from jigsaw_forecast.plan.devices import DeviceKind
    from jigsaw_forecast.plan.meshes import Workload

TFLOP = 1e12
US = 1e-6
_OPTIONS = {
    "matrix_flops_per_second": "--matrix-rate",
    "memory_bytes": "--memory",
    "memory_bytes_per_second": "--memory-rate",
    "link_bytes_per_second": "--link-rate",
    "node_link_bytes_per_second": "--node-link-rate",
    "latency_s": "--latency",
    "ranks_per_node": "--ranks-per-node",
}


def plan(
    target: Annotated[
        str,
        typer.Argument(metavar="CHECKPOINT|PRESET", help="What to plan for: nature-run, wm-3.2b."),
    ] = "nature-run",
    ranks: Annotated[int, typer.Option("--ranks", min=1, metavar="N", help="Number of ranks.")] = 1,
    device_kind: Annotated[
        str,
        typer.Option("--device-kind", metavar="KIND", help="a100, h100, h200, or cpu: measured."),
    ] = "cpu",
    training: Annotated[
        bool, typer.Option("--training", help="Plan a train step instead of a forecast's step.")
    ] = False,
    precision: Annotated[
        Precision | None,
        typer.Option("--precision", help="Of the products. Default: bfloat16, float32 on cpu."),
    ] = None,
    weights: Annotated[
        Weights, typer.Option("--weights", help="In a forecast; training always streams.")
    ] = Weights.RESIDENT,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Samples of a model group in training.")
    ] = 1,
    global_batch_size: Annotated[
        int | None,
        typer.Option("--global-batch-size", min=1, help="Samples of all groups, shared by them."),
    ] = None,
    num_chunks: Annotated[
        int | None, typer.Option("--chunks", min=1, help="Chunks that activations travel in.")
    ] = None,
    recompute_hidden: Annotated[
        bool, typer.Option("--recompute-hidden", help="As train.recompute_hidden.")
    ] = False,
    matrix_rate: Annotated[
        float | None, typer.Option("--matrix-rate", help="TFLOP/s of one device.")
    ] = None,
    memory: Annotated[float | None, typer.Option("--memory", help="GB of one device.")] = None,
    memory_rate: Annotated[
        float | None, typer.Option("--memory-rate", help="GB/s of everything but products.")
    ] = None,
    link_rate: Annotated[
        float | None, typer.Option("--link-rate", help="GB/s received within a node.")
    ] = None,
    node_link_rate: Annotated[
        float | None, typer.Option("--node-link-rate", help="GB/s received from other nodes.")
    ] = None,
    latency: Annotated[
        float | None, typer.Option("--latency", help="Microseconds of one collective.")
    ] = None,
    ranks_per_node: Annotated[
        int | None, typer.Option("--ranks-per-node", min=1, help="Ranks that share a node.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
) -> None:
    """Lists every mesh with what it needs and takes, best first; starts nothing that lasts.

    The model's own code runs on meta tensors, so memory and traffic are those of a run; seconds
    follow from the rates that are printed. On a CPU ranks are started for seconds to measure them.
    A plan of training also sets the best mesh beside whole models on the data axis alone.

    \b
    Examples:
      jigsaw-forecast plan wm-3.2b --ranks 8 --device-kind h200
      jigsaw-forecast plan wm-3.2b --ranks 256 --device-kind a100 --training
    """
    # torch takes seconds to import and --help must not wait
    from jigsaw_forecast.plan.meshes import describe_meshes, plan_meshes

    if precision is None:
        precision = Precision.FLOAT32 if device_kind == "cpu" else Precision.BFLOAT16
    workload = _make_workload(target, precision.value, weights, is_training=training)
    workload = dataclasses.replace(
        workload,
        batch_size=batch_size if training else 1,
        global_batch_size=global_batch_size if training else None,
        adjust=_adjust(num_chunks, recompute_hidden=recompute_hidden),
    )
    given = {
        "matrix_flops_per_second": _scale(matrix_rate, TFLOP),
        "memory_bytes": _scale(memory, GB),
        "memory_bytes_per_second": _scale(memory_rate, GB),
        "link_bytes_per_second": _scale(link_rate, GB),
        "node_link_bytes_per_second": _scale(node_link_rate, GB),
        "latency_s": _scale(latency, US),
        "ranks_per_node": ranks_per_node,
    }
    device = _find_device(device_kind, precision.value, ranks, given)
    rows = plan_meshes(workload, ranks, device)
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    typer.echo(f"{target}, {workload.mode}, {workload.dtype}, {ranks} ranks; assumptions:")
    lines = [*assumptions(device, workload), *table(rows), best_line(rows)]
    if training and ranks > 1:
        lines += compare(workload, ranks, partial(describe_meshes, device=device))
    typer.echo("\n".join(lines))


def _scale(value: float | None, unit: float) -> float | None:
    return None if value is None else value * unit


def _make_workload(target: str, dtype: str, weights: Weights, *, is_training: bool) -> "Workload":
    """What is planned, of one sample a model group."""
    from jigsaw_forecast.forecast.rollout import one_step
    from jigsaw_forecast.plan.meshes import Workload
    from jigsaw_forecast.train.bench import training_step, training_tensors

    config = _find_config(target)
    if is_training:
        return Workload(config, "training", dtype, True, training_step, training_tensors)
    is_streamed = weights is Weights.STREAMED
    return Workload(config, "inference", dtype, is_streamed, lambda _: one_step)


def _adjust(num_chunks: int | None, *, recompute_hidden: bool) -> Callable[[Any], None]:
    """Sets up a model as the options say."""

    def adjust(model: Any) -> None:
        model.num_chunks = num_chunks
        model.recompute_hidden = recompute_hidden

    return adjust


def _find_config(target: str) -> "ModelConfig":
    """The architecture of a preset or of a checkpoint."""
    from jigsaw_forecast.checkpoint.format import find_checkpoint, read_manifest
    from jigsaw_forecast.model.config import PRESETS

    if target in PRESETS:
        return PRESETS[target]
    try:
        return read_manifest(find_checkpoint(target)).architecture
    except CheckpointError as error:
        raise ForecastError(f"{error}; presets are {', '.join(PRESETS)}") from error


def _find_device(name: str, dtype: str, num_ranks: int, given: dict[str, Any]) -> "DeviceKind":
    """The device kind with the figures given on the command line.

    Raises:
        ForecastError: No such kind; figures that are not positive, all of them named.
    """
    from jigsaw_forecast.plan.devices import find_device_kind
    from jigsaw_forecast.plan.measure import measure_cpu

    overridden = {key: value for key, value in given.items() if value is not None}
    wrong = [_OPTIONS[key] for key, value in overridden.items() if not 0.0 < value < math.inf]
    if wrong:
        raise ForecastError(f"{', '.join(wrong)}: must be positive and finite")
    if name == "cpu":
        device = measure_cpu(dtype, num_ranks, overridden.get("link_bytes_per_second"))
    else:
        device = find_device_kind(name)
    if overridden:
        options = ", ".join(_OPTIONS[key] for key in overridden)
        source = f"{device.source}; given: {options}"
        if "matrix_flops_per_second" in overridden:
            overridden["matrix_flops_per_second"] = {dtype: overridden["matrix_flops_per_second"]}
        device = dataclasses.replace(device, **overridden, source=source)
    return device
