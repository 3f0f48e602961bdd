"""Training on any mesh takes the same steps as on one rank, and data replicas share the batch."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from jigsaw_forecast.data.weather_store import WeatherStore
from jigsaw_forecast.errors import StoppedError
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
    train_recipe(Path(recipe), [], mesh.degrees, Path(output), False, None, "cpu")


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
    train_recipe(recipe, [], {}, recipe.parent / "one", False, None, "cpu")
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


def train_where_one_rank_looks_late(mesh: Mesh, recipe: str, output: str) -> None:
    """Trains; to rank 1 every checkpoint seems to be there already, as if it had looked late."""
    exists = Path.exists

    def looked(path: Path) -> bool:
        is_late = mesh.rank == 1 and path.parent.name == "checkpoints"
        return is_late or exists(path)

    with patch.object(Path, "exists", looked):
        train_on(mesh, recipe, output)


def test_a_replica_that_looks_late_saves_with_the_others(
    recipe: Path, ranks: Callable[[int], RankPool], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ranks(2).run({"data": 2}, train_where_one_rank_looks_late, str(recipe), str(out))
    names = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert names == ["step-00000008", "step-00000010"]


def stopped_on_one_rank(mesh: Mesh, recipe: str, output: str) -> str:
    """What training raises where rank 1 is signalled while it reads."""
    read = WeatherStore.read

    def signalled(self: WeatherStore, *arguments: Any) -> Any:
        if mesh.rank == 1:
            signal.raise_signal(signal.SIGTERM)
        return read(self, *arguments)

    with patch.object(WeatherStore, "read", signalled):
        try:
            train_on(mesh, recipe, output)
        except StoppedError as error:
            return str(error)
    return ""


def test_a_signal_to_one_rank_stops_the_reading_of_all(
    recipe: Path, ranks: Callable[[int], RankPool], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    found = ranks(2).run({"domain": 2}, stopped_on_one_rank, str(recipe), str(out))
    assert found == ["stopped by SIGTERM while reading the data; go on with --resume"] * 2


def test_every_rank_keeps_what_it_needs_to_go_on(
    recipe: Path, ranks: Callable[[int], RankPool], tmp_path: Path
) -> None:
    ranks(2).run({"domain": 2}, train_on, str(recipe), str(tmp_path / "out"))
    files = sorted(path.name for path in (tmp_path / "out/resume/step-00000010").iterdir())
    assert files == ["rank-00000.pt", "rank-00001.pt"]
