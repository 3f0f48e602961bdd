"""Training on any mesh takes the same steps as on one rank, and data replicas share the batch."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from jigsaw_forecast.parallel.mesh import Mesh
from jigsaw_forecast.train.run import train_recipe
from tests.parallel.ranks import RankPool
from tests.unit.train.made_up import write_recipe, write_store

MESHES = [
    {"data": 2},
    {"domain": 2},
    {"tensor": 2},
    {"domain": 2, "tensor": 2},
    {"data": 2, "tensor": 2},
]
# float32: sums in another order, ten steps on
TOLERANCE = 2e-4


def train_on(mesh: Mesh, recipe: str, output: str) -> None:
    """Trains on this rank of the mesh."""
    train_recipe(Path(recipe), [], mesh.degrees, Path(output), False, None)


def _losses(output: Path) -> list[list[float]]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [
        [line["loss"] for line in lines if "loss" in line],
        [line["gradient_norm"] for line in lines if "loss" in line],
        [line["validation_loss"] for line in lines if "validation_loss" in line],
        [line["rmse"]["2t"]["120"] for line in lines if "validation_loss" in line],
    ]


def _weights(output: Path) -> dict[str, torch.Tensor]:
    (path,) = (output / "checkpoints" / "step-00000010").glob("*.safetensors")
    return load_file(path)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    return write_recipe(folder, write_store(folder))


@pytest.fixture(scope="module")
def one_rank(recipe: Path) -> Path:
    torch.set_num_threads(1)
    train_recipe(recipe, [], {}, recipe.parent / "one", False, None)
    return recipe.parent / "one"


@pytest.mark.parametrize("degrees", MESHES, ids=str)
def test_a_mesh_trains_as_one_rank_does(
    degrees: dict[str, int],
    recipe: Path,
    one_rank: Path,
    ranks: Callable[[int], RankPool],
    tmp_path: Path,
) -> None:
    world_size = int(np.prod(list(degrees.values())))
    ranks(world_size).run(degrees, train_on, str(recipe), str(tmp_path / "out"))
    for found, expected in zip(_losses(tmp_path / "out"), _losses(one_rank), strict=True):
        np.testing.assert_allclose(found, expected, rtol=TOLERANCE)
    expected_weights = _weights(one_rank)
    found_weights = _weights(tmp_path / "out")
    assert found_weights.keys() == expected_weights.keys()
    statistics = [name for name in expected_weights if name.startswith("statistics")]
    assert len(statistics) >= 5
    for name in statistics:
        torch.testing.assert_close(found_weights[name], expected_weights[name], rtol=1e-6, atol=0)


def test_every_rank_keeps_what_it_needs_to_go_on(
    recipe: Path, ranks: Callable[[int], RankPool], tmp_path: Path
) -> None:
    ranks(2).run({"domain": 2}, train_on, str(recipe), str(tmp_path / "out"))
    files = sorted(path.name for path in (tmp_path / "out/resume/step-00000010").iterdir())
    assert files == ["rank-00000.pt", "rank-00001.pt"]
