"""`jigsaw-forecast plot`: maps of a forecast."""

from pathlib import Path
from typing import Annotated

import typer


def plot(
    forecast: Annotated[
        Path, typer.Argument(metavar="FORECAST", help="Forecast that `run` has written.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="PNG", help="Picture to write. Default: FORECAST's name with .png."
        ),
    ] = None,
    variables: Annotated[
        str | None, typer.Option("--variables", metavar="LIST", help="Fields to draw: z500,2t.")
    ] = None,
    lead_times: Annotated[
        str | None,
        typer.Option(
            "--lead-times",
            metavar="LIST",
            help="0,1d,3d,5d,10d. Default: these, as far as written; all of less than a day.",
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            "--init", metavar="TIME", help="Which forecast, where the file holds several."
        ),
    ] = None,
    member: Annotated[
        int | None,
        typer.Option("--member", metavar="N", min=0, help="Of an ensemble. Default: its first."),
    ] = None,
) -> None:
    """Draws maps of the initial state and of later days into one picture.

    \b
    Example:
      jigsaw-forecast plot forecast-2026062400.zarr --variables z500,2t --output maps.png
    """
    # matplotlib and xarray take seconds to import and --help must not wait
    from jigsaw_forecast.cli import parse
    from jigsaw_forecast.fields import parse_fields
    from jigsaw_forecast.plot.forecast_maps import plot_forecast
    from jigsaw_forecast.plot.reading import open_maps

    picture = plot_forecast(
        forecast,
        output or forecast.with_suffix(".png"),
        variables=parse_fields(variables, open_maps(forecast).fields) if variables else None,
        lead_times=parse.parse_lead_times(lead_times) if lead_times else None,
        init_time=parse.parse_time(init) if init else None,
        member=member,
    )
    typer.echo(picture)
