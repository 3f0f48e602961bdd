"""A checkpoint written on one mesh loads on any other, each rank reading only its pieces."""

from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch

from jigsaw_forecast.checkpoint import save as saving
from jigsaw_forecast.checkpoint.load import load_checkpoint
from jigsaw_forecast.checkpoint.save import save_checkpoint
from jigsaw_forecast.data.statistics import Statistics
from jigsaw_forecast.errors import CheckpointError
from jigsaw_forecast.parallel.mesh import Mesh, single_rank_mesh
from tests.parallel import cases
from tests.parallel.ranks import RankPool


def statistics() -> Statistics:
    """Distinct values everywhere."""
    grid = cases.CONFIG.grid_object
    num_fields, num_diagnostics = len(cases.CONFIG.fields), len(cases.CONFIG.diagnostics)
    shape = (num_fields, grid.num_model_lat, grid.num_lon)
    return Statistics(
        mean=np.arange(np.prod(shape), dtype=np.float32).reshape(shape),
        std=1 + np.arange(num_fields, dtype=np.float32),
        tendency_std=0.5 + np.arange(num_fields, dtype=np.float32),
        diagnostic_mean=np.full(num_diagnostics, 0.25, np.float32),
        diagnostic_std=np.full(num_diagnostics, 2.0, np.float32),
    )


def statics() -> dict[str, np.ndarray]:
    grid = cases.CONFIG.grid_object
    return {"land_sea_mask": np.eye(grid.num_model_lat, grid.num_lon, dtype=np.float32)}


def save(mesh: Mesh, folder: str) -> None:
    model = cases.make_model(mesh)
    save_checkpoint(Path(folder), model, statistics(), statics(), {}, dtype=torch.float32)


def load(mesh: Mesh, folder: str) -> tuple[dict[str, cases.Piece], int]:
    loaded = load_checkpoint(Path(folder), mesh)
    layouts = loaded.model.layouts()
    found: dict[str, cases.Piece] = {
        name: (layouts[name].piece_slices(mesh), parameter.numpy())
        for name, parameter in loaded.model.named_parameters()
    }
    pieces = loaded.model.pieces
    columns = slice(0, cases.CONFIG.grid_object.num_lon)
    norm = loaded.normalisation
    found["mean"] = ((pieces.fields, pieces.rows, columns), norm.mean.numpy())
    return found, loaded.num_bytes_read


@pytest.mark.parametrize(("domain", "tensor"), [(2, 2), (1, 3), (8, 1)])
def test_weights_written_on_one_mesh_load_on_another(
    ranks: Callable[[int], RankPool], tmp_path: Path, domain: int, tensor: int
) -> None:
    written, read = tmp_path / "by-one", tmp_path / "by-many"
    save(single_rank_mesh(), str(written))
    degrees = {"domain": domain, "tensor": tensor}
    pool = ranks(domain * tensor)
    pool.run(degrees, save, str(read))
    expected = cases.assemble([load(single_rank_mesh(), str(written))[0]])
    assert sum(array.size for array in expected.values()) > 10_000
    for folder in (written, read):
        whole = cases.assemble([found for found, _ in pool.run(degrees, load, str(folder))])
        assert whole.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_array_equal(whole[name], values, err_msg=name)


def test_four_ranks_together_read_each_weight_once(
    ranks: Callable[[int], RankPool], tmp_path: Path
) -> None:
    folder = str(tmp_path / "checkpoint")
    save(single_rank_mesh(), folder)
    one = load(single_rank_mesh(), folder)[1]
    four = [num for _, num in ranks(4).run({"domain": 2, "tensor": 2}, load, folder)]
    whole_statics = sum(array.nbytes for array in statics().values())
    per_field = sum(array.nbytes for array in statistics().to_arrays().values() if array.ndim == 1)
    # the two bands of a field group both need its few numbers, every rank the static maps
    assert sum(four) - 4 * whole_statics - 2 * per_field == one - whole_statics - per_field


def load_message(mesh: Mesh, folder: str) -> str:
    try:
        load(mesh, folder)
    except CheckpointError as error:
        return str(error)
    return ""


def test_all_ranks_refuse_an_altered_shard_with_one_message(
    ranks: Callable[[int], RankPool], tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    save(single_rank_mesh(), str(folder))
    shard = next(folder.glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    messages = ranks(2).run({"domain": 2}, load_message, str(folder))
    assert messages[0] == messages[1]
    assert shard.name in messages[0]
    assert "sha256" in messages[0]


def save_message(mesh: Mesh, folder: str) -> str:
    """What saving raises."""
    try:
        save(mesh, folder)
    except CheckpointError as error:
        return str(error)
    return ""


def save_on_a_full_disk(mesh: Mesh, folder: str) -> str:
    """What saving raises where shards of a few blocks are written and the disk is full."""

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with patch.object(saving, "save_file", full), patch.object(saving, "MAX_SHARD_BYTES", 1 << 10):
        return save_message(mesh, folder)


def test_all_ranks_refuse_a_checkpoint_that_exists(
    ranks: Callable[[int], RankPool], tmp_path: Path
) -> None:
    messages = ranks(2).run({"domain": 2}, save_message, str(tmp_path))
    assert messages == [f"checkpoint {tmp_path} exists already"] * 2


def test_all_ranks_stop_where_the_writing_one_cannot_write(
    ranks: Callable[[int], RankPool], tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    messages = ranks(2).run({"domain": 2}, save_on_a_full_disk, str(folder))
    expected = f"checkpoint {folder}: cannot be written: [Errno 28] No space left on device"
    assert messages == [expected] * 2
