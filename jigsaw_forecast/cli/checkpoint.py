"""`jigsaw-forecast checkpoint`: makes and checks checkpoints."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jigsaw_forecast.errors import RecipeError

if TYPE_CHECKING:
    from jigsaw_forecast.checkpoint.format import Manifest
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

    config = _architecture(preset)
    manifest = create_checkpoint(
        output, config, dtype=getattr(torch, dtype), seed=seed, origin=preset, statics=statics
    )
    _report_made(output, manifest, as_json=as_json)


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


class WeightKind(StrEnum):
    """Which weights of a training checkpoint to export."""

    AVERAGE = "average"
    RAW = "raw"


def export(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="TRAIN_CKPT",
            help="A training checkpoint: OUTPUT/checkpoints/step-00001000, .../latest or .../best.",
        ),
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    weights: Annotated[
        WeightKind,
        typer.Option("--weights", help="The moving average, or what the optimizer moves."),
    ] = WeightKind.AVERAGE,
    dtype: Annotated[Dtype, typer.Option("--dtype", help="Of the matrices.")] = Dtype.BFLOAT16,
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
) -> None:
    """Makes an inference checkpoint of a training checkpoint, from its float32 weights.

    All files are compared with their digests first. In memory is one tensor at a time.

    \b
    Example:
      jigsaw-forecast checkpoint export outputs/nature-run/checkpoints/best checkpoints/mine
    """
    import torch

    from jigsaw_forecast.checkpoint.export import export_checkpoint

    manifest = export_checkpoint(
        source, output, is_raw=weights is WeightKind.RAW, dtype=getattr(torch, dtype)
    )
    _report_made(output, manifest, as_json=as_json)


def verify(
    checkpoint: Annotated[
        str, typer.Argument(metavar="NAME|DIR", help="Checkpoint to read through.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
) -> None:
    """Reads all files of a checkpoint, several at once, and compares them with their digests.

    Of a training checkpoint, what training goes on from too.

    \b
    Example:
      jigsaw-forecast checkpoint verify nature-run
    """
    from jigsaw_forecast.checkpoint.format import find_checkpoint, verify_digests
    from jigsaw_forecast.checkpoint.training import (
        is_training_checkpoint,
        verify_training_checkpoint,
    )

    folder = find_checkpoint(checkpoint)
    manifest = verify_digests(folder)
    files = dict(manifest.shards)
    if is_training_checkpoint(folder):
        files = verify_training_checkpoint(folder).files
    if as_json:
        report = {
            "checkpoint": str(folder),
            "intact": True,
            "shards": len(manifest.shards),
            "files": len(files),
            "bytes": sum(record.num_bytes for record in files.values()),
        }
        typer.echo(json.dumps(report))
    else:
        typer.echo(f"{folder}: all files match their digests")


def _report_made(folder: Path, manifest: "Manifest", *, as_json: bool) -> None:
    """Says what a checkpoint that was just made holds."""
    from jigsaw_forecast.checkpoint.progress import format_bytes

    num_bytes = sum(shard.num_bytes for shard in manifest.shards.values())
    if as_json:
        report = {
            "checkpoint": str(folder),
            "parameters": manifest.num_parameters,
            "dtype": manifest.dtype,
            "bytes": num_bytes,
            "shards": len(manifest.shards),
            "notice": manifest.notice,
        }
        typer.echo(json.dumps(report))
        return
    text = (
        f"{folder}: {manifest.num_parameters} parameters in {manifest.dtype}, "
        f"{format_bytes(num_bytes)} in {len(manifest.shards)} shards\n{manifest.notice}"
    )
    typer.echo(text.rstrip())
