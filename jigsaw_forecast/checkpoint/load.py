"""Loads an inference checkpoint onto a mesh; each rank reads only its pieces, each byte once."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from jigsaw_forecast.checkpoint.blocks import bytes_to_read, parts_to_read
from jigsaw_forecast.checkpoint.format import (
    Manifest,
    check_complete,
    damaged_shards,
    is_matrix,
    misfit_shards,
    raise_if_damaged,
    read_manifest,
)
from jigsaw_forecast.checkpoint.progress import ByteProgress
from jigsaw_forecast.checkpoint.reader import CheckpointReader, Damage, describe_damages
from jigsaw_forecast.model.sharded import ShardedModule
from jigsaw_forecast.model.weather_mixer import WeatherMixer
from jigsaw_forecast.parallel.layout import split_range
from jigsaw_forecast.parallel.mesh import Mesh
from jigsaw_forecast.parallel.together import gather_texts, together


@dataclass(frozen=True)
class Normalisation:
    """This rank's piece of what turns physical fields into the model's and back.

    Attributes:
        mean: Mean of each local prognostic field at each grid point, [F_j, Y_i, X].
        std: Deviation of the anomaly of each field, [F_j, 1, 1].
        diagnostic_mean: [D_j, 1, 1].
        diagnostic_std: [D_j, 1, 1].
    """

    mean: torch.Tensor
    std: torch.Tensor
    diagnostic_mean: torch.Tensor
    diagnostic_std: torch.Tensor


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint on this rank.

    Attributes:
        folder: Where it came from.
        manifest: Its model.json.
        model: With this rank's pieces of the weights.
        normalisation: This rank's piece.
        statics: Static fields, whole, each [model rows, X].
        num_bytes_read: Bytes of the shards that this rank read, headers included.
    """

    folder: Path
    manifest: Manifest
    model: WeatherMixer
    normalisation: Normalisation
    statics: dict[str, npt.NDArray[np.float32]]
    num_bytes_read: int


def load_checkpoint(folder: Path, mesh: Mesh, dtype: torch.dtype = torch.float32) -> LoadedModel:
    """Loads a checkpoint; nothing of it is used before all that was read matches its digest.

    Args:
        folder: Of the checkpoint.
        mesh: This rank's mesh.
        dtype: Of the products and of the stored matrices; vectors stay float32.

    Raises:
        CheckpointError: It is damaged or of another version; on every rank, naming every shard
            that is damaged as far as one look tells: all sizes are compared before any content.
        MeshError: The mesh does not divide the model.

    Communication:
        The ranks agree on each stage and share the look at the shards' sizes.
    """
    manifest = together(mesh, lambda: read_manifest(folder))
    config = manifest.architecture
    config.check_mesh(mesh.domain.size, mesh.tensor.size)
    model = WeatherMixer(config, mesh, seed=None)
    model.compute_dtype = dtype
    shapes = {name: layout.full_shape for name, layout in model.layouts().items()}
    together(mesh, lambda: check_complete(folder, manifest, shapes))
    num_bytes_checked = _check_shards(mesh, folder, manifest)
    loaded, damages = together(mesh, lambda: _read_pieces(folder, manifest, model))
    texts = gather_texts(mesh, json.dumps(sorted(damages)))
    found = {Damage(*item) for text in texts for item in json.loads(text)}
    raise_if_damaged(folder, describe_damages(folder, found))
    return replace(loaded, num_bytes_read=loaded.num_bytes_read + num_bytes_checked)


def _check_shards(mesh: Mesh, folder: Path, manifest: Manifest) -> int:
    """Compares the shards' sizes, or all of them where blocks have no digests (version 1).

    Returns:
        The bytes that this rank read for it.

    Raises:
        CheckpointError: On every rank, naming every shard that is wrong.

    Communication:
        One gather of texts over all ranks.
    """
    names = sorted(manifest.shards)
    own = names[split_range(len(names), mesh.size, mesh.rank)]
    shards = {name: manifest.shards[name] for name in own}
    reads_all = manifest.format_version == 1
    check = damaged_shards if reads_all else misfit_shards
    problems = together(mesh, lambda: check(folder, shards))
    found = [json.loads(text) for text in gather_texts(mesh, json.dumps(problems))]
    raise_if_damaged(folder, [line for lines in found for line in lines])
    return sum(shard.num_bytes for shard in shards.values()) if reads_all else 0


def _read_pieces(
    folder: Path, manifest: Manifest, model: WeatherMixer
) -> tuple[LoadedModel, set[Damage]]:
    """Fills the model with this rank's pieces and reads what goes with them."""
    layouts, device = model.layouts(), model.mesh.device
    parts = parts_to_read(manifest, layouts, model.mesh)
    total = bytes_to_read(manifest, parts)
    with (
        ByteProgress(f"loading {manifest.name}", total) as progress,
        CheckpointReader(folder, manifest, progress.advance) as reader,
    ):
        for name, layout in layouts.items():
            dtype = model.compute_dtype if is_matrix(name, layout.full_shape) else torch.float32
            values = reader.read(name, parts[name], dtype).to(device)
            path, _, own_name = name.rpartition(".")
            module = model.get_submodule(path)
            assert isinstance(module, ShardedModule)
            module.keep(own_name, values)

        def statistic(name: str) -> torch.Tensor:
            return reader.read(f"statistics.{name}", parts[f"statistics.{name}"]).to(device)

        std = statistic("std")
        model.tendency_scale.copy_(statistic("tendency_std") / std)
        diagnostics = (statistic(f"diagnostic_{kind}") for kind in ("mean", "std"))
        columns = (values[:, None, None] for values in (std, *diagnostics))
        normalisation = Normalisation(statistic("mean"), *columns)
        statics = {
            name: reader.read(f"statics.{name}", parts[f"statics.{name}"]).numpy()
            for name in manifest.statics
        }
    loaded = LoadedModel(folder, manifest, model, normalisation, statics, reader.num_bytes)
    return loaded, reader.damages
