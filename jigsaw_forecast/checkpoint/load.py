"""Loads an inference checkpoint onto a mesh; each rank reads only its pieces."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open

from jigsaw_forecast.checkpoint.format import (
    Manifest,
    TensorRecord,
    check_complete,
    damaged_shards,
    is_matrix,
    raise_if_damaged,
    read_manifest,
)
from jigsaw_forecast.model.weather_mixer import WeatherMixer
from jigsaw_forecast.parallel.collectives import gather_texts, together
from jigsaw_forecast.parallel.layout import split_range
from jigsaw_forecast.parallel.mesh import Mesh


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
        num_bytes_read: Bytes of tensors that this rank read.
    """

    folder: Path
    manifest: Manifest
    model: WeatherMixer
    normalisation: Normalisation
    statics: dict[str, npt.NDArray[np.float32]]
    num_bytes_read: int


class _Reader:
    """Reads parts of tensors and counts their bytes."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.num_bytes = 0

    def read(self, name: str, part: tuple[slice, ...]) -> torch.Tensor:
        """A part of a whole tensor, in the stored dtype."""
        record: TensorRecord = self.manifest.tensors[name]
        shape = tuple(piece.stop - piece.start for piece in part)
        result = torch.empty(shape, dtype=getattr(torch, record.dtype))
        for place, suffix, shard in record.blocks():
            overlap = [
                slice(max(want.start, have.start), min(want.stop, have.stop))
                for want, have in zip(part, place, strict=True)
            ]
            if any(piece.start >= piece.stop for piece in overlap):
                continue
            inside = tuple(
                slice(piece.start - have.start, piece.stop - have.start)
                for piece, have in zip(overlap, place, strict=True)
            )
            with safe_open(self.folder / shard, framework="pt") as file:
                values = file.get_slice(f"{name}@{suffix}")[inside]
            self.num_bytes += values.numel() * values.element_size()
            target = tuple(
                slice(piece.start - want.start, piece.stop - want.start)
                for piece, want in zip(overlap, part, strict=True)
            )
            result[target] = values
        return result

    def whole(self, name: str) -> tuple[slice, ...]:
        """The part that is the whole of a tensor."""
        return tuple(slice(0, length) for length in self.manifest.tensors[name].shape)


def verify_together(mesh: Mesh, folder: Path, manifest: Manifest) -> None:
    """Compares every shard with its digest, the ranks sharing the work.

    Raises:
        CheckpointError: On every rank, naming every damaged shard.

    Communication:
        One gather of texts over all ranks.
    """
    names = sorted(manifest.shards)
    own = names[split_range(len(names), mesh.size, mesh.rank)]
    problems = damaged_shards(folder, {name: manifest.shards[name] for name in own})
    found = gather_texts(mesh, "\n".join(problems))
    raise_if_damaged(folder, [line for text in found for line in text.splitlines()])


def load_checkpoint(folder: Path, mesh: Mesh, dtype: torch.dtype = torch.float32) -> LoadedModel:
    """Loads a checkpoint; digests are checked before anything is read.

    Args:
        folder: Of the checkpoint.
        mesh: This rank's mesh.
        dtype: Of the products and of the stored matrices; vectors stay float32.

    Raises:
        CheckpointError: It is damaged or of another version.
        MeshError: The mesh does not divide the model.

    Communication:
        The ranks agree on each stage, and share the work of `verify_together`.
    """
    manifest = together(mesh, lambda: read_manifest(folder))
    config = manifest.architecture
    config.check_mesh(mesh.domain.size, mesh.tensor.size)
    model = WeatherMixer(config, mesh, seed=None)
    model.compute_dtype = dtype
    shapes = {name: layout.full_shape for name, layout in model.layouts().items()}
    together(mesh, lambda: check_complete(folder, manifest, shapes))
    verify_together(mesh, folder, manifest)
    return together(mesh, lambda: _read_pieces(folder, manifest, model))


def _read_pieces(folder: Path, manifest: Manifest, model: WeatherMixer) -> LoadedModel:
    """Fills the model with this rank's pieces and reads what goes with them."""
    reader = _Reader(folder, manifest)
    layouts, device = model.layouts(), model.mesh.device
    for name, parameter in model.named_parameters():
        layout = layouts[name]
        values = reader.read(name, layout.piece_slices(model.mesh))
        dtype = model.compute_dtype if is_matrix(name, layout.full_shape) else torch.float32
        parameter.data = values.to(device, dtype)
        parameter.requires_grad_(False)
    pieces, columns = model.pieces, slice(0, model.config.grid_object.num_lon)

    def column(name: str, group: slice) -> torch.Tensor:
        return reader.read(f"statistics.{name}", (group,)).to(device)[:, None, None]

    mean = reader.read("statistics.mean", (pieces.fields, pieces.rows, columns)).to(device)
    std = column("std", pieces.fields)
    model.tendency_scale.copy_((column("tendency_std", pieces.fields) / std)[:, 0, 0])
    normalisation = Normalisation(
        mean,
        std,
        column("diagnostic_mean", pieces.diagnostics),
        column("diagnostic_std", pieces.diagnostics),
    )
    statics = {
        name: reader.read(f"statics.{name}", reader.whole(f"statics.{name}")).numpy()
        for name in manifest.statics
    }
    return LoadedModel(folder, manifest, model, normalisation, statics, reader.num_bytes)
