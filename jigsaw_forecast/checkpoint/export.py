"""Makes an inference checkpoint of a training checkpoint, one tensor in memory at a time."""

from collections.abc import Iterator
from pathlib import Path

import torch

from jigsaw_forecast.checkpoint.blocks import cut_degrees, usable_degrees
from jigsaw_forecast.checkpoint.distributed import PiecesReader
from jigsaw_forecast.checkpoint.format import (
    Manifest,
    damaged_shards,
    read_manifest,
)
from jigsaw_forecast.checkpoint.pieces import Piece
from jigsaw_forecast.checkpoint.progress import ByteProgress
from jigsaw_forecast.checkpoint.reader import CheckpointReader, describe_damages
from jigsaw_forecast.checkpoint.save import CutTensor, count_parameters, stored_dtype
from jigsaw_forecast.checkpoint.training import (
    TRAINING_FOLDER,
    TrainingManifest,
    find_training_checkpoint,
    raise_if_torn,
    read_training_manifest,
)
from jigsaw_forecast.checkpoint.writer import CheckpointWriter
from jigsaw_forecast.errors import CheckpointError
from jigsaw_forecast.model.weather_mixer import WeatherMixer
from jigsaw_forecast.parallel.layout import Layout
from jigsaw_forecast.parallel.mesh import single_rank_mesh


def export_checkpoint(
    source: Path,
    folder: Path,
    *,
    is_raw: bool = False,
    dtype: torch.dtype = torch.bfloat16,
) -> Manifest:
    """Writes an inference checkpoint from the float32 weights of a training checkpoint.

    Args:
        source: The step's folder, or its `training` folder, or a link to one (`latest`, `best`).
        folder: Must not exist.
        is_raw: Take the weights that the optimizer moves, not their exponential moving average.
        dtype: Of matrices; vectors, positions and statistics are float32.

    Raises:
        CheckpointError: The source is none, is damaged, or the folder cannot be written.
    """
    step = find_training_checkpoint(source)
    if folder.exists():
        raise CheckpointError(f"checkpoint {folder} exists already; choose another OUT")
    training = read_training_manifest(step)
    total = sum(record.num_bytes for record in training.files.values())
    with ByteProgress(f"verifying {step.name}", total) as progress:
        raise_if_torn(step, damaged_shards(step, training.files, progress.advance))
    model_json = read_manifest(step)
    return _write(step, folder, (model_json, training), is_raw, dtype)


def _write(
    step: Path,
    folder: Path,
    manifests: tuple[Manifest, TrainingManifest],
    is_raw: bool,
    dtype: torch.dtype,
) -> Manifest:
    source, training = manifests
    config = source.architecture
    layouts = WeatherMixer(config, single_rank_mesh("meta"), seed=None).layouts()
    writer = CheckpointWriter(folder)
    writer.begin()
    try:
        for tensor in _weights(step, source, layouts, is_raw, dtype):
            writer.add_tensor(*tensor)
        for tensor in _normalising(step, source):
            writer.add_tensor(*tensor)
        return writer.finish(
            architecture=config,
            dtype=str(dtype).removeprefix("torch."),
            num_parameters=count_parameters(layouts),
            plausible=source.plausible,
            statics=source.statics,
            notice=source.notice,
            licence=source.licence,
            provenance={
                **source.provenance,
                "weights": "as the optimizer left them"
                if is_raw
                else source.provenance.get("weights", ""),
                "exported_from": str(step),
                "training_digest": training.digest,
            },
        )
    except BaseException:
        writer.abandon()
        raise


def _weights(
    step: Path,
    source: Manifest,
    layouts: dict[str, Layout],
    is_raw: bool,
    dtype: torch.dtype,
) -> Iterator[CutTensor]:
    """Every parameter, whole."""
    usable = usable_degrees(source.architecture)
    reader = PiecesReader(step / TRAINING_FOLDER)
    kind = "weight" if is_raw else "average"
    for name, layout in layouts.items():
        shape, stored = layout.full_shape, f"{kind}.{name}"
        values = torch.empty(shape, dtype=reader.dtypes.get(stored))
        whole = tuple(slice(0, length) for length in shape)
        reader.load({stored: Piece(values, shape, whole)})
        yield name, values.to(stored_dtype(name, layout, dtype)), cut_degrees(layout, usable)


def _normalising(step: Path, source: Manifest) -> Iterator[CutTensor]:
    """Statistics and static maps, as the step's own inference checkpoint holds them."""
    usable = usable_degrees(source.architecture)
    map_degrees = {0: usable["tensor"], 1: usable["domain"]}  # field groups, bands of token rows
    with CheckpointReader(step, source) as reader:
        for name, record in source.tensors.items():
            if not name.startswith(("statistics.", "statics.")):
                continue
            part = tuple(slice(0, length) for length in record.shape)
            values = reader.read(name, part)
            if reader.damages:
                raise_if_torn(step, describe_damages(step, reader.damages))
            is_mean = name == "statistics.mean"
            yield name, values, map_degrees if is_mean else {}
