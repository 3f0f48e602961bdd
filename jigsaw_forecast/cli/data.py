"""`jigsaw-forecast data`: making and preparing data."""

import json
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jigsaw_forecast.errors import ForecastError, RecipeError

if TYPE_CHECKING:
    from jigsaw_forecast.data.convert_fields import Selection
    from jigsaw_forecast.data.store import Period
    from jigsaw_forecast.model.config import ModelConfig

# The library is imported where a command needs it: xarray and eccodes take seconds and --help
# must not wait.


class Codec(StrEnum):
    """How chunks are compressed."""

    LZ4 = "lz4"
    ZSTD = "zstd"


def nature_run(
    output: Annotated[Path, typer.Argument(metavar="OUT.zarr", help="Store to write.")],
    years: Annotated[int, typer.Option("--years", min=1, help="Years to simulate.")] = 10,
    end_year: Annotated[int, typer.Option("--end-year", help="The last of them.")] = 2026,
    grid: Annotated[
        str, typer.Option("--grid", metavar="LONxLAT", help="Regular grid without pole rows.")
    ] = "64x32",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed, other weather.")] = 0,
    spinup_days: Annotated[
        int, typer.Option("--spinup-days", min=1, help="Days simulated and thrown away first.")
    ] = 90,
    days: Annotated[
        int | None,
        typer.Option("--days", min=1, help="Only the first so many days, to try it out."),
    ] = None,
) -> None:
    """Simulates years of weather to train on, about 4 minutes of one core per year.

    The same command goes on with a run that was stopped. It needs the environment that
    `make nature` makes. The planet is simulated: it is not the Earth.

    \b
    Examples:
      jigsaw-forecast data nature-run nature.zarr --years 10 --grid 64x32
      jigsaw-forecast data nature-run month.zarr --years 1 --days 30 --spinup-days 30
    """
    # the subprocess machinery and its parsing are not needed for --help
    from jigsaw_forecast.data.nature_run import run_nature_run

    run_nature_run(
        output,
        num_years=years,
        end_year=end_year,
        grid=grid,
        seed=seed,
        spinup_days=spinup_days,
        num_days=days,
    )


Fields = Annotated[
    str,
    typer.Option(
        "--fields", metavar="z500,t850,2t,...", help="Fields to keep; default all that are found."
    ),
]
RecipeOption = Annotated[
    Path | None,
    typer.Option(
        "--recipe", metavar="RECIPE", help="Keep what this recipe trains on, cut for its model."
    ),
]
PeriodOption = Annotated[
    str,
    typer.Option(
        "--period",
        metavar="START/END",
        help="Times, both included to their last moment; 1979/2019 ends with 2019. Default: all.",
    ),
]
Processes = Annotated[
    int | None,
    typer.Option("--processes", min=1, help="Workers; default one for each core."),
]
Json = Annotated[bool, typer.Option("--json", help="Print a JSON report.")]


def convert(
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="IN...", help="zarr stores, GRIB or netCDF files; type by content."),
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT.zarr", help="Training set to write.")],
    fields: Fields = "",
    recipe: RecipeOption = None,
    period: PeriodOption = "",
    interval: Annotated[
        str, typer.Option("--interval", help="Between times; others of finer input are left out.")
    ] = "6h",
    grid: Annotated[
        str, typer.Option("--grid", metavar="LONxLAT", help="Regrid to this regular grid.")
    ] = "",
    statics: Annotated[
        Path | None,
        typer.Option(
            "--statics", metavar="PATH", help="File with land-sea mask and surface geopotential."
        ),
    ] = None,
    member: Annotated[
        int | None, typer.Option("--member", help="Ensemble member, where there are several.")
    ] = None,
    bands: Annotated[
        int | None,
        typer.Option("--bands", min=1, help="Latitude bands that ranks read apart; default <= 16."),
    ] = None,
    codec: Annotated[Codec, typer.Option("--codec", help="lz4 is fast, zstd smaller.")] = Codec.LZ4,
    processes: Processes = None,
    allow_gaps: Annotated[
        bool, typer.Option("--allow-gaps", help="Convert although times are missing.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.zarr.")] = False,
    as_json: Json = False,
) -> None:
    """Converts weather data to a training set that each rank reads its own part of.

    Takes WeatherBench 2 and ARCO-ERA5 zarr stores and GRIB or netCDF files, several of them where
    they share out times or fields. The same command goes on with a conversion that was stopped.

    \b
    Example:
      jigsaw-forecast data convert era5-1440x721.zarr training.zarr
        --recipe recipes/wm-3.2b_era5-0.25_256gpu.toml --period 1979-01-01/2019-12-31
    """
    from jigsaw_forecast.data.convert import ConvertRequest
    from jigsaw_forecast.data.convert import convert as run

    model = _model_of(recipe)
    request = ConvertRequest(
        inputs=tuple(inputs),
        output=output,
        selection=_selection(fields, grid, member, model),
        model_grid=model.grid_object if model else None,
        period=_period(period),
        interval_hours=_hours(interval),
        step_hours=model.step_hours if model else max(6, _hours(interval)),
        num_bands=bands,
        patch_rows=model.patch[0] if model else 1,
        codec=codec.value,
        num_processes=processes or os.cpu_count() or 1,
        allow_gaps=allow_gaps,
        overwrite=overwrite,
        statics=statics,
    )
    if output.suffix != ".zarr":
        raise ForecastError(f"{output}: the name of a training set ends in .zarr")
    header = run(request)
    if as_json:
        typer.echo(json.dumps({"output": str(output), **header.to_attributes()}, indent=1))


def statistics(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Training set or other store.")],
    period: PeriodOption = "",
    recipe: RecipeOption = None,
    fields: Fields = "",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FILE.safetensors",
            help="Write the statistics that training normalises with, for data.statistics.",
        ),
    ] = None,
    processes: Processes = None,
    as_json: Json = False,
) -> None:
    """Makes the statistics of a store again and compares them with those stored beside it.

    Reads every value once, checks all checksums, and shows mean, deviation and 6 h change of each
    field over the period. Exit code 2 where a training set's own statistics or digest differ.

    \b
    Example:
      jigsaw-forecast data statistics training.zarr
      jigsaw-forecast data statistics training.zarr --recipe recipes/wm-3.2b_era5-0.25_8gpu.toml
        --output statistics.safetensors
    """
    from jigsaw_forecast.data.recompute import StatisticsRequest, compare_statistics

    model = _model_of(recipe)
    chosen = _selection(fields, "", None, model)
    report = compare_statistics(
        StatisticsRequest(
            store=store,
            fields=chosen.fields,
            num_diagnostics=len(model.diagnostics) if model else 0,
            period=_period(period or _train_period(recipe)),
            step_hours=model.step_hours if model else 6,
            output=output,
            num_processes=processes or os.cpu_count() or 1,
        )
    )
    typer.echo(json.dumps(report.to_json(), indent=1) if as_json else report.to_text())
    report.check()


def _model_of(recipe: Path | None) -> "ModelConfig | None":
    """The model of a training recipe."""
    if recipe is None:
        return None
    from jigsaw_forecast.recipe import load_recipe
    from jigsaw_forecast.train.schema import TrainRecipe

    model = load_recipe(recipe, TrainRecipe).model
    model.check()
    return model


def _train_period(recipe: Path | None) -> str:
    """`data.train` of a recipe."""
    if recipe is None:
        return ""
    from jigsaw_forecast.recipe import load_recipe
    from jigsaw_forecast.train.schema import TrainRecipe

    return load_recipe(recipe, TrainRecipe).data.train


def _selection(
    fields: str, grid: str, member: int | None, model: "ModelConfig | None"
) -> "Selection":
    """Fields by name, or those of a model, whose grid is then the one to be on.

    Raises:
        RecipeError: A field is named that the recipe's model does not have, or another grid.
    """
    from jigsaw_forecast.data.convert_fields import Selection
    from jigsaw_forecast.grid import Grid
    from jigsaw_forecast.model.config import fields_from_names

    names = [part.strip() for part in fields.split(",") if part.strip()]
    try:
        named = fields_from_names(names)
    except ForecastError as error:
        raise ForecastError(f"--fields: {error}") from None
    target = Grid.parse(grid) if grid else None
    if model is None:
        return Selection(named, target, member)
    held = (*model.prognostic_fields, *model.diagnostic_fields)
    lacking = [str(field) for field in held if named and field not in named]
    if lacking:
        raise RecipeError(f"--fields leaves out fields of the recipe: missing {', '.join(lacking)}")
    if target is not None and target != model.grid_object:
        raise RecipeError(f"--grid {grid}, but the recipe's model has {model.grid}")
    return Selection(named or held, target, member)


def _period(text: str) -> "Period | None":
    from jigsaw_forecast.data.store import Period

    if not text:
        return None
    try:
        return Period.parse(text)
    except ValueError as error:
        raise ForecastError(f"--period {error}") from None


def _hours(text: str) -> int:
    """Hours of `6h`, `1d` or `6`."""
    number = text.strip().removesuffix("h").removesuffix("d")
    factor = 24 if text.strip().endswith("d") else 1
    if not number.isdigit() or int(number) < 1:
        raise ForecastError(f"--interval {text!r} is not hours, such as 6h")
    return int(number) * factor
