"""Fresh checkpoints: the model's own first weights, statistics that make finite states."""

import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

from jigsaw_forecast.checkpoint import create, writer
from jigsaw_forecast.checkpoint.create import create_checkpoint, placeholder_statistics
from jigsaw_forecast.checkpoint.load import load_checkpoint
from jigsaw_forecast.checkpoint.shards import write_shard
from jigsaw_forecast.errors import CheckpointError, DataError, GridError
from jigsaw_forecast.fields import plausible_range
from jigsaw_forecast.model.config import PRESETS
from jigsaw_forecast.model.weather_mixer import WeatherMixer
from jigsaw_forecast.parallel.mesh import single_rank_mesh
from tests.parallel.cases import CONFIG

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_those_of_a_fresh_model(tmp_path: Path, dtype: torch.dtype) -> None:
    create_checkpoint(tmp_path / "new", CONFIG, dtype=dtype, seed=5)
    loaded = load_checkpoint(tmp_path / "new", single_rank_mesh())
    fresh = WeatherMixer(CONFIG, single_rank_mesh(), seed=5)
    for name, values in fresh.named_parameters():
        kept = values.to(dtype if values.ndim > 1 and name != "embed.position" else torch.float32)
        assert torch.equal(loaded.model.get_parameter(name), kept.float()), name


def test_one_step_of_a_fresh_model_repeats_the_state(tmp_path: Path) -> None:
    create_checkpoint(tmp_path / "new", CONFIG)
    model = load_checkpoint(tmp_path / "new", single_rank_mesh()).model
    state, forcing = torch.randn(1, 7, 48, 12), torch.zeros(1, 3, 48, 12)
    with torch.no_grad():
        assert torch.equal(model(state, forcing)[0], state)


def test_every_plausible_value_lies_within_8_deviations() -> None:
    config = PRESETS["wm-9m-5.625"]
    statistics = placeholder_statistics(config)
    for index, field in enumerate(config.prognostic_fields):
        mean, std = statistics.mean[index, 0, 0], statistics.std[index]
        bounds = (np.array(plausible_range(field)) - mean) / std
        np.testing.assert_allclose(bounds, [-8, 8], rtol=1e-5)
    assert (statistics.tendency_std > 0).all()


def test_statics_without_a_store_are_zero_and_the_notice_says_what_it_is(tmp_path: Path) -> None:
    manifest = create_checkpoint(tmp_path / "new", CONFIG, seed=5)
    statics = load_checkpoint(tmp_path / "new", single_rank_mesh()).statics
    assert not statics["land_sea_mask"].any()
    assert "Untrained" in manifest.notice
    assert manifest.provenance["weights"] == "untrained, seed 5"
    assert "placeholders" in manifest.provenance["statistics"]


def test_statics_come_from_a_store(tmp_path: Path) -> None:
    store = Path("checkpoints/nature-run/initial.zarr")
    create_checkpoint(tmp_path / "new", PRESETS["wm-nature"], statics=store)
    statics = load_checkpoint(tmp_path / "new", single_rank_mesh()).statics
    assert statics["land_sea_mask"].max() > 0.9
    assert statics["geopotential_at_surface"].max() > 5000


def test_a_store_on_another_grid_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GridError, match="64x32, the model needs 48x12"):
        create.read_statics(
            Path("checkpoints/nature-run/initial.zarr"),
            CONFIG.model_copy(update={"grid": "48x12"}),
        )


def test_a_store_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing"):
        create_checkpoint(tmp_path / "new", CONFIG, statics=tmp_path / "nowhere.zarr")
    assert list(tmp_path.iterdir()) == []


def test_what_exists_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    with pytest.raises(CheckpointError, match="exists already"):
        create_checkpoint(tmp_path / "new", CONFIG)


def test_a_disk_without_room_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(10, 7, 3))
    with pytest.raises(CheckpointError, match="the disk has 3 bytes left"):
        create_checkpoint(tmp_path / "new", CONFIG)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fill_up(path: Path, blocks: list[object]) -> object:
        calls.append(path)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return write_shard(path, blocks)  # type: ignore[arg-type]

    monkeypatch.setattr(writer, "write_shard", fill_up)
    monkeypatch.setattr(writer, "MAX_SHARD_BYTES", 1 << 12)
    with pytest.raises(CheckpointError, match="cannot be written: .*No space left"):
        create_checkpoint(tmp_path / "new", CONFIG)
    assert list(tmp_path.iterdir()) == []


def test_what_an_earlier_attempt_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "new.partial").mkdir()
    (tmp_path / "new.partial" / "weights-00009.safetensors").touch()
    create_checkpoint(tmp_path / "new", CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert not (tmp_path / "new" / "weights-00009.safetensors").exists()


def test_shards_stay_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MAX_SHARD_BYTES", 1 << 14)
    manifest = create_checkpoint(tmp_path / "new", CONFIG)
    blocks: dict[str, list[int]] = {}
    for name, record in manifest.tensors.items():
        for block in record.blocks(name):
            blocks.setdefault(block.shard, []).append(record.num_bytes(block))
    assert blocks.keys() == manifest.shards.keys()
    assert len(blocks) > 3
    assert all(sum(sizes) <= 1 << 14 or len(sizes) == 1 for sizes in blocks.values())
