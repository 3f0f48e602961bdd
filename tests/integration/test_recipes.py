"""The shipped recipes: whole, right at full size, and each trained at a tiny size."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from jigsaw_forecast.data.convert import ConvertRequest, convert
from jigsaw_forecast.data.convert_fields import Selection
from jigsaw_forecast.data.mock import write_mock_store
from jigsaw_forecast.data.recompute import StatisticsRequest, compare_statistics
from jigsaw_forecast.fields import WEATHERBENCH_FIELDS
from jigsaw_forecast.grid import Grid
from jigsaw_forecast.model.config import PRESETS
from jigsaw_forecast.recipe import load_recipe
from jigsaw_forecast.train.run import train_recipe
from jigsaw_forecast.train.schema import TrainRecipe
from tests.conftest import ROOT

RECIPES = sorted((ROOT / "recipes").glob("*.toml"))
ERA5 = [path for path in RECIPES if "era5" in path.name]
PRESET = {
    "wm-300m_era5-0.25_8gpu": "wm-300m-0.25",
    "wm-1b_era5-0.25_32gpu": "wm-1b-0.25",
    "wm-3.2b_era5-0.25_256gpu": "wm-3.2b",
    "wm-3.2b_era5-0.125_256gpu": "wm-3.2b-0.125",
}
GRID = Grid.parse("32x17")  # rows on both poles, as ERA5's
TINY = {
    "data.train": "2020-01-01/2020-01-05",
    "data.validation": "2020-01-06/2020-01-17",
    "model.grid": "32x17",
    "model.patch": "[2, 4]",
    "model.channels": "8",
    "model.token_hidden": "8",
    "model.channel_hidden": "8",
    "model.num_blocks": "1",
    "train.global_batch_size": "2",
    "train.warmup_steps": "1",
    "train.log_every": "1",
    "train.precision": "float32",
    "train.num_validation_inits": "2",
}


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training set of the 69 fields at 32 x 17 points, and its statistics."""
    folder = tmp_path_factory.mktemp("era5")
    times = np.arange(
        np.datetime64("2020-01-01T00", "h"),
        np.datetime64("2020-01-18", "h"),
        np.timedelta64(6, "h"),
    )
    write_mock_store(folder / "mock.zarr", WEATHERBENCH_FIELDS, GRID, times)
    path = folder / "set.zarr"
    convert(ConvertRequest((folder / "mock.zarr",), path, Selection(WEATHERBENCH_FIELDS)))
    compare_statistics(StatisticsRequest(path, output=folder / "statistics.safetensors"))
    return path


def test_the_recipes_of_era5_are_there() -> None:
    assert {path.stem for path in ERA5} == set(PRESET)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_valid_and_its_command_is_its_own(path: Path) -> None:
    recipe = load_recipe(path, TrainRecipe)
    recipe.model.check()
    header = path.read_text().partition("seed")[0]
    assert f"train recipes/{path.name}" in header
    rollouts = [phase.rollout_steps for phase in recipe.train.phases]
    assert rollouts[0] == 1
    assert max(rollouts) == 12


@pytest.mark.parametrize("path", ERA5, ids=lambda path: path.stem)
def test_an_era5_recipe_is_its_preset_on_a_mesh_that_divides_it(path: Path) -> None:
    recipe = load_recipe(path, TrainRecipe)
    assert recipe.model == PRESETS[PRESET[path.stem]]
    header = path.read_text().partition("seed")[0]
    meshes = re.findall(r"data=(\d+),domain=(\d+),tensor=(\d+)", header)
    num_gpus = int(re.fullmatch(r".*_(\d+)gpu", path.stem)[1])  # type: ignore[index]
    for data, domain, tensor in (map(int, mesh) for mesh in meshes):
        assert data * domain * tensor == num_gpus
        recipe.model.check_mesh(domain, tensor)
        for phase in recipe.train.phases:
            assert recipe.train.batch_size(phase) % data == 0


@pytest.mark.parametrize("path", ERA5, ids=lambda path: path.stem)
def test_an_era5_recipe_trains_on_a_tiny_set_of_the_same_layout(
    path: Path, tiny_set: Path, tmp_path: Path
) -> None:
    phases = load_recipe(path, TrainRecipe).train.phases
    settings = dict(TINY)
    settings["data.path"] = str(tiny_set)
    settings["data.statistics"] = str(tiny_set.with_name("statistics.safetensors"))
    for number, _ in enumerate(phases):
        settings[f"train.phases.{number}.num_steps"] = "1"
        settings[f"train.phases.{number}.global_batch_size"] = "2"
        settings[f"train.phases.{number}.warmup_steps"] = "0"
    output = tmp_path / "output"
    train_recipe(
        path,
        [f"{key}={value}" for key, value in settings.items()],
        mesh={},
        output=output,
        resume=False,
        max_steps=None,
        device="cpu",
    )
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == len(phases)
    assert np.isfinite(losses).all()
