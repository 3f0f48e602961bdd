"""`jigsaw-forecast checkpoint`: makes and checks checkpoints."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jigsaw_forecast.errors import RecipeError

if TYPE_CHECKING:
    from jigsaw_forecast.model.config import ModelConfig

# The library is imported where a command needs it: torch takes seconds and --help must not wait.


class Dtype(StrEnum):
    """In what a checkpoint keeps its matrices."""

    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


def new(
    preset: Annotated[
        str,
        typer.Argument(
            metavar="PRESET|RECIPE",
            help="Architecture: the name of a preset (wm-3.2b) or a recipe (.toml) with [model].",
        ),
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    dtype: Annotated[Dtype, typer.Option("--dtype", help="Of the matrices.")] = Dtype.BFLOAT16,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the weights.")] = 0,
    statics: Annotated[
        Path | None,
        typer.Option(
            "--statics",
            metavar="STORE",
            help="Zarr store with the land-sea mask and orography. Default: zero.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
) -> None:
    """Makes a checkpoint of an untrained model, shard by shard, in little memory.

    Its statistics are placeholders and its head is zero: a forecast repeats its initial state.
    For trying out meshes and machines at full size.

    \b
    Example:
      jigsaw-forecast checkpoint new wm-3.2b --dtype bfloat16 checkpoints/wm-3.2b
    """
    import torch

    from jigsaw_forecast.checkpoint.create import create_checkpoint
    from jigsaw_forecast.checkpoint.progress import format_bytes

    config = _architecture(preset)
    manifest = create_checkpoint(
        output, config, dtype=getattr(torch, dtype), seed=seed, origin=preset, statics=statics
    )
    num_bytes = sum(shard.num_bytes for shard in manifest.shards.values())
    if as_json:
        report = {
            "checkpoint": str(output),
            "parameters": manifest.num_parameters,
            "dtype": manifest.dtype,
            "bytes": num_bytes,
            "shards": len(manifest.shards),
            "notice": manifest.notice,
        }
        typer.echo(json.dumps(report))
        return
    typer.echo(
        f"{output}: {manifest.num_parameters} parameters in {manifest.dtype}, "
        f"{format_bytes(num_bytes)} in {len(manifest.shards)} shards\n{manifest.notice}"
    )


def _architecture(name: str) -> "ModelConfig":
    """The architecture of a preset or of a training recipe.

    Raises:
        RecipeError: There is no such preset, or the recipe is wrong.
    """
    from jigsaw_forecast.model.config import PRESETS

    if name in PRESETS:
        return PRESETS[name]
    if not name.endswith(".toml"):
        raise RecipeError(
            f"unknown preset {name!r}; presets are {', '.join(PRESETS)}, and a recipe's name ends "
            "in .toml"
        )
    from jigsaw_forecast.recipe import load_recipe
    from jigsaw_forecast.train.schema import TrainRecipe

    return load_recipe(Path(name), TrainRecipe).model


def verify(
    checkpoint: Annotated[
        str, typer.Argument(metavar="NAME|DIR", help="Checkpoint to read through.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
) -> None:
    """Reads all files of a checkpoint, several at once, and compares them with their digests.

    \b
    Example:
      jigsaw-forecast checkpoint verify nature-run
    """
    from jigsaw_forecast.checkpoint.format import find_checkpoint, verify_digests

    folder = find_checkpoint(checkpoint)
    manifest = verify_digests(folder)
    if as_json:
        report = {
            "checkpoint": str(folder),
            "intact": True,
            "shards": len(manifest.shards),
            "bytes": sum(shard.num_bytes for shard in manifest.shards.values()),
        }
        typer.echo(json.dumps(report))
    else:
        typer.echo(f"{folder}: all files match their digests")
