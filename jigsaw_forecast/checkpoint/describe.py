"""What a checkpoint is, for people and programs that only read `model.json`."""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch

from jigsaw_forecast.checkpoint.blocks import bytes_to_read, parts_to_read
from jigsaw_forecast.checkpoint.format import (
    ITEM_BYTES,
    Manifest,
    check_complete,
    read_manifest,
)
from jigsaw_forecast.model.weather_mixer import WeatherMixer
from jigsaw_forecast.parallel.mesh import AXIS_NAMES, Axis, Mesh, single_rank_mesh


def describe_checkpoint(folder: Path, degrees: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Architecture, grid, fields, sizes, provenance, licence and digests; reads no weights.

    Args:
        folder: Of the checkpoint.
        degrees: Of all mesh axes; what each rank of one model group would hold and read is added.

    Raises:
        CheckpointError: `model.json` cannot be read, is of another version, or lists other tensors
            than its architecture needs.
        MeshError: The mesh does not divide the model.
    """
    manifest = read_manifest(folder)
    config = manifest.architecture
    grid = config.grid_object
    description = {
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
        "bytes": sum(shard.num_bytes for shard in manifest.shards.values()),
        "digest": manifest.digest,
    }
    if degrees is not None:
        description["mesh"] = {**degrees, "ranks": describe_ranks(folder, manifest, degrees)}
    return description


def describe_ranks(
    folder: Path, manifest: Manifest, degrees: Mapping[str, int]
) -> list[dict[str, int]]:
    """What each rank of the first model group stores of the parameters and reads in all.

    Args:
        folder: Of the checkpoint.
        manifest: Its `model.json`.
        degrees: Of all mesh axes.

    Raises:
        CheckpointError: The manifest lists other tensors than its architecture needs.
        MeshError: The mesh does not divide the model.
    """
    config = manifest.architecture
    config.check_mesh(degrees["domain"], degrees["tensor"])
    layouts = WeatherMixer(config, single_rank_mesh("meta"), seed=None).layouts()
    check_complete(folder, manifest, {name: lay.full_shape for name, lay in layouts.items()})
    sizes = {**degrees, "model": degrees["domain"] * degrees["tensor"]}
    data, domains, tensors, model = (
        Axis(name, sizes[name], 0, None) for name in (*AXIS_NAMES, "model")
    )
    group = Mesh(data, domains, tensors, model, torch.device("meta"))
    ranks = []
    for domain in range(group.domain.size):
        for tensor in range(group.tensor.size):
            mesh = group.at(domain, tensor)
            stored = sum(
                prod(layout.piece_shape(mesh)) * ITEM_BYTES[manifest.tensors[name].dtype]
                for name, layout in layouts.items()
            )
            ranks.append(
                {
                    "rank": mesh.rank,
                    "domain": domain,
                    "tensor": tensor,
                    "parameter_bytes": stored,
                    "bytes_to_read": bytes_to_read(
                        manifest, parts_to_read(manifest, layouts, mesh)
                    ),
                }
            )
    return ranks
