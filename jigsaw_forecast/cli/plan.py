"""`jigsaw-forecast plan`: every mesh of a number of ranks with memory, traffic and time."""

import dataclasses
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jigsaw_forecast.cli.run import Precision, Weights
from jigsaw_forecast.errors import CheckpointError, ForecastError

if TYPE_CHECKING:
    from jigsaw_forecast.model.config import ModelConfig
    from jigsaw_forecast.plan.devices import DeviceKind

GB = 1e9


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
    ranks_per_node: Annotated[
        int | None, typer.Option("--ranks-per-node", min=1, help="Ranks that share a node.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
) -> None:
    """Lists every mesh with what it needs and takes, best first; starts nothing.

    The model's own code runs on meta tensors, so memory and traffic are those of a run; seconds
    follow from the rates that are printed.

    \b
    Examples:
      jigsaw-forecast plan wm-3.2b --ranks 8 --device-kind h200
      jigsaw-forecast plan wm-3.2b --ranks 256 --device-kind a100 --training --json
    """
    # torch takes seconds to import and --help must not wait
    from jigsaw_forecast.forecast.rollout import one_step
    from jigsaw_forecast.plan.meshes import Workload, plan_meshes
    from jigsaw_forecast.train.bench import training_step

    config = _find_config(target)
    is_cpu = device_kind == "cpu"
    dtype = (precision or (Precision.FLOAT32 if is_cpu else Precision.BFLOAT16)).value
    given = {
        "matrix_flops_per_second": matrix_rate and {dtype: matrix_rate * 1e12},
        "memory_bytes": memory and memory * GB,
        "memory_bytes_per_second": memory_rate and memory_rate * GB,
        "link_bytes_per_second": link_rate and link_rate * GB,
        "node_link_bytes_per_second": node_link_rate and node_link_rate * GB,
        "ranks_per_node": ranks_per_node,
    }
    device = _find_device(device_kind, dtype, ranks, given)

    def adjust(model: Any) -> None:
        model.num_chunks = num_chunks
        model.recompute_hidden = recompute_hidden

    workload = Workload(
        config=config,
        mode="training" if training else "inference",
        dtype=dtype,
        is_streamed=training or weights is Weights.STREAMED,
        make_step=training_step if training else lambda _: one_step,
        batch_size=batch_size if training else 1,
        adjust=adjust,
    )
    rows = plan_meshes(workload, ranks, device)
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    typer.echo(f"{target}, {workload.mode}, {dtype}, {ranks} ranks")
    typer.echo(_assumptions(device, dtype))
    typer.echo("\n".join(_table(rows)))
    typer.echo("\n".join(_with_and_without(rows)))


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
    """The device kind with the figures given on the command line."""
    from jigsaw_forecast.plan.devices import find_device_kind

    overridden = {key: value for key, value in given.items() if value is not None}
    if name != "cpu":
        device = find_device_kind(name)
    else:
        link = overridden.get("link_bytes_per_second")
        device = _measure_cpu(dtype, num_ranks, link)
    if overridden:
        source = f"{device.source}; given: {', '.join(overridden)}"
        device = dataclasses.replace(device, **overridden, source=source)
    return device


def _measure_cpu(dtype: str, num_ranks: int, link: float | None) -> "DeviceKind":
    """This machine's rates; the link is measured between two ranks where it is not given."""
    from jigsaw_forecast.plan.measure import measure_cpu

    if link is None and num_ranks > 1:
        command = [sys.executable, "-m", "jigsaw_forecast.cli.main", "selfcheck", "--json"]
        command += ["--mesh", "domain=2", "--device", "cpu"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ForecastError(
                "the link between two ranks could not be measured; give --link-rate: "
                f"{done.stderr.strip()}"
            )
        link = min(rank["link_bytes_per_second"] for rank in json.loads(done.stdout)["ranks"])
    return measure_cpu(dtype, num_ranks, link or 0.0)


def _assumptions(device: "DeviceKind", dtype: str) -> str:
    return (
        f"device {device.name}: {device.matrix_flops_per_second[dtype] / 1e12:.4g} TFLOP/s, "
        f"{device.memory_bytes / GB:.4g} GB at {device.memory_bytes_per_second / GB:.4g} GB/s, "
        f"links {device.link_bytes_per_second / GB:.4g} GB/s in a node of {device.ranks_per_node} "
        f"and {device.node_link_bytes_per_second / GB:.4g} GB/s between nodes, "
        f"{device.latency_s * 1e6:.0f} us a collective ({device.source})"
    )


_HEADINGS = (
    "data", "domain", "tensor", "param", "grad", "moment", "activ", "buffer", "peak GB",
    "in: data", "domain", "tensor GB", "s/step", "samples/s", "efficiency", "",
)  # fmt: skip


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """One aligned line for each mesh."""
    cells = [list(_HEADINGS)]
    for row in rows:
        mesh = [str(row["mesh"][axis]) for axis in ("data", "domain", "tensor")]
        if row["seconds_per_step"] is None:
            cells.append([*mesh, *[""] * 12, f"does not fit: {row['reason']}"])
            continue
        held, received = row["per_rank"], row["bytes_received_per_step"]
        names = ("parameter", "gradient", "moment", "activation", "buffer", "peak")
        cells.append(
            [
                *mesh,
                *(f"{held[f'{name}_bytes'] / GB:.3f}" for name in names),
                *(f"{received[axis] / GB:.3f}" for axis in ("data", "domain", "tensor")),
                f"{row['seconds_per_step']:.4g}",
                f"{row['samples_per_second']:.4g}",
                f"{row['efficiency']:.3f}",
                "" if row["fits"] else f"does not fit: {row['reason']}",
            ]
        )
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEADINGS) - 1)]
    return [
        "  ".join(
            [*(cell.rjust(w) for cell, w in zip(line, widths, strict=False)), line[-1]]
        ).rstrip()
        for line in cells
    ]


def _with_and_without(rows: list[dict[str, Any]]) -> list[str]:
    """The best mesh against the best one that only repeats the whole model."""
    lines = []
    usable = [row for row in rows if row["fits"]]
    if usable:
        best = usable[0]
        lines.append(f"best: {_mesh_text(best)}, efficiency {best['efficiency']:.3f}")
    else:
        lines.append("no mesh of so many ranks fits")
    for row in rows:
        is_plain = row["mesh"]["domain"] == row["mesh"]["tensor"] == 1
        if is_plain and row["mesh"]["data"] > 1:
            fits = "fits" if row["fits"] else "does not fit"
            lines.append(
                f"without Jigsaw (whole models on the data axis): {_mesh_text(row)}, "
                f"efficiency {row['efficiency']:.3f}, {fits}"
            )
    return lines


def _mesh_text(row: dict[str, Any]) -> str:
    return ",".join(f"{axis}={degree}" for axis, degree in row["mesh"].items())
