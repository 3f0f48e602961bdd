"""Pieces of tensors in a Distributed Checkpoint: chunks, digests, what is read, what is refused."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from jigsaw_forecast.checkpoint import pieces as pieces_module
from jigsaw_forecast.checkpoint.distributed import PiecesReader, save_pieces
from jigsaw_forecast.checkpoint.format import ShardRecord, file_digest
from jigsaw_forecast.checkpoint.pieces import Piece, chunk_counts
from jigsaw_forecast.errors import CheckpointError
from jigsaw_forecast.parallel.background import make_background
from jigsaw_forecast.parallel.mesh import single_rank_mesh

MEGABYTE = 1 << 20


def _whole(values: torch.Tensor, *cut_dims: int) -> Piece:
    shape = tuple(values.shape)
    return Piece(values, shape, tuple(slice(0, length) for length in shape), cut_dims)


def _save(folder: Path, **tensors: Piece) -> dict[str, ShardRecord]:
    folder.mkdir()
    found: dict[str, ShardRecord] = {}
    save_pieces(folder, tensors, make_background(single_rank_mesh()), found.update)
    return found


def test_chunks_are_powers_of_two_of_4_mb_and_more() -> None:
    assert chunk_counts((1024, 1024), (0, 1), 4) == (1, 1)
    assert chunk_counts((4096, 4096), (0, 1), 4) == (4, 4)  # 64 MB
    assert chunk_counts((4096, 4096), (0,), 4) == (16, 1)
    assert chunk_counts((1 << 20, 1 << 10), (0, 1), 4) == (16, 16)  # 4 GB: no more than 16 a dim
    assert chunk_counts((2, 1 << 24), (0,), 4) == (2, 1)


def test_the_digests_are_those_of_the_files(tmp_path: Path) -> None:
    files = _save(tmp_path / "saved", a=_whole(torch.arange(12.0).reshape(3, 4)))
    assert set(files) == {path.name for path in (tmp_path / "saved").iterdir()}
    for name, record in files.items():
        path = tmp_path / "saved" / name
        assert (record.sha256, record.num_bytes) == (file_digest(path), path.stat().st_size)


def test_a_part_is_read_from_the_chunks_that_meet_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces_module, "MIN_CHUNK_BYTES", 1 << 16)
    values = torch.randn(512, 512)  # 1 MB, of which 16 chunks are cut
    _save(tmp_path / "saved", a=_whole(values, 0))
    reader = PiecesReader(tmp_path / "saved")
    part = Piece(torch.zeros(32, 100), (512, 512), (slice(96, 128), slice(7, 107)))
    reader.load({"a": part})
    assert torch.equal(part.values, values[96:128, 7:107])
    assert MEGABYTE / 16 <= reader.num_bytes < 1.1 * MEGABYTE / 16


def test_torchs_own_tools_read_it(tmp_path: Path) -> None:
    values = torch.randn(6, 5)
    _save(tmp_path / "saved", a=_whole(values))
    assert FileSystemReader(tmp_path / "saved").read_metadata().state_dict_metadata.keys() == {"a"}
    dcp_to_torch_save(tmp_path / "saved", tmp_path / "one.pt")
    assert torch.equal(torch.load(tmp_path / "one.pt")["a"], values)


def test_all_that_does_not_fit_is_listed(tmp_path: Path) -> None:
    _save(tmp_path / "saved", a=_whole(torch.zeros(3, 4)), b=_whole(torch.zeros(2)))
    wanted = {
        "a": _whole(torch.zeros(3, 5)),
        "b": _whole(torch.zeros(2, dtype=torch.float64)),
        "c": _whole(torch.zeros(1)),
    }
    with pytest.raises(CheckpointError) as caught:
        PiecesReader(tmp_path / "saved").load(wanted)
    for text in (
        "a has shape (3, 4), expected (3, 5)",
        "b is torch.float32, expected torch.float64",
        "missing tensor c",
    ):
        assert text in str(caught.value)


def test_metadata_that_would_run_code_is_refused(tmp_path: Path) -> None:
    _save(tmp_path / "saved", a=_whole(torch.zeros(1)))

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    (tmp_path / "saved" / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match="which metadata does not"):
        PiecesReader(tmp_path / "saved")
    assert not (tmp_path / "ran").exists()


def test_a_failure_before_the_writing_fails_the_save(tmp_path: Path) -> None:
    piece = _whole(torch.zeros(1))
    background = make_background(single_rank_mesh())
    with pytest.raises(CheckpointError, match="no room"):
        save_pieces(tmp_path, {"a": piece}, background, lambda files: None, OSError("no room"))
