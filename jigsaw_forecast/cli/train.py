"""`jigsaw-forecast train`: training with a recipe."""

import math
from pathlib import Path
from typing import Annotated

import typer

from jigsaw_forecast.cli.options import command_line
from jigsaw_forecast.cli.run import Device
from jigsaw_forecast.parallel.launch import ensure_ranks

# The library is imported where a command needs it: torch takes seconds and --help must not wait.


def train(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="TOML file of the whole run.")],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change any key of the recipe; may be repeated."
        ),
    ] = None,
    mesh: Annotated[
        str,
        typer.Option(
            "--mesh",
            metavar="AXIS=DEGREE,...",
            help="Ranks to train on: data=1,domain=2,tensor=1. Axes: data, domain, tensor.",
        ),
    ] = "",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="DIR",
            help="Folder for metrics and checkpoints; by default outputs/ and RECIPE's name.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with what OUTPUT holds, or start where empty.")
    ] = False,
    max_steps: Annotated[
        int | None,
        typer.Option("--max-steps", min=1, help="Stop after so many steps of the recipe and save."),
    ] = None,
    device: Annotated[Device, typer.Option("--device", help="Where to compute.")] = Device.AUTO,
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Trace a few train steps of every rank to DIR/profile."),
    ] = False,
) -> int | None:
    """Trains a model with a recipe.

    SIGTERM ends the train step in progress, saves, leaves the file DIR/REQUEUE and exits 3;
    --resume goes on from the last checkpoint, on the same mesh or another.

    \b
    Example:
      jigsaw-forecast train recipes/nature-run_train_cpu.toml --output outputs/nature-run
      jigsaw-forecast train recipes/nature-run_train_cpu.toml --set train.log_every=1 --max-steps 5
    """
    from jigsaw_forecast.cli.parse import parse_mesh

    degrees = parse_mesh(mesh)
    _check_before_launch(recipe, settings or [], degrees)
    exit_code = ensure_ranks(math.prod(degrees.values()), command_line(context))
    if exit_code is not None:
        return exit_code
    from jigsaw_forecast.train.run import train_recipe

    train_recipe(
        recipe,
        settings=settings or [],
        mesh=degrees,
        output=output,
        resume=resume,
        max_steps=max_steps,
        device=device.value,
        profile=profile,
    )
    return None


def _check_before_launch(recipe: Path, settings: list[str], degrees: dict[str, int]) -> None:
    """Refuses a wrong recipe or mesh before ranks are started for it."""
    # neither module imports torch, which would make a refusal take seconds
    from jigsaw_forecast.recipe import load_recipe
    from jigsaw_forecast.train.schema import TrainRecipe

    config = load_recipe(recipe, TrainRecipe, settings).model
    config.check()
    config.check_mesh(degrees.get("domain", 1), degrees.get("tensor", 1))
