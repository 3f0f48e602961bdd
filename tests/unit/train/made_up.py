"""A small recipe and a small store for the tests of training, and whole checkpoints."""

from pathlib import Path

import numpy as np
import torch

from jigsaw_forecast.checkpoint.distributed import PiecesReader
from jigsaw_forecast.checkpoint.pieces import Piece
from jigsaw_forecast.data.mock import write_mock_store
from jigsaw_forecast.fields import Field
from jigsaw_forecast.grid import Grid

FIELDS = (
    Field("geopotential", 500),
    Field("temperature", 500),
    Field("2m_temperature"),
    Field("total_precipitation_6hr"),
)

MODEL = """
[model]
grid = "16x8"
fields = ["z500", "t500", "2t"]
diagnostics = ["tp"]
forcings = ["land_sea_mask", "insolation", "sin_longitude"]
patch = [4, 4]
overlap = 1
channels = 8
token_hidden = 8
channel_hidden = 16
num_blocks = 1
"""
RECIPE = f"""
seed = 4

[data]
path = "{{store}}"
train = "2020-01-01/2020-01-20"
validation = "2020-01-21/2020-01-31"

{MODEL}
[train]
global_batch_size = 4
precision = "float32"
warmup_steps = 2
log_every = 2
validate_every = 5
checkpoint_every = 4
num_validation_inits = 3

[[train.phases]]
rollout_steps = 1
num_steps = 6
learning_rate = 1e-2

[[train.phases]]
rollout_steps = 3
num_steps = 4
learning_rate = 1e-3
global_batch_size = 2
"""


def write_store(folder: Path) -> Path:
    """A month of mock weather at 16 x 8 points."""
    times = np.arange(
        np.datetime64("2020-01-01T00", "h"),
        np.datetime64("2020-02-01T00", "h"),
        np.timedelta64(6, "h"),
    )
    path = folder / "mock.zarr"
    write_mock_store(path, FIELDS, Grid.parse("16x8"), times)
    return path


def write_recipe(folder: Path, store: Path, text: str = RECIPE) -> Path:
    """The recipe on a store."""
    path = folder / "recipe.toml"
    path.write_text(text.format(store=store))
    return path


def read_tensors(output: Path, step: int) -> dict[str, torch.Tensor]:
    """Every tensor of a training checkpoint, whole: weights, averages, moments, random state."""
    reader = PiecesReader(output / "checkpoints" / f"step-{step:08d}" / "training")
    tensors = {}
    for name, dtype in reader.dtypes.items():
        shape = reader.full_shape(name)
        tensors[name] = torch.empty(shape, dtype=dtype)
        whole = tuple(slice(0, length) for length in shape)
        reader.load({name: Piece(tensors[name], shape, whole)})
    return tensors
