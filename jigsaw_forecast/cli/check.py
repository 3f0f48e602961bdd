"""`jigsaw-forecast check`: whether a run would succeed, and what it would take."""

import json
from typing import Annotated

import typer

from jigsaw_forecast.cli.run import DEFAULT_OUTPUT, Device, Precision, Weights
from jigsaw_forecast.errors import ForecastError

# The library is imported where a command needs it: torch takes seconds and --help must not wait.


def check(  # typer reads the options off the signature
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="Checkpoint: name or folder.")
    ],
    init: Annotated[
        str,
        typer.Option(
            "--init",
            metavar="TIME",
            help="Initial time in UTC, a comma list, START/END/STEP, or latest.",
        ),
    ],
    input_spec: Annotated[
        str | None,
        typer.Option(
            "--input",
            metavar="SPEC",
            help="Initial conditions, as for run: a path or template, open-data:, mars:, cds:, ...",
        ),
    ] = None,
    lead_time: Annotated[
        str, typer.Option("--lead-time", metavar="SPAN", help="How far: 10d, 240h or 240.")
    ] = "10d",
    output: Annotated[
        list[str] | None,
        typer.Option("--output", metavar="PATH", help=f"As for run. Default: {DEFAULT_OUTPUT}"),
    ] = None,
    variables: Annotated[
        str | None, typer.Option("--variables", metavar="LIST", help="Write only these.")
    ] = None,
    output_frequency: Annotated[
        str | None, typer.Option("--output-frequency", metavar="SPAN", help="Write every 6h, 24h.")
    ] = None,
    write_initial_state: Annotated[
        bool, typer.Option("--write-initial-state", help="Write lead time 0 too.")
    ] = False,
    mesh: Annotated[
        str, typer.Option("--mesh", metavar="AXIS=DEGREE,...", help="Ranks: domain=2,tensor=2.")
    ] = "",
    device: Annotated[Device, typer.Option("--device", help="Where to compute.")] = Device.AUTO,
    device_kind: Annotated[
        str,
        typer.Option(
            "--device-kind", metavar="KIND", help="Check for another machine: a100, h100, h200."
        ),
    ] = "",
    precision: Annotated[
        Precision, typer.Option("--precision", help="In what to compute.")
    ] = Precision.FLOAT32,
    weights: Annotated[
        Weights, typer.Option("--weights", help="Keep gathered weights, or gather in each step.")
    ] = Weights.RESIDENT,
    regrid: Annotated[
        bool, typer.Option("--regrid", help="Bring the input to the model's grid.")
    ] = False,
    members: Annotated[
        int, typer.Option("--members", min=0, metavar="N", help="Ensemble members 0 to N - 1.")
    ] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Products that exist would be replaced.")
    ] = False,
    headers_only: Annotated[
        bool,
        typer.Option("--headers-only", help="Read neither the input's values nor the weights."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
) -> int | None:
    """Tells whether a run would succeed: input, memory, time and disk; starts nothing.

    Lists every field of the initial state with file and message number, whether it is found,
    derived, duplicated or missing, and its range. A remote input is fetched into the cache. Ends
    with exit code 2 where the run would fail, all reasons listed.

    \b
    Examples:
      jigsaw-forecast check nature-run --init 2026-06-24T00
      jigsaw-forecast check nature-run --init 2011-10-11T00 --input gfs.grb --regrid
      jigsaw-forecast check wm-025 --init latest --input open-data: --mesh domain=4 --json
    """
    from jigsaw_forecast.checkpoint.format import find_checkpoint, read_manifest
    from jigsaw_forecast.cli import parse
    from jigsaw_forecast.data.acquisition import resolve_latest

    problems: list[str] = []
    config = read_manifest(find_checkpoint(checkpoint)).architecture
    numbers = tuple(range(members))
    with parse.collected(problems):
        init_times = parse.parse_init_times(
            init, lambda: resolve_latest(input_spec, config.prognostic_fields, numbers)
        )
    with parse.collected(problems):
        span = parse.parse_duration(lead_time)
    with parse.collected(problems):
        frequency = parse.parse_optional_duration(output_frequency, "--output-frequency")
    with parse.collected(problems):
        degrees = parse.parse_mesh(mesh)
    if problems:
        raise ForecastError("\n".join(problems))
    from jigsaw_forecast.forecast.check import CheckRequest, check_run

    report = check_run(
        CheckRequest(
            checkpoint=checkpoint,
            init_times=init_times,
            lead_time=span,
            input=input_spec,
            outputs=tuple(output or (DEFAULT_OUTPUT,)),
            variables=variables,
            output_frequency=frequency,
            write_initial_state=write_initial_state,
            mesh=degrees,
            device=device.value,
            device_kind=device_kind,
            precision=precision.value,
            weights=weights.value,
            regrid=regrid,
            overwrite=overwrite,
            members=numbers,
            with_values=not headers_only,
            with_digests=not headers_only,
        )
    )
    typer.echo(json.dumps(report.as_json(), indent=1) if as_json else "\n".join(report.lines()))
    if not report.fits:
        raise ForecastError(report.problems_text())
    return None
