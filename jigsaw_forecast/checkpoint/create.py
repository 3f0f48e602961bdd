"""Fresh checkpoints: seeded weights and placeholder statistics, one tensor in memory at a time."""

import shutil
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from jigsaw_forecast.checkpoint.blocks import cut_degrees, usable_degrees
from jigsaw_forecast.checkpoint.format import Manifest
from jigsaw_forecast.checkpoint.progress import ByteProgress, format_bytes
from jigsaw_forecast.checkpoint.save import (
    DEFAULT_LICENCE,
    PLAUSIBLE_DEVIATIONS,
    CutTensor,
    count_parameters,
    input_ranges,
    normalising_tensors,
    stored_dtype,
)
from jigsaw_forecast.checkpoint.writer import CheckpointWriter
from jigsaw_forecast.data.bad_maps import read_static
from jigsaw_forecast.data.forcings import static_fields
from jigsaw_forecast.data.statistics import Statistics
from jigsaw_forecast.data.weather_store import WeatherStore
from jigsaw_forecast.errors import CheckpointError, GridError
from jigsaw_forecast.fields import Field, plausible_range
from jigsaw_forecast.model.config import ModelConfig
from jigsaw_forecast.model.sharded import initial_values
from jigsaw_forecast.model.weather_mixer import WeatherMixer
from jigsaw_forecast.parallel.mesh import single_rank_mesh

NOTICE = "Untrained weights and placeholder statistics: forecasts of this model mean nothing."
TENDENCY_SHARE = 0.1  # of a field's deviation, as its change in one step; a placeholder

StaticMaps = Mapping[str, npt.NDArray[np.floating]]


def create_checkpoint(
    folder: Path,
    config: ModelConfig,
    *,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    origin: str = "",
    statics: Path | None = None,
) -> Manifest:
    """Writes a checkpoint of an untrained model, which persists its initial state.

    The weights are those of `WeatherMixer(config, mesh, seed)`. Memory holds one tensor and one
    shard at a time.

    Args:
        folder: Must not exist.
        config: The architecture.
        dtype: Of matrices; vectors, positions and statistics are float32.
        seed: Of the weights.
        origin: What the architecture is called, for the provenance.
        statics: Store with the static fields that the forcings need; zero without one.

    Raises:
        CheckpointError: The folder exists, cannot be written, or is larger than the disk's room.
        RecipeError: The patches do not tile the grid.
        DataError: The store lacks a static field.
        GridError: The store is on another grid.
    """
    if folder.exists():
        raise CheckpointError(f"checkpoint {folder} exists already")
    model = WeatherMixer(config, single_rank_mesh("meta"), seed=None)
    maps = read_statics(statics, config) if statics else _no_statics(config)
    statistics = placeholder_statistics(config)
    layouts = model.layouts()
    num_bytes = sum(
        prod(layout.full_shape) * stored_dtype(name, layout, dtype).itemsize
        for name, layout in layouts.items()
    )
    num_bytes += sum(array.nbytes for array in (*statistics.to_arrays().values(), *maps.values()))
    with ByteProgress(f"writing {folder.name}", num_bytes) as progress:
        writer = CheckpointWriter(folder, progress.advance)
        writer.begin()
        try:
            _check_room(writer.partial, folder, num_bytes)
            for tensor in _fresh_tensors(model, seed, dtype):
                writer.add_tensor(*tensor)
            for tensor in normalising_tensors(config, statistics, maps):
                writer.add_tensor(*tensor)
            return writer.finish(
                architecture=config,
                dtype=str(dtype).removeprefix("torch."),
                num_parameters=count_parameters(layouts),
                plausible=input_ranges(config.prognostic_fields, statistics),
                statics=tuple(maps),
                notice=NOTICE,
                licence=DEFAULT_LICENCE,
                provenance={
                    "architecture": origin,
                    "weights": f"untrained, seed {seed}",
                    "statistics": "placeholders: the middle of each field's plausible range",
                    "statics": str(statics) if statics else "placeholders: zero",
                    "torch": torch.__version__,
                },
            )
        except BaseException:
            writer.abandon()
            raise


def _fresh_tensors(model: WeatherMixer, seed: int, dtype: torch.dtype) -> Iterator[CutTensor]:
    """Every parameter, whole, with the values that the model itself would start with."""
    usable, initials = usable_degrees(model.config), model.initials()
    for name, layout in model.layouts().items():
        shape, kept = layout.full_shape, stored_dtype(name, layout, dtype)
        # without a name of its own the float32 tensor is gone before the next is made
        yield (
            name,
            initial_values(seed, name, shape, initials[name]).to(kept),
            cut_degrees(layout, usable),
        )


def placeholder_statistics(config: ModelConfig) -> Statistics:
    """Statistics under which every plausible value lies within 8 deviations of the mean.

    The mean maps are views of one number a field.
    """
    prognostic = np.array([_placeholder(field) for field in config.prognostic_fields], np.float32)
    diagnostic = np.array([_placeholder(field) for field in config.diagnostic_fields], np.float32)
    diagnostic = diagnostic.reshape(-1, 2)
    std = prognostic[:, 1]
    grid = config.grid_object
    mean = torch.from_numpy(prognostic[:, 0].copy())[:, None, None]
    return Statistics(
        mean=mean.expand(len(std), grid.num_model_lat, grid.num_lon).numpy(),
        std=std.copy(),
        tendency_std=TENDENCY_SHARE * std,
        diagnostic_mean=np.zeros(len(diagnostic), np.float32),  # no rain, where that is one
        diagnostic_std=diagnostic[:, 1].copy(),
    )


def _placeholder(field: Field) -> tuple[float, float]:
    """Mean and deviation of a field."""
    low, high = plausible_range(field)
    return (low + high) / 2, (high - low) / (2 * PLAUSIBLE_DEVIATIONS)


def _no_statics(config: ModelConfig) -> StaticMaps:
    shape = (config.grid_object.num_model_lat, config.grid_object.num_lon)
    return {name: np.zeros(shape, np.float32) for name in static_fields(config.forcings)}


def read_statics(path: Path, config: ModelConfig) -> StaticMaps:
    """The static fields that a model's forcings need, each [model rows, X], from a store.

    Raises:
        DataError: The store cannot be read, or one is missing or implausible.
        GridError: The store is on another grid.
    """
    store, grid = WeatherStore(path, ()), config.grid_object
    if store.grid != grid:
        raise GridError(f"{path} is on grid {store.grid.name}, the model needs {grid.name}")
    return {name: read_static(store, name) for name in static_fields(config.forcings)}


def _check_room(place: Path, folder: Path, num_bytes: int) -> None:
    """Refuses what the disk cannot hold, before minutes are spent on it."""
    free = shutil.disk_usage(place).free
    if free < num_bytes:
        raise CheckpointError(
            f"checkpoint {folder}: needs {format_bytes(num_bytes)}, the disk has "
            f"{format_bytes(free)} left; make room or choose another place"
        )
