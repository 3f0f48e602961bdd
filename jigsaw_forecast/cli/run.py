"""`jigsaw-forecast run`: a forecast from initial conditions."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from jigsaw_forecast.cli import forecast_options as shared
from jigsaw_forecast.cli.forecast_options import (
    DEFAULT_CHECKPOINT,
    DEFAULT_LEAD_TIME,
    DEFAULT_OUTPUT,
    Device,
    ForecastOptions,
    Precision,
    Weights,
)
from jigsaw_forecast.cli.options import command_line
from jigsaw_forecast.errors import ForecastError
from jigsaw_forecast.parallel.launch import ensure_ranks

__all__ = ["DEFAULT_OUTPUT", "Device", "Precision", "Weights", "run"]

# The library is imported where a command needs it: torch takes seconds and --help must not wait.


def run(  # typer reads the options off the signature
    context: typer.Context,
    init: shared.Init,
    lead_time: shared.LeadTime = DEFAULT_LEAD_TIME,
    checkpoint: Annotated[
        str,
        typer.Option(
            "--checkpoint",
            metavar="NAME|DIR",
            help="Model; a NAME is looked up in ./checkpoints, $JIGSAW_CHECKPOINTS, then beside "
            "the package.",
        ),
    ] = DEFAULT_CHECKPOINT,
    input_spec: shared.Input = None,
    output: shared.Output = None,
    variables: shared.Variables = None,
    output_frequency: shared.OutputFrequency = None,
    write_initial_state: shared.InitialState = False,
    mesh: shared.MeshDegrees = "",
    device: shared.DeviceChoice = Device.AUTO,
    precision: shared.PrecisionChoice = Precision.FLOAT32,
    weights: shared.WeightsChoice = Weights.RESIDENT,
    regrid: shared.Regrid = False,
    grib: shared.Grib = "",
    members: shared.Members = 0,
    truth: shared.Truth = None,
    climatology: shared.Climatology = None,
    allow_missing: shared.AllowMissing = False,
    overwrite: shared.Overwrite = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with what a stopped run has written; start where nothing is."
        ),
    ] = False,
    deadline: Annotated[
        float | None,
        typer.Option(
            "--deadline",
            metavar="SECONDS",
            min=0.0,
            help="Stop, to be resumed, as soon as the run would take longer.",
        ),
    ] = None,
    stop_implausible: Annotated[
        bool,
        typer.Option(
            "--stop-implausible", help="Stop where a field leaves what is plausible on Earth."
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what the run would do, as check does; do nothing."),
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report", metavar="FILE.json", help="Write times, memory and traffic of the run."
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE.png",
            help="Draw maps of the first product: days 0, 1, 3, 5, 10.",
        ),
    ] = None,
) -> int | None:
    """Makes a forecast from initial conditions.

    With a --mesh of several ranks the command starts its ranks itself; under torchrun, srun or
    mpirun it joins them.

    \b
    Examples:
      jigsaw-forecast run --init 2026-06-24T00
      jigsaw-forecast run --init 2011-10-11T00 --input gfs.grb --regrid --output day10.grib2
      jigsaw-forecast run --init 2026-06-24T00 --mesh domain=2,tensor=2 --lead-time 5d
      jigsaw-forecast run --init latest --input open-data: --resume --deadline 3600
      jigsaw-forecast run --init 2026-06-24T00 --truth era5.zarr --output june.scores
    """
    options = ForecastOptions(
        init=init,
        lead_time=lead_time,
        checkpoint=checkpoint,
        input=input_spec,
        output=output,
        variables=variables,
        output_frequency=output_frequency,
        write_initial_state=write_initial_state,
        mesh=mesh,
        device=device,
        precision=precision,
        weights=weights,
        regrid=regrid,
        grib=grib,
        members=members,
        truth=truth,
        climatology=climatology,
        allow_missing=allow_missing,
        overwrite=overwrite,
    )
    asked = options.parsed() | {"resume": resume, "report": report, "plot": plot}
    _check_mesh(checkpoint, asked["mesh"])
    if dry_run:
        _try(asked)
        return None
    from jigsaw_forecast.cli.parse import fixed_init

    arguments = fixed_init(command_line(context), asked["init_times"])
    exit_code = ensure_ranks(math.prod(asked["mesh"].values()), arguments)
    if exit_code is not None:
        return exit_code
    from jigsaw_forecast.forecast.request import RunRequest
    from jigsaw_forecast.forecast.run import run_forecast

    run_forecast(
        RunRequest(
            **asked,
            deadline_s=deadline,
            stops_implausible=stop_implausible,
            command=tuple(arguments),
        )
    )
    return None


def _check_mesh(checkpoint: str, mesh: dict[str, int]) -> None:
    """Starts no ranks for a mesh that does not divide.

    Raises:
        MeshError: It does not.
    """
    from jigsaw_forecast.checkpoint.format import find_checkpoint, read_manifest

    architecture = read_manifest(find_checkpoint(checkpoint)).architecture
    architecture.check_mesh(mesh["domain"], mesh["tensor"])


def _try(asked: dict[str, Any]) -> None:
    """Says what a run would do.

    Raises:
        ForecastError: It would fail; all reasons are listed.
    """
    from jigsaw_forecast.forecast.check import check_run
    from jigsaw_forecast.forecast.request import CheckRequest

    found = check_run(CheckRequest(**asked))
    typer.echo("\n".join(found.lines()))
    if not found.fits:
        raise ForecastError(found.problems_text())
