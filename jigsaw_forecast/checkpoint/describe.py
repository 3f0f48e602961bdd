"""What a checkpoint is, for people and programs that only read `model.json`."""

from pathlib import Path
from typing import Any

from jigsaw_forecast.checkpoint.format import read_manifest


def describe_checkpoint(folder: Path) -> dict[str, Any]:
    """Architecture, grid, fields, sizes, provenance, licence and digests; reads no weights.

    Raises:
        CheckpointError: `model.json` cannot be read or is of another version.
    """
    manifest = read_manifest(folder)
    config = manifest.architecture
    grid = config.grid_object
    return {
        "name": manifest.name,
        "folder": str(folder),
        "format_version": manifest.format_version,
        "notice": manifest.notice,
        "licence": manifest.licence,
        "parameters": manifest.num_parameters,
        "dtype": manifest.dtype,
        "grid": {
            "name": config.grid,
            "rows": grid.num_lat,
            "columns": grid.num_lon,
            "poles": grid.has_poles,
            "model_rows": grid.num_model_lat,
            "token_rows": config.token_rows,
            "token_columns": config.token_columns,
        },
        "architecture": {
            "patch": config.patch,
            "overlap": config.overlap,
            "channels": config.channels,
            "token_hidden": config.token_hidden,
            "channel_hidden": config.channel_hidden,
            "num_blocks": config.num_blocks,
            "step_hours": config.step_hours,
        },
        "fields": list(config.fields),
        "diagnostics": list(config.diagnostics),
        "forcings": list(config.forcings),
        "plausible": {name: list(bounds) for name, bounds in manifest.plausible.items()},
        "provenance": manifest.provenance,
        "shards": {
            name: {"bytes": shard.num_bytes, "sha256": shard.sha256}
            for name, shard in manifest.shards.items()
        },
    }
