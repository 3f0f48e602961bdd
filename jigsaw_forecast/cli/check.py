"""`jigsaw-forecast check`: whether a run would succeed, and what it would take."""

import json
from typing import Annotated

import typer

from jigsaw_forecast.cli import forecast_options as shared
from jigsaw_forecast.cli.forecast_options import (
    DEFAULT_LEAD_TIME,
    Device,
    ForecastOptions,
    Precision,
    Weights,
)
from jigsaw_forecast.errors import ForecastError

# The library is imported where a command needs it: torch takes seconds and --help must not wait.


def check(  # typer reads the options off the signature
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="Checkpoint: name or folder.")
    ],
    init: shared.Init,
    input_spec: shared.Input = None,
    lead_time: shared.LeadTime = DEFAULT_LEAD_TIME,
    output: shared.Output = None,
    variables: shared.Variables = None,
    output_frequency: shared.OutputFrequency = None,
    write_initial_state: shared.InitialState = False,
    mesh: shared.MeshDegrees = "",
    device: shared.DeviceChoice = Device.AUTO,
    device_kind: Annotated[
        str,
        typer.Option(
            "--device-kind", metavar="KIND", help="Check for another machine: a100, h100, h200."
        ),
    ] = "",
    precision: shared.PrecisionChoice = Precision.FLOAT32,
    weights: shared.WeightsChoice = Weights.RESIDENT,
    regrid: shared.Regrid = False,
    grib: shared.Grib = "",
    members: shared.Members = 0,
    truth: shared.Truth = None,
    climatology: shared.Climatology = None,
    allow_missing: shared.AllowMissing = False,
    overwrite: shared.Overwrite = False,
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
    asked = options.parsed()
    from jigsaw_forecast.forecast.check import check_run
    from jigsaw_forecast.forecast.request import CheckRequest

    report = check_run(
        CheckRequest(
            **asked,
            device_kind=device_kind,
            with_values=not headers_only,
            with_digests=not headers_only,
        )
    )
    typer.echo(json.dumps(report.as_json(), indent=1) if as_json else "\n".join(report.lines()))
    if not report.fits:
        raise ForecastError(report.problems_text())
    return None
