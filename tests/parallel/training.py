"""Training runs for the rank pools, and their checkpoints as whole tensors."""

import json
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from jigsaw_forecast.model.weather_mixer import WeatherMixer
from jigsaw_forecast.parallel.mesh import Mesh, single_rank_mesh
from jigsaw_forecast.train import prepare
from jigsaw_forecast.train.run import train_recipe
from jigsaw_forecast.train.schema import TrainRecipe
from tests.unit.train.made_up import MODEL, read_tensors, write_recipe, write_store

TWENTY_STEPS = f"""
seed = 4

[data]
path = "{{store}}"
train = "2020-01-01/2020-01-20"
validation = "2020-01-21/2020-01-31"
statistics = "{{statistics}}"

{MODEL.replace("num_blocks = 1", "num_blocks = 2")}
[train]
global_batch_size = 4
precision = "float64"
warmup_steps = 2
log_every = 1
validate_every = 100
checkpoint_every = 10
num_validation_inits = 1
validation_hours = [6]
input_noise = 0.1

[[train.phases]]
rollout_steps = 1
num_steps = 16
learning_rate = 1e-3

[[train.phases]]
rollout_steps = 2
num_steps = 4
learning_rate = 1e-3
"""
PLANTED = "blocks.1.channel_w1"


def write_twenty_steps(folder: Path) -> Path:
    """The recipe, on a store of its own.

    Its diagnostic's mean is off by a deviation: about its true mean the gradient of a bias is a sum
    of terms that cancel, of which float32 leaves few digits on any mesh.
    """
    store = write_store(folder)
    path = folder / "statistics.safetensors"
    text = TWENTY_STEPS.replace("{statistics}", str(path))
    made = write_recipe(folder, store, text.replace(f'statistics = "{path}"\n', ""))
    train_on(single_rank_mesh(), str(made), str(folder / "statistics"), max_steps=1)
    found = load_file(folder / "statistics" / "statistics.safetensors")
    found["diagnostic_mean"] -= found["diagnostic_std"]
    with safe_open(folder / "statistics" / "statistics.safetensors", "np") as stored:
        save_file(found, path, stored.metadata())
    return write_recipe(folder, store, text)


def train_on(
    mesh: Mesh,
    recipe: str,
    output: str,
    settings: tuple[str, ...] = (),
    resume: bool = False,
    max_steps: int | None = None,
) -> None:
    """Trains on this rank of the mesh."""
    torch.set_num_threads(1)
    train_recipe(Path(recipe), settings, mesh.degrees, Path(output), resume, max_steps, "cpu")


def train_with_doubled_gradient(mesh: Mesh, recipe: str, output: str) -> None:
    """Trains with a gradient that is twice what it should be, of one matrix."""
    make_model = prepare._make_model

    def planted(recipe: TrainRecipe, mesh: Mesh) -> WeatherMixer:
        model = make_model(recipe, mesh)
        model.get_parameter(PLANTED).register_hook(lambda gradient: 2 * gradient)
        return model

    with patch.object(prepare, "_make_model", planted):
        train_on(mesh, recipe, output)


def metrics(output: Path) -> dict[str, np.ndarray]:
    """Losses and gradient norms of all train steps, bit for bit."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]
    return {
        name: np.array([line[name] for line in lines])
        for name in ("train_step", "loss", "gradient_norm")
    }


def tensors(output: Path, step: int = 20) -> dict[str, np.ndarray]:
    """Weights, averages and moments of a checkpoint, whole."""
    return {
        name: whole.numpy()
        for name, whole in read_tensors(output, step).items()
        if not name.startswith("random")
    }


def differences(found: Path, expected: Path) -> dict[str, float]:
    """Largest difference of each tensor and each metric over its largest value."""
    pairs = [(tensors(found), tensors(expected)), (metrics(found), metrics(expected))]
    assert all(one.keys() == two.keys() for one, two in pairs)
    return {
        name: float(np.abs(one[name] - two[name]).max() / (np.abs(two[name]).max() or 1.0))
        for one, two in pairs
        for name in one
    }
