"""Writes inference checkpoints from models that are cut over a mesh."""

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from jigsaw_forecast.checkpoint.blocks import Degrees, cut_degrees, usable_degrees
from jigsaw_forecast.checkpoint.format import is_matrix
from jigsaw_forecast.checkpoint.writer import CheckpointWriter
from jigsaw_forecast.data.statistics import Statistics
from jigsaw_forecast.errors import CheckpointError
from jigsaw_forecast.fields import Field, plausible_range
from jigsaw_forecast.model.config import ModelConfig
from jigsaw_forecast.model.weather_mixer import WeatherMixer
from jigsaw_forecast.parallel.collectives import all_to_all
from jigsaw_forecast.parallel.layout import Layout
from jigsaw_forecast.parallel.together import together

PLAUSIBLE_DEVIATIONS = 8.0
DEFAULT_LICENCE = "Apache-2.0"

CutTensor = tuple[str, torch.Tensor, Mapping[int, Degrees]]  # name, values, how meshes cut it


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
    mesh, layouts = model.mesh, model.layouts()
    is_writer = mesh.rank == 0
    writer = CheckpointWriter(folder)
    failure: CheckpointError | None = None

    def finish() -> None:
        try:
            if failure is not None:
                raise failure
            writer.finish(
                architecture=model.config,
                dtype=str(dtype).removeprefix("torch."),
                num_parameters=count_parameters(layouts),
                plausible=input_ranges(model.config.prognostic_fields, statistics),
                statics=tuple(statics),
                notice=notice,
                licence=licence,
                provenance=dict(provenance),
            )
        except CheckpointError:
            writer.abandon()
            raise

    together(mesh, lambda: writer.begin() if is_writer else None)
    for tensor in _all_tensors(model, layouts, statistics, statics, dtype):
        if not is_writer or failure is not None:
            continue  # gathering goes on after a failure: the other ranks take part in it
        try:
            writer.add_tensor(*tensor)
        except CheckpointError as error:
            failure = error
    together(mesh, lambda: finish() if is_writer else None)


def count_parameters(layouts: Mapping[str, Layout]) -> int:
    """Parameters of the whole model."""
    return sum(prod(layout.full_shape) for layout in layouts.values())


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
    layouts: Mapping[str, Layout],
    statistics: Statistics,
    statics: Mapping[str, npt.NDArray[np.floating]],
    dtype: torch.dtype,
) -> Iterator[CutTensor]:
    """Every tensor of the checkpoint, whole on the writing rank."""
    usable = usable_degrees(model.config)
    for name, parameter in model.named_parameters():
        layout = layouts[name]
        whole = gather_whole(model, parameter.detach(), layout)
        yield name, whole.to(stored_dtype(name, layout, dtype)), cut_degrees(layout, usable)
    yield from normalising_tensors(model.config, statistics, statics)


def stored_dtype(name: str, layout: Layout, dtype: torch.dtype) -> torch.dtype:
    """The dtype of a parameter in a checkpoint whose matrices have this one."""
    return dtype if is_matrix(name, layout.full_shape) else torch.float32


def normalising_tensors(
    config: ModelConfig,
    statistics: Statistics,
    statics: Mapping[str, npt.NDArray[np.floating]],
) -> Iterator[CutTensor]:
    """What a checkpoint holds besides parameters."""
    usable = usable_degrees(config)
    map_degrees = {0: usable["tensor"], 1: usable["domain"]}  # field groups, bands of token rows
    for name, array in statistics.to_arrays().items():
        degrees = map_degrees if array.ndim > 1 else {}
        yield f"statistics.{name}", torch.from_numpy(array), degrees
    for name, static in statics.items():
        yield f"statics.{name}", torch.from_numpy(np.array(static, dtype=np.float32)), {}


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
