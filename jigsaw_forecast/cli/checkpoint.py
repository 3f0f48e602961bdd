"""`jigsaw-forecast checkpoint`: checks of checkpoints."""

import json
from typing import Annotated

import typer


def verify(
    checkpoint: Annotated[
        str, typer.Argument(metavar="NAME|DIR", help="Checkpoint to read through.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
) -> None:
    """Reads all files of a checkpoint and compares them with their digests.

    \b
    Example:
      jigsaw-forecast checkpoint verify nature-run
    """
    # torch and safetensors take seconds to import and --help must not wait
    from jigsaw_forecast.checkpoint.format import find_checkpoint, verify_digests

    folder = find_checkpoint(checkpoint)
    verify_digests(folder)
    if as_json:
        typer.echo(json.dumps({"checkpoint": str(folder), "intact": True}))
    else:
        typer.echo(f"{folder}: all files match their digests")
