"""A checkpoint written on one mesh loads on any other, each rank reading only its pieces."""

from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch

from jigsaw_forecast.checkpoint import blocks, writer
from jigsaw_forecast.checkpoint.describe import describe_checkpoint
from jigsaw_forecast.checkpoint.format import read_manifest
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
    with patch.object(blocks, "MIN_BLOCK_BYTES", 1):  # as if the model were large
        save(single_rank_mesh(), folder)
    one = load(single_rank_mesh(), folder)[1]
    four = [num for _, num in ranks(4).run({"domain": 2, "tensor": 2}, load, folder)]
    # every rank reads the shard's header, the static maps and the numbers of all fields; the
    # two whose field group has the diagnostic also its two numbers
    (header,) = read_manifest(Path(folder)).header_bytes().values()
    common = header + sum(array.nbytes for array in statics().values())
    common += sum(getattr(statistics(), name).nbytes for name in ("std", "tendency_std"))
    diagnostic = 2 * statistics().diagnostic_mean.nbytes
    assert sum(four) - 4 * common - 2 * diagnostic == one - common - diagnostic


@pytest.mark.parametrize(("domain", "tensor"), [(2, 2), (1, 3), (8, 1)])
def test_inspect_foretells_the_bytes_that_each_rank_reads(
    ranks: Callable[[int], RankPool], tmp_path: Path, domain: int, tensor: int
) -> None:
    folder = tmp_path / "checkpoint"
    with (
        patch.object(blocks, "MIN_BLOCK_BYTES", 1 << 8),
        patch.object(writer, "MAX_SHARD_BYTES", 1 << 14),
    ):
        save(single_rank_mesh(), str(folder))
    degrees = {"data": 1, "domain": domain, "tensor": tensor}
    found = ranks(domain * tensor).run(degrees, load, str(folder))
    foretold = describe_checkpoint(folder, degrees)["mesh"]["ranks"]
    assert [num for _, num in found] == [rank["bytes_to_read"] for rank in foretold]
    assert [rank["rank"] for rank in foretold] == list(range(domain * tensor))
    stored = [
        sum(values.nbytes for name, (_, values) in pieces.items() if name != "mean")
        for pieces, _ in found
    ]
    assert stored == [rank["parameter_bytes"] for rank in foretold]


def load_message(mesh: Mesh, folder: str) -> str:
    """What loading raises."""
    try:
        load(mesh, folder)
    except CheckpointError as error:
        return str(error)
    return ""


def flip(path: Path, place: int) -> None:
    """Alters one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.fixture
def many_shards(tmp_path: Path) -> Path:
    """A checkpoint of many shards, each with its tensors whole."""
    folder = tmp_path / "checkpoint"
    with patch.object(writer, "MAX_SHARD_BYTES", 1 << 14):
        save(single_rank_mesh(), str(folder))
    assert len(list(folder.glob("*.safetensors"))) > 5
    return folder


def refused(ranks: Callable[[int], RankPool], folder: Path) -> str:
    """The one message of all ranks."""
    messages = ranks(4).run({"domain": 2, "tensor": 2}, load_message, str(folder))
    assert len(set(messages)) == 1
    assert messages[0].startswith(f"checkpoint {folder} is damaged: ")
    return str(messages[0])


def test_every_shard_that_is_missing_or_truncated_is_named_in_one_message(
    ranks: Callable[[int], RankPool], many_shards: Path
) -> None:
    first, *_, last = sorted(many_shards.glob("*.safetensors"))
    first.unlink()
    last.write_bytes(last.read_bytes()[:-1])
    message = refused(ranks, many_shards)
    assert f"missing {first}" in message
    size = last.stat().st_size
    assert f"{last}: {size} bytes, expected {size + 1}" in message


def test_every_altered_shard_is_named_with_its_tensor_in_one_message(
    ranks: Callable[[int], RankPool], many_shards: Path
) -> None:
    shards = read_manifest(many_shards).tensors
    # the ranks of one field group alone read the diagnostic's
    for name in ("head.diagnostic", "embed.state"):
        flip(many_shards / shards[name].shards[0], -1)
    message = refused(ranks, many_shards)
    for name in ("head.diagnostic", "embed.state"):
        assert f"{many_shards / shards[name].shards[0]}: sha256 differs in" in message
    assert message.count("sha256 differs in") == 2


def test_a_tampered_header_is_named(ranks: Callable[[int], RankPool], many_shards: Path) -> None:
    shard = sorted(many_shards.glob("*.safetensors"))[0]
    content = shard.read_bytes()
    shard.write_bytes(content.replace(b'"F32"', b'"F16"', 1))
    assert f"{shard}: header and model.json differ on" in refused(ranks, many_shards)
    shard.write_bytes(b"\xff" + content[1:])
    assert f"{shard}: its header is not that of a safetensors file" in refused(ranks, many_shards)


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

    with (
        patch.object(writer, "write_shard", full),
        patch.object(writer, "MAX_SHARD_BYTES", 1 << 10),
    ):
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
    assert list(tmp_path.iterdir()) == []
