"""Writes inference checkpoints, shard by shard, whole or not at all."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from jigsaw_forecast.checkpoint.format import (
    FORMAT_VERSION,
    Manifest,
    ShardRecord,
    TensorRecord,
    file_digest,
    is_matrix,
    write_manifest,
)
from jigsaw_forecast.data.statistics import Statistics
from jigsaw_forecast.errors import CheckpointError
from jigsaw_forecast.fields import Field, plausible_range
from jigsaw_forecast.model.weather_mixer import WeatherMixer
from jigsaw_forecast.parallel.collectives import all_to_all, together
from jigsaw_forecast.parallel.layout import Layout

MAX_BLOCKS = 16  # along one dim: a mesh of up to 16 x 16 reads whole blocks
MIN_BLOCK_BYTES = 1 << 18  # smaller blocks would cost more in headers than they save in reading
MAX_SHARD_BYTES = 1 << 31
PLAUSIBLE_DEVIATIONS = 8.0
DEFAULT_LICENCE = "Apache-2.0"


def num_blocks(shape: tuple[int, ...], cut_dims: set[int], element_size: int) -> tuple[int, ...]:
    """How many blocks cut each dim of a tensor: a power of two that divides it, at most 16."""
    counts = [1] * len(shape)
    num_bytes = int(np.prod(shape)) * element_size
    grew = True
    while grew:
        grew = False
        for dim in sorted(cut_dims):
            doubled = counts[dim] * 2
            fits = doubled <= MAX_BLOCKS and shape[dim] and shape[dim] % doubled == 0
            if fits and num_bytes // (2 * int(np.prod(counts))) >= MIN_BLOCK_BYTES:
                counts[dim] = doubled
                grew = True
    return tuple(counts)


@dataclass
class _ShardWriter:
    """Collects blocks and writes a shard whenever enough are there."""

    folder: Path
    blocks: dict[str, torch.Tensor] = field(default_factory=dict)
    num_bytes: int = 0
    shards: dict[str, ShardRecord] = field(default_factory=dict)

    @property
    def current(self) -> str:
        return f"weights-{len(self.shards):05d}.safetensors"

    def add_tensor(self, name: str, values: torch.Tensor, cut_dims: set[int]) -> TensorRecord:
        """Adds a tensor block by block and returns where its blocks will be."""
        counts = num_blocks(tuple(values.shape), cut_dims, values.element_size())
        record = TensorRecord(
            shape=tuple(values.shape),
            dtype=str(values.dtype).removeprefix("torch."),
            num_blocks=counts,
            shards=("",) * int(np.prod(counts)),
        )
        shards = tuple(
            self._add(f"{name}@{suffix}", values[place]) for place, suffix, _ in record.blocks()
        )
        return record.model_copy(update={"shards": shards})

    def _add(self, key: str, values: torch.Tensor) -> str:
        """Adds a block and returns the name of the shard it will be in."""
        size = values.numel() * values.element_size()
        if self.blocks and self.num_bytes + size > MAX_SHARD_BYTES:
            self.flush()
        self.blocks[key] = values.contiguous()
        self.num_bytes += size
        return self.current

    def flush(self) -> None:
        """Writes the collected blocks."""
        if not self.blocks:
            return
        name = self.current
        path = self.folder / name
        save_file(self.blocks, path)
        self.shards[name] = ShardRecord(sha256=file_digest(path), num_bytes=path.stat().st_size)
        self.blocks, self.num_bytes = {}, 0


def save_checkpoint(
    folder: Path,
    model: WeatherMixer,
    statistics: Statistics,
    statics: Mapping[str, npt.NDArray[np.floating]],
    provenance: Mapping[str, Any],
    *,
    dtype: torch.dtype = torch.bfloat16,
    notice: str = "",
    licence: str = DEFAULT_LICENCE,
) -> None:
    """Writes a checkpoint folder; it appears under its name only when it is whole.

    Args:
        folder: Must not exist.
        model: Its pieces are gathered tensor by tensor onto the first rank.
        statistics: Of the training data, whole.
        statics: Static fields that the forcings need, each [model rows, X].
        provenance: How the weights came to be; anything JSON can hold.
        dtype: Of matrices; vectors, positions and statistics are float32.
        notice: What must be said wherever a forecast of this model is shown.
        licence: SPDX identifier of the weights' licence.

    Raises:
        CheckpointError: The folder exists or cannot be written; the same on every rank.

    Communication:
        Each tensor's pieces to rank 0 of the model group, one tensor at a time. The ranks agree
        before and after.
    """
    mesh = model.mesh
    is_writer = mesh.rank == 0
    partial = folder.with_name(folder.name + ".partial")
    writer = _ShardWriter(partial)
    records: dict[str, TensorRecord] = {}
    failure: CheckpointError | None = None

    def finish() -> None:
        if failure is not None:
            raise failure
        with _writing(folder):
            writer.flush()
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            name=folder.name,
            architecture=model.config,
            dtype=str(dtype).removeprefix("torch."),
            num_parameters=sum(
                int(np.prod(layout.full_shape)) for layout in model.layouts().values()
            ),
            plausible=input_ranges(model.config.prognostic_fields, statistics),
            statics=tuple(statics),
            notice=notice,
            licence=licence,
            provenance=dict(provenance),
            tensors=records,
            shards=writer.shards,
        )
        with _writing(folder):
            write_manifest(partial, manifest)
            partial.rename(folder)

    together(mesh, lambda: _begin(folder, partial) if is_writer else None)
    for name, values, cut_dims in _all_tensors(model, statistics, statics, dtype):
        if not is_writer or failure is not None:
            continue  # gathering goes on after a failure: the other ranks take part in it
        try:
            with _writing(folder):
                records[name] = writer.add_tensor(name, values, cut_dims)
        except CheckpointError as error:
            failure = error
    together(mesh, lambda: finish() if is_writer else None)


def _begin(folder: Path, partial: Path) -> None:
    """Makes an empty folder to write to."""
    if folder.exists():
        raise CheckpointError(f"checkpoint {folder} exists already")
    with _writing(folder):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Within, what the disk refuses becomes a `CheckpointError`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {folder}: cannot be written: {error}") from error


def input_ranges(
    fields: tuple[Field, ...], statistics: Statistics
) -> dict[str, tuple[float, float]]:
    """Lowest and highest value accepted of each input field.

    The hull of what can be real on Earth and of the training data's range with a margin, since a
    model may have been trained on another planet.
    """
    ranges = {}
    for index, field_ in enumerate(fields):
        low, high = plausible_range(field_)
        margin = PLAUSIBLE_DEVIATIONS * float(statistics.std[index])
        ranges[field_.short_name] = (
            min(low, float(statistics.mean[index].min()) - margin),
            max(high, float(statistics.mean[index].max()) + margin),
        )
    return ranges


def _all_tensors(
    model: WeatherMixer,
    statistics: Statistics,
    statics: Mapping[str, npt.NDArray[np.floating]],
    dtype: torch.dtype,
) -> Iterator[tuple[str, torch.Tensor, set[int]]]:
    """Every tensor of the checkpoint, whole on the writing rank, with the dims that are cut."""
    layouts = model.layouts()
    for name, parameter in model.named_parameters():
        layout = layouts[name]
        whole = gather_whole(model, parameter.detach(), layout)
        cut_dims = {cut.dim for cut in (*layout.compute, *layout.storage)}
        yield (
            name,
            whole.to(dtype if is_matrix(name, layout.full_shape) else torch.float32),
            cut_dims,
        )
    for name, array in statistics.to_arrays().items():
        yield f"statistics.{name}", torch.from_numpy(array), {0, 1} if array.ndim > 1 else set()
    for name, static in statics.items():
        yield f"statics.{name}", torch.from_numpy(np.array(static, dtype=np.float32)), set()


def gather_whole(model: WeatherMixer, piece: torch.Tensor, layout: Layout) -> torch.Tensor:
    """A whole tensor on rank 0 of each model group, an empty one elsewhere; on the CPU.

    Communication:
        Every piece to rank 0 of the model group, once.
    """
    mesh = model.mesh
    if mesh.model.size == 1:
        return piece.cpu()
    peers = [
        mesh.at(domain, tensor)
        for domain in range(mesh.domain.size)
        for tensor in range(mesh.tensor.size)
    ]
    is_root = mesh.model.index == 0
    nothing = piece.new_empty((0,))
    outgoing = [piece if rank == 0 else nothing for rank in range(mesh.model.size)]
    shapes = [layout.piece_shape(peer) if is_root else (0,) for peer in peers]
    incoming = all_to_all(mesh, outgoing, shapes, "model")
    if not is_root:
        return nothing.cpu()
    whole = torch.empty(layout.full_shape, dtype=piece.dtype)
    for peer, values in zip(peers, incoming, strict=True):
        whole[layout.piece_slices(peer)] = values.cpu()
    return whole
