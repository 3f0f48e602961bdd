"""`jigsaw-forecast data climatology`: means by hour and day of year."""

from pathlib import Path
from typing import Annotated

import typer


def climatology(
    truth: Annotated[
        list[Path],
        typer.Argument(metavar="TRUTH...", help="Analyses: zarr, netCDF, GRIB or folders of them."),
    ],
    output: Annotated[Path, typer.Option("--output", metavar="OUT.zarr", help="Store to write.")],
    years: Annotated[
        str | None,
        typer.Option("--years", metavar="START/END", help="1990/2019 or dates. Default: all."),
    ] = None,
    hours: Annotated[
        str | None,
        typer.Option("--hours", metavar="LIST", help="0,6,12,18. Default: those of the truth."),
    ] = None,
    window: Annotated[
        int, typer.Option("--window", metavar="DAYS", help="Width of the triangular window, odd.")
    ] = 61,
    variables: Annotated[
        str | None, typer.Option("--variables", metavar="LIST", help="z500,2t,u. Default: all.")
    ] = None,
    levels: Annotated[
        str | None, typer.Option("--levels", metavar="LIST", help="500,850. Default: all.")
    ] = None,
    resolution: Annotated[
        str | None,
        typer.Option("--resolution", metavar="LONxLAT", help="Regrid conservatively first."),
    ] = None,
    seeps: Annotated[
        bool, typer.Option("--seeps", help="Also thresholds of precipitation, for SEEPS.")
    ] = False,
    precision: Annotated[
        str,
        typer.Option("--precision", metavar="NAME", help="float64, or float32 at half the size."),
    ] = "float64",
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Average over what there is where times lack.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing store.")
    ] = False,
) -> None:
    """Averages analyses by hour and day of year, as WeatherBench 2 does.

    Each of the 366 days is the mean over all years and a triangular window of 61 days around it.
    `score --climatology` takes the result for ACC, SEEPS and the climatology baseline.

    \b
    Example:
      jigsaw-forecast data climatology era5.zarr --years 1990/2019 --output climatology.zarr
    """
    # numpy, xarray and zarr take a second to import and --help must not wait
    from jigsaw_forecast.cli.parse import collected
    from jigsaw_forecast.cli.score_options import parse_numbers, parse_period
    from jigsaw_forecast.errors import ForecastError
    from jigsaw_forecast.grid import Grid
    from jigsaw_forecast.verify.make_climatology import ClimatologyRequest, make_climatology

    problems: list[str] = []
    period = some_hours = some_levels = grid = None
    with collected(problems):
        period = parse_period(years, "--years")
    with collected(problems):
        some_hours = parse_numbers(hours, "--hours")
    with collected(problems):
        some_levels = parse_numbers(levels, "--levels")
    with collected(problems):
        grid = Grid.parse(resolution) if resolution else None
    if precision not in ("float64", "float32"):
        problems.append(f"--precision {precision}: expected float64 or float32")
    if problems:
        raise ForecastError("\n".join(problems))
    request = ClimatologyRequest(
        truth=tuple(truth),
        output=output,
        years=period,
        hours=tuple(int(one) for one in some_hours) if some_hours is not None else None,
        window_days=window,
        variables=variables,
        levels=some_levels,
        resolution=grid,
        with_seeps=seeps,
        precision=precision,
        allow_missing=allow_missing,
        overwrite=overwrite,
    )
    typer.echo(make_climatology(request))
