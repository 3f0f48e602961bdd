"""Shards are safetensors files, and a shard that tells another story than model.json is refused."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from jigsaw_forecast.checkpoint.shards import (
    ShardDamage,
    ShardReader,
    StoredBlock,
    write_shard,
)

VECTOR = torch.arange(3, dtype=torch.bfloat16)
MATRIX = torch.arange(6, dtype=torch.float32).reshape(2, 3)


def stored(key: str, values: torch.Tensor) -> StoredBlock:
    content = values.reshape(-1).view(torch.uint8).numpy().data
    dtype = str(values.dtype).removeprefix("torch.")
    return StoredBlock(key, dtype, tuple(values.shape), content)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "shard.safetensors"
    write_shard(path, [stored("vector", VECTOR), stored("matrix", MATRIX)])
    return path


def header_bytes(path: Path) -> int:
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


def read_matrix(path: Path, num_header_bytes: int | None = None) -> torch.Tensor:
    """The matrix as the reader gives it."""
    reader = ShardReader(path, num_header_bytes or header_bytes(path))
    target = bytearray(MATRIX.nbytes)
    try:
        reader.read("matrix", "float32", (2, 3), memoryview(target))
    finally:
        reader.close()
    return torch.frombuffer(target, dtype=torch.float32).reshape(2, 3)


def edit_header(path: Path, **changes: object) -> None:
    """Changes the matrix's entry, keeping the header's length."""
    content = path.read_bytes()
    length = header_bytes(path)
    entries = json.loads(content[8:length])
    entries["matrix"] |= changes
    header = json.dumps(entries, separators=(",", ":")).encode()
    assert len(header) <= length - 8
    path.write_bytes(content[:8] + header.ljust(length - 8) + content[length:])


def test_the_safetensors_library_reads_what_is_written(shard: Path) -> None:
    found = load_file(shard)
    assert found.keys() == {"vector", "matrix"}
    assert torch.equal(found["vector"], VECTOR)
    assert torch.equal(found["matrix"], MATRIX)


def test_what_the_safetensors_library_writes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "theirs.safetensors"
    save_file({"vector": VECTOR, "matrix": MATRIX}, path)
    assert torch.equal(read_matrix(path), MATRIX)


def test_the_record_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "shard.safetensors"
    record = write_shard(path, [stored("vector", VECTOR)])
    content = path.read_bytes()
    assert record.num_bytes == len(content)
    assert record.sha256 == hashlib.sha256(content).hexdigest()


def test_items_of_four_bytes_lie_at_multiples_of_four(shard: Path) -> None:
    entries = json.loads(shard.read_bytes()[8 : header_bytes(shard)])
    assert (header_bytes(shard) + entries["matrix"]["data_offsets"][0]) % 4 == 0


def test_a_block_is_read_back(shard: Path) -> None:
    assert torch.equal(read_matrix(shard), MATRIX)


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "F64"},
        {"shape": [3, 2]},
        {"data_offsets": [0, 8]},
        {"data_offsets": [8, 0]},
        {"data_offsets": [-4, 20]},
        {"data_offsets": "0"},
    ],
)
def test_a_header_that_differs_from_the_record_is_refused(
    shard: Path, change: dict[str, object]
) -> None:
    edit_header(shard, **change)
    with pytest.raises(ShardDamage, match="differ"):
        read_matrix(shard)


def test_a_range_beyond_the_end_of_the_file_is_refused(shard: Path) -> None:
    edit_header(shard, data_offsets=[90, 114])
    with pytest.raises(ShardDamage, match="ends early"):
        read_matrix(shard)


def test_a_block_that_the_header_lacks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "shard.safetensors"
    write_shard(path, [stored("vector", VECTOR)])
    with pytest.raises(ShardDamage, match="differ"):
        read_matrix(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"12345678", (56).to_bytes(8, "little") + b"[" * 56, (9).to_bytes(8, "little") * 8],
    ids=["empty", "short", "no JSON object", "another length"],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "shard.safetensors"
    path.write_bytes(content)
    with pytest.raises(ShardDamage, match="header|ends early"):
        read_matrix(path, 64)


def test_a_file_that_is_gone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardDamage, match="cannot be opened"):
        read_matrix(tmp_path / "nowhere", 64)
