"""`jigsaw-forecast score`: forecasts against truth, by the conventions of WeatherBench 2."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from jigsaw_forecast.verify.request import ScoreRequest

_SOURCE = "zarr, netCDF or GRIB by content, or a folder of them; repeatable."
# headline of the summary on the terminal
_SHOWN = (
    ("geopotential", 500),
    ("temperature", 850),
    ("2m_temperature", None),
    ("10m_wind_vector", None),
    ("mean_sea_level_pressure", None),
)


def score(
    context: typer.Context,
    output: Annotated[
        Path, typer.Option("--output", metavar="DIR", help="Folder for scores and report.")
    ],
    forecast: Annotated[
        list[Path] | None,
        typer.Option("--forecast", metavar="PATH", help=f"Forecast: {_SOURCE} Or `persistence`."),
    ] = None,
    truth: Annotated[
        list[Path] | None, typer.Option("--truth", metavar="PATH", help=f"Analyses: {_SOURCE}")
    ] = None,
    climatology: Annotated[
        Path | None,
        typer.Option(
            "--climatology", metavar="PATH", help="For ACC, SEEPS and the climatology baseline."
        ),
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option("--compare", metavar="NAME=PATH", help="Another forecast; repeatable."),
    ] = None,
    compare_truth: Annotated[
        list[str] | None,
        typer.Option(
            "--compare-truth",
            metavar="NAME=PATH",
            help="Another truth for one of them; needs --force.",
        ),
    ] = None,
    init_times: Annotated[
        str | None, typer.Option("--init-times", metavar="START/END", help="Both ends included.")
    ] = None,
    init_hours: Annotated[
        str | None, typer.Option("--init-hours", metavar="LIST", help="Such as 0,12. Default: all.")
    ] = None,
    lead_times: Annotated[
        str | None, typer.Option("--lead-times", metavar="LIST", help="6h,1d,10d. Default: all.")
    ] = None,
    variables: Annotated[
        str | None, typer.Option("--variables", metavar="LIST", help="z500,2t,u. Default: all.")
    ] = None,
    levels: Annotated[
        str | None, typer.Option("--levels", metavar="LIST", help="500,700,850. Default: all.")
    ] = None,
    regions: Annotated[
        str | None, typer.Option("--regions", metavar="LIST", help="global,europe. Default: all.")
    ] = None,
    resolution: Annotated[
        str | None,
        typer.Option(
            "--resolution",
            metavar="LONxLAT",
            help="Regrid all conservatively, to 240x121 or 64x32 as WeatherBench 2 does.",
        ),
    ] = None,
    baselines: Annotated[
        str,
        typer.Option(
            "--baselines",
            metavar="LIST",
            help="Of persistence, climatology, probabilistic-climatology; or none.",
        ),
    ] = "persistence,climatology",
    climatology_years: Annotated[
        str | None,
        typer.Option(
            "--climatology-years", metavar="START/END", help="Members of probabilistic-climatology."
        ),
    ] = None,
    skipna: Annotated[
        bool, typer.Option("--skipna", help="Leave missing values out of means.")
    ] = False,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Score what there is where pairs are missing.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Make comparisons that are not like for like, labelled.")
    ] = False,
    spectra: Annotated[bool, typer.Option("--spectra/--no-spectra", help="Energy spectra.")] = True,
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Draw report.html and its pictures.")
    ] = True,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Processes. Default: cores, 1 for little work."),
    ] = None,
    merge: Annotated[
        list[Path] | None,
        typer.Option(
            "--merge", metavar="DIR", help="Merge scores of other initial times; repeatable."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a score that was stopped.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the score in --output.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Headline scores as JSON.")] = False,
) -> None:
    """Scores forecasts by region, lead time and level, and draws a report.

    \b
    Examples:
      jigsaw-forecast score --forecast forecast.zarr --truth era5.zarr --climatology clim.zarr \\
                            --compare hres=hres.zarr --output scores
      jigsaw-forecast score --merge january --merge february --output scores
    """
    # numpy, xarray and netCDF4 take a second to import and --help must not wait
    from jigsaw_forecast.cli.options import command_line
    from jigsaw_forecast.cli.score_options import ScoreOptions, make_request
    from jigsaw_forecast.errors import ForecastError
    from jigsaw_forecast.verify.score import merge_scores
    from jigsaw_forecast.verify.score import score as run_score

    command = tuple(command_line(context))
    if merge:
        if forecast or truth:
            raise ForecastError("--merge takes scores that are made; leave --forecast and --truth")
        merge_scores(merge, output, overwrite=overwrite, with_report=report, command=command)
    else:
        options = ScoreOptions(
            forecast=forecast,
            truth=truth,
            climatology=climatology,
            compare=compare,
            compare_truth=compare_truth,
            init_times=init_times,
            init_hours=init_hours,
            lead_times=lead_times,
            variables=variables,
            levels=levels,
            regions=regions,
            resolution=resolution,
            baselines=baselines,
            climatology_years=climatology_years,
        )
        request: ScoreRequest = make_request(
            options,
            output=output,
            skipna=skipna,
            allow_missing=allow_missing,
            force=force,
            with_spectra=spectra,
            with_report=report,
            workers=workers,
            resume=resume,
            overwrite=overwrite,
            command=command,
        )
        if run_score(request) is None:
            return  # another rank has the results
    _report(output, as_json)


def _report(output: Path, as_json: bool) -> None:
    """Says where the scores are, and the headline ones."""
    import xarray as xr

    with xr.open_dataset(output / "scores.nc") as scores:
        rows = _headline(scores)
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        at = f" {row['level']} hPa" if row["level"] is not None else ""
        values = ", ".join(f"{lead} h {value:.4g}" for lead, value in row["rmse"].items())
        typer.echo(f"rmse {row['variable']}{at} in {row['units']}: {values}")
    typer.echo(output)


def _headline(scores: Any) -> list[dict[str, Any]]:
    rows = []
    hours = [int(one) for one in scores["lead_time"].values]
    wanted = [one for one in (6, 24, 72, 120, 168, 240) if one in hours] or hours[:6]
    region = "global" if "global" in scores["region"].values else scores["region"].values[0]
    for variable, level in _SHOWN:
        if variable not in scores:
            continue
        found = scores[variable].sel(metric="rmse", region=region)
        if level is not None:
            if level not in scores["level"].values:
                continue
            found = found.sel(level=level)
        values = {lead: float(found.sel(lead_time=lead)) for lead in wanted}
        rows.append(
            {
                "variable": variable,
                "level": level,
                "region": str(region),
                "units": str(scores[variable].attrs.get("units") or "unknown units"),
                "rmse": values,
            }
        )
    return rows
