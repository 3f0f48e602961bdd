"""`jigsaw-forecast bench`: seconds per step of presets against the device's own matrix rate."""

import json
import math
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jigsaw_forecast.cli.options import command_line
from jigsaw_forecast.cli.run import Device, Precision, Weights
from jigsaw_forecast.errors import ForecastError
from jigsaw_forecast.parallel.launch import ensure_ranks

if TYPE_CHECKING:
    from jigsaw_forecast.parallel.mesh import Mesh

DEFAULT_PRESET = "wm-9m-5.625"
_HEADINGS = (
    "preset", "parameters", "step", "seconds", "fastest", "slowest", "TFLOP/step", "TFLOP/s",
    "of the rate", "peak GB", "load s",
)  # fmt: skip


def bench(
    context: typer.Context,
    presets: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PRESET|CHECKPOINT]...", help=f"Default: {DEFAULT_PRESET}."),
    ] = None,
    mesh: Annotated[
        str, typer.Option("--mesh", metavar="AXIS=DEGREE,...", help="Ranks to time on.")
    ] = "",
    device: Annotated[Device, typer.Option("--device", help="Where to compute.")] = Device.AUTO,
    precision: Annotated[
        Precision, typer.Option("--precision", help="Of the products.")
    ] = Precision.BFLOAT16,
    weights: Annotated[
        Weights, typer.Option("--weights", help="In a forecast; training always streams.")
    ] = Weights.RESIDENT,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Timed steps of each kind.")] = 5,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Samples of a model group in training.")
    ] = 1,
    training: Annotated[
        bool, typer.Option("--training/--no-training", help="Also time train steps.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
) -> int | None:
    """Times forecast steps and train steps of presets, with made-up weights and input.

    Each is given as a share of the rate at which the same device multiplies large matrices in the
    same precision. A checkpoint instead of a preset also gives the time to load it.

    \b
    Examples:
      jigsaw-forecast bench wm-9m-5.625 --device cpu --steps 3
      jigsaw-forecast bench wm-3.2b wm-3.2b-0.125 --device cuda
    """
    from jigsaw_forecast.cli.parse import parse_mesh

    degrees = parse_mesh(mesh)
    exit_code = ensure_ranks(math.prod(degrees.values()), command_line(context))
    if exit_code is not None:
        return exit_code
    from jigsaw_forecast.parallel.mesh import choose_device, close_mesh, make_mesh

    ranks = make_mesh(degrees, choose_device(device.value))
    try:
        rate, rows = _measure(presets or [DEFAULT_PRESET], ranks, precision.value, weights, steps,
                              batch_size if training else 0)  # fmt: skip
    finally:
        close_mesh()
    if os.environ.get("RANK", "0") != "0":
        return None
    if as_json:
        report = {"mesh": degrees, "precision": precision.value, "rows": rows}
        typer.echo(json.dumps(report | {"matrix_flops_per_second": rate}, indent=1))
        return None
    typer.echo(
        f"{precision.value} on {ranks.device}, mesh {ranks.degrees}: products of large matrices "
        f"run at {rate / 1e12:.4g} TFLOP/s over all ranks"
    )
    typer.echo("\n".join(_table(rows)))
    return None


def _measure(
    names: list[str],
    mesh: "Mesh",
    precision: str,
    weights: Weights,
    num_steps: int,
    batch_size: int,
) -> tuple[float, list[dict[str, Any]]]:
    """The matrix rate of all ranks together and a row for each model and kind of step."""
    import torch

    from jigsaw_forecast.parallel.collectives import all_reduce_sum
    from jigsaw_forecast.parallel.memory import restart_peak_memory
    from jigsaw_forecast.parallel.rates import matrix_rate
    from jigsaw_forecast.train.bench import count_flops, time_forecast, time_training

    dtype = getattr(torch, precision)
    total = torch.tensor(matrix_rate(mesh.device, dtype), dtype=torch.float64, device=mesh.device)
    rate = float(all_reduce_sum(total, (mesh.domain, mesh.tensor, mesh.data)))
    # what the counter imports with the first operation is no memory of a model
    count_flops(lambda: torch.eye(2).mm(torch.eye(2)))
    rows = []
    for name in names:
        for kind in ("forecast", "training") if batch_size else ("forecast",):
            before = restart_peak_memory(mesh.device)
            model, load_s = _make_model(name, mesh, dtype)
            if kind == "forecast":
                if weights is Weights.RESIDENT:
                    model.make_resident()
                restart_peak_memory(mesh.device)  # what making the model took is no step's
                timing = time_forecast(model.requires_grad_(False), num_steps)
            else:
                model.float().requires_grad_(True)
                restart_peak_memory(mesh.device)
                timing = time_training(model, batch_size, num_steps)
            row = {"preset": name, "step": kind, "load_seconds": load_s}
            row["parameters"] = sum(
                math.prod(layout.full_shape) for layout in model.layouts().values()
            )
            row |= asdict(timing) | {"memory_before_bytes": before}
            row["flops_per_second"] = timing.flops / timing.seconds
            row["share_of_matrix_rate"] = timing.flops / timing.seconds / rate
            rows.append(row)
            del model
    return rate, rows


def _make_model(name: str, mesh: "Mesh", dtype: Any) -> tuple[Any, float | None]:
    """A preset with made-up weights, or a checkpoint and the seconds it took to load."""
    import time

    import torch

    from jigsaw_forecast.checkpoint.format import find_checkpoint
    from jigsaw_forecast.checkpoint.load import load_checkpoint
    from jigsaw_forecast.model.config import PRESETS
    from jigsaw_forecast.model.weather_mixer import WeatherMixer
    from jigsaw_forecast.train.bench import fill

    if name in PRESETS:
        model = WeatherMixer(PRESETS[name], mesh, seed=None)
        fill(model)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data = parameter.data.to(dtype)
        model.compute_dtype = dtype
        return model, None
    try:
        folder = find_checkpoint(name)
    except ForecastError as error:
        raise ForecastError(f"{error}; presets are {', '.join(PRESETS)}") from error
    start_s = time.perf_counter()
    model = load_checkpoint(folder, mesh, dtype).model
    if mesh.device.type == "cuda":
        torch.cuda.synchronize(mesh.device)
    return model, time.perf_counter() - start_s


def _table(rows: list[dict[str, Any]]) -> list[str]:
    cells = [list(_HEADINGS)]
    for row in rows:
        load = row["load_seconds"]
        cells.append(
            [
                row["preset"],
                f"{row['parameters']:,}",
                row["step"],
                *(f"{row[name]:.4g}" for name in ("seconds", "fastest", "slowest")),
                f"{row['flops'] / 1e12:.4g}",
                f"{row['flops_per_second'] / 1e12:.4g}",
                f"{100 * row['share_of_matrix_rate']:.1f} %",
                f"{row['peak_memory_bytes'] / 1e9:.2f}",
                "-" if load is None else f"{load:.2f}",
            ]
        )
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEADINGS))]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in cells
    ]
