"""`jigsaw-forecast run`: a forecast from initial conditions."""

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from jigsaw_forecast.cli.options import command_line
from jigsaw_forecast.errors import ForecastError
from jigsaw_forecast.parallel.launch import ensure_ranks

# The library is imported where a command needs it: torch takes seconds and --help must not wait.

DEFAULT_OUTPUT = "forecast-{init:%Y%m%d%H}.zarr"


class Device(StrEnum):
    """Where the model computes."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Precision(StrEnum):
    """In what the model computes."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Weights(StrEnum):
    """Whether gathered weights are kept or gathered again in each step."""

    RESIDENT = "resident"
    STREAMED = "streamed"


def run(  # typer reads the options off the signature
    context: typer.Context,
    init: Annotated[
        str,
        typer.Option(
            "--init",
            metavar="TIME",
            help="Initial time in UTC: 2026-06-24T00, 2026062400, 20260624, or latest of a remote "
            "source; several as a comma list or START/END/STEP.",
        ),
    ],
    lead_time: Annotated[
        str, typer.Option("--lead-time", metavar="SPAN", help="How far: 10d, 240h or 240.")
    ] = "10d",
    checkpoint: Annotated[
        str,
        typer.Option(
            "--checkpoint",
            metavar="NAME|DIR",
            help="Model; a NAME is looked up in ./checkpoints, $JIGSAW_CHECKPOINTS, then beside "
            "the package.",
        ),
    ] = "nature-run",
    input_spec: Annotated[
        str | None,
        typer.Option(
            "--input",
            metavar="SPEC",
            help="Initial conditions: GRIB 1 or 2, zarr or netCDF, told apart by content; "
            "templates {init:%Y%m%d%H} and {member:03d}; or open-data:, mars:, cds:. Default: "
            "those shipped with the checkpoint.",
        ),
    ] = None,
    output: Annotated[
        list[str] | None,
        typer.Option(
            "--output",
            metavar="PATH",
            help="Product: .zarr, .grib2 or .nc; may be repeated; templates {init:%Y%m%d%H}, "
            f"{{lead:03d}} and {{member:02d}}. Default: {DEFAULT_OUTPUT}",
        ),
    ] = None,
    variables: Annotated[
        str | None,
        typer.Option("--variables", metavar="LIST", help="Write only these: z500,2t,u,t_850."),
    ] = None,
    output_frequency: Annotated[
        str | None,
        typer.Option(
            "--output-frequency",
            metavar="SPAN",
            help="Write every 6h, 24h, ... Default: each step.",
        ),
    ] = None,
    write_initial_state: Annotated[
        bool,
        typer.Option("--write-initial-state", help="Write lead time 0 too, as the model sees it."),
    ] = False,
    mesh: Annotated[
        str,
        typer.Option(
            "--mesh",
            metavar="AXIS=DEGREE,...",
            help="Ranks: domain=2,tensor=2 cut a forecast, data=2 makes two at a time.",
        ),
    ] = "",
    device: Annotated[Device, typer.Option("--device", help="Where to compute.")] = Device.AUTO,
    precision: Annotated[
        Precision, typer.Option("--precision", help="In what to compute.")
    ] = Precision.FLOAT32,
    weights: Annotated[
        Weights,
        typer.Option("--weights", help="Keep gathered weights, or gather them in each step."),
    ] = Weights.RESIDENT,
    regrid: Annotated[
        bool, typer.Option("--regrid", help="Bring the input to the model's grid.")
    ] = False,
    grib: Annotated[
        str,
        typer.Option(
            "--grib",
            metavar="KEY=VALUE,...",
            help="Keys of GRIB2 products: centre=ecmf,class=ml,expver=0001,packing=ccsds,bits=16.",
        ),
    ] = "",
    members: Annotated[
        int,
        typer.Option(
            "--members",
            metavar="N",
            min=0,
            help="Forecast the members 0 to N-1 of an ensemble of initial conditions.",
        ),
    ] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace products that exist.")
    ] = False,
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
    """
    from jigsaw_forecast.checkpoint.format import find_checkpoint, read_manifest
    from jigsaw_forecast.cli import parse
    from jigsaw_forecast.data.acquisition.latest import needs_latest, resolve_latest

    problems: list[str] = []
    with parse.collected(problems):
        span = parse.parse_duration(lead_time)
    with parse.collected(problems):
        frequency = parse.parse_optional_duration(output_frequency, "--output-frequency")
    with parse.collected(problems):
        degrees = parse.parse_mesh(mesh)
    with parse.collected(problems):
        grib_keys = parse.parse_grib_keys(grib)
    if not needs_latest(init):
        with parse.collected(problems):
            init_times = parse.parse_init_times(init)
    if problems:
        raise ForecastError("\n".join(problems))
    # the manifest is read without torch: a mesh that does not divide starts no ranks
    architecture = read_manifest(find_checkpoint(checkpoint)).architecture
    architecture.check_mesh(degrees.get("domain", 1), degrees.get("tensor", 1))
    if needs_latest(init):
        fields = architecture.prognostic_fields
        init_times = parse.parse_init_times(
            init, latest=lambda: resolve_latest(input_spec, fields, tuple(range(members)))
        )
    outputs = tuple(output or (DEFAULT_OUTPUT,))
    if dry_run:
        from jigsaw_forecast.forecast.check import CheckRequest, check_run

        found = check_run(
            CheckRequest(
                checkpoint=checkpoint,
                init_times=init_times,
                lead_time=span,
                input=input_spec,
                outputs=outputs,
                variables=variables,
                output_frequency=frequency,
                write_initial_state=write_initial_state,
                mesh=degrees,
                device=device.value,
                precision=precision.value,
                weights=weights.value,
                regrid=regrid,
                overwrite=overwrite,
                resume=resume,
                members=tuple(range(members)),
            )
        )
        typer.echo("\n".join(found.lines()))
        if not found.fits:
            raise ForecastError(found.problems_text())
        return None
    arguments = parse.fixed_init(command_line(context), init_times)
    exit_code = ensure_ranks(math.prod(degrees.values()), arguments)
    if exit_code is not None:
        return exit_code
    from jigsaw_forecast.forecast.run import RunRequest, run_forecast

    run_forecast(
        RunRequest(
            init_times=init_times,
            lead_time=span,
            checkpoint=checkpoint,
            input=input_spec,
            outputs=outputs,
            variables=variables,
            output_frequency=frequency,
            write_initial_state=write_initial_state,
            mesh=degrees,
            device=device.value,
            precision=precision.value,
            weights=weights.value,
            regrid=regrid,
            grib_keys=grib_keys,
            overwrite=overwrite,
            report=report,
            plot=plot,
            num_members=members,
            resume=resume,
            deadline_s=deadline,
            stops_implausible=stop_implausible,
            command=tuple(arguments),
        )
    )
    return None
