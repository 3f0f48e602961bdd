"""What the ranks of a training run do together: save, stop, skip, refuse."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from jigsaw_forecast.data.weather_store import WeatherStore
from jigsaw_forecast.errors import CheckpointError, StoppedError
from jigsaw_forecast.parallel.mesh import Mesh
from jigsaw_forecast.train.replicas import ReplicatedLoss
from tests.parallel import training
from tests.parallel.ranks import RankPool


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.write_twenty_steps(tmp_path_factory.mktemp("resume"))


def test_replicas_share_the_writing(
    recipe: Path, ranks: Callable[[int], RankPool], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ranks(2).run({"data": 2}, training.train_on, str(recipe), str(out), (), False, 1)
    folder = out / "checkpoints" / "latest" / "training"
    sizes = [(folder / f"__{rank}_0.distcp").stat().st_size for rank in range(2)]
    assert min(sizes) > 0.4 * sum(sizes)


def _caught(mesh: Mesh, recipe: str, output: str, resume: bool = False) -> str:
    try:
        training.train_on(mesh, recipe, output, (), resume)
    except (StoppedError, CheckpointError) as error:
        return str(error)
    return ""


def test_damage_is_named_on_every_rank(
    recipe: Path, ranks: Callable[[int], RankPool], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ranks(2).run({"domain": 2}, training.train_on, str(recipe), str(out), (), False, 2)
    folder = out / "checkpoints" / "latest" / "training"
    damaged = [folder / "__0_0.distcp", folder / "__1_0.distcp"]
    content = bytearray(damaged[0].read_bytes())
    content[len(content) // 2] ^= 1
    damaged[0].write_bytes(content)
    os.truncate(damaged[1], damaged[1].stat().st_size - 1)
    for found in ranks(2).run({"domain": 2}, _caught, str(recipe), str(out), True):
        assert "__0_0.distcp: sha256" in found
        assert "__1_0.distcp" in found
        assert "bytes, expected" in found


def signalled_in_step_3(mesh: Mesh, recipe: str, output: str) -> str:
    """What training raises where rank 1 is signalled in its third train step."""
    backward, num_steps = ReplicatedLoss.backward, 0

    def signalled(self: ReplicatedLoss, *arguments: Any) -> Any:
        nonlocal num_steps
        num_steps += 1
        if num_steps == 3 and mesh.rank == 1:
            signal.raise_signal(signal.SIGTERM)
        return backward(self, *arguments)

    with patch.object(ReplicatedLoss, "backward", signalled):
        return _caught(mesh, recipe, output)


def test_a_signal_to_one_rank_stops_all_after_the_same_step(
    recipe: Path, ranks: Callable[[int], RankPool], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    found = ranks(2).run({"domain": 2}, signalled_in_step_3, str(recipe), str(out))
    assert found[1] == "stopped by SIGTERM after 3 train steps; go on with --resume"
    assert found[0].endswith("after 3 train steps; go on with --resume")
    assert (out / "REQUEUE").is_file()
    manifest = json.loads((out / "checkpoints/latest/training/manifest.json").read_text())
    assert manifest["train_step"] == 3


def stopped_on_one_rank(mesh: Mesh, recipe: str, output: str) -> str:
    """What training raises where rank 1 is signalled while it reads."""
    read = WeatherStore.read_into

    def signalled(self: WeatherStore, *arguments: Any) -> Any:
        if mesh.rank == 1:
            signal.raise_signal(signal.SIGTERM)
        return read(self, *arguments)

    with patch.object(WeatherStore, "read_into", signalled):
        return _caught(mesh, recipe, output)


def test_a_signal_to_one_rank_stops_the_reading_of_all(
    recipe: Path, ranks: Callable[[int], RankPool], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    found = ranks(2).run({"domain": 2}, stopped_on_one_rank, str(recipe), str(out))
    assert found == ["stopped by SIGTERM while reading the data; go on with --resume"] * 2


def not_finite_on_one_rank(mesh: Mesh, recipe: str, output: str) -> int:
    """Trains four steps; in the second rank 1 alone has a loss that is no number."""
    backward, num_steps = ReplicatedLoss.backward, 0

    def broken(self: ReplicatedLoss, *arguments: Any) -> Any:
        nonlocal num_steps
        num_steps += 1
        loss = backward(self, *arguments)
        return loss * float("nan") if num_steps == 2 and mesh.rank == 1 else loss

    with patch.object(ReplicatedLoss, "backward", broken):
        training.train_on(mesh, recipe, output, ("train.on_non_finite=skip",), False, 4)
    return num_steps


def test_a_loss_that_is_no_number_on_one_rank_is_skipped_by_all(
    recipe: Path, ranks: Callable[[int], RankPool], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ranks(2).run({"data": 2}, not_finite_on_one_rank, str(recipe), str(out))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["train_step"] for line in lines if "skipped" in line] == [2]
    assert [line["train_step"] for line in lines if "loss" in line] == [1, 3, 4]
    manifest = json.loads((out / "checkpoints/latest/training/manifest.json").read_text())
    assert (manifest["train_step"], manifest["num_updates"]) == (4, 3)
    assert np.isfinite(training.tensors(out, 4)["weight.head.state"]).all()
