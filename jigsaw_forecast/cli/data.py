"""`jigsaw-forecast data`: making and preparing data."""

from pathlib import Path
from typing import Annotated

import typer


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
) -> None:
    """Simulates years of weather to train on, about 4 minutes of one core per year.

    The same command goes on with a run that was stopped. It needs the environment that
    `make nature` makes. The planet is simulated: it is not the Earth.

    \b
    Example:
      jigsaw-forecast data nature-run nature.zarr --years 10 --grid 64x32
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
    )
