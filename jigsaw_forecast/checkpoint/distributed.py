"""Pieces of whole tensors, written and read by torch's Distributed Checkpoint.

Every rank writes its own pieces to files of its own, cut into chunks with their place in the whole
tensor, so that any other mesh finds what it needs. The files are those of torch's
`FileSystemWriter`, which its own tools read too; each is hashed when it is on disk.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlanner
from torch.distributed.checkpoint.state_dict_saver import save

from jigsaw_forecast.checkpoint.pieces import Pieces
from jigsaw_forecast.checkpoint.planners import PiecesLoadPlanner, PiecesSavePlanner
from jigsaw_forecast.checkpoint.storage import CheckedReader, Finish, HashingWriter
from jigsaw_forecast.errors import CheckpointError
from jigsaw_forecast.parallel.background import Background


def save_pieces(
    folder: Path,
    pieces: Pieces,
    background: Background,
    finish: Finish,
    failure: Exception | None = None,
) -> None:
    """Writes the pieces of all ranks; data replicas share the work.

    Args:
        folder: Made by rank 0 before it calls this; the others need not see it yet.
        pieces: On the CPU, of the same names on every rank.
        background: The ranks.
        finish: Runs on rank 0 when all files of all ranks are on disk; takes their digests.
        failure: What went wrong on this rank before; every rank then fails.

    Raises:
        CheckpointError: A rank failed; the same on every rank.

    Communication:
        The plan and the results of every rank to rank 0 and back, by way of `torch`.
    """
    writer = HashingWriter(folder, finish, failure)
    planner = PiecesSavePlanner(pieces, background.mesh)
    values = {name: piece.values for name, piece in pieces.items()}
    with _failures_named(folder):
        if background.everyone is None:
            _save_alone(values, writer, planner)
        else:
            save(
                values,
                storage_writer=writer,
                planner=planner,
                process_group=background.everyone,
            )


def _save_alone(
    values: dict[str, torch.Tensor], writer: HashingWriter, planner: SavePlanner
) -> None:
    """The steps of `dcp.save` for one rank; that warns where torch.distributed is not started."""
    planner.set_up_planner(values, writer.storage_meta(), True)
    writer.set_up_storage_writer(True)
    plan = writer.prepare_local_plan(planner.create_local_plan())
    plans, metadata = planner.create_global_plan([plan])
    plan = planner.finish_plan(writer.prepare_global_plan(plans)[0])
    writer.finish(metadata, [writer.write_data(plan, planner).wait()])


class PiecesReader:
    """An open checkpoint, whose files have been compared with their digests.

    Attributes:
        dtypes: Of every tensor that it holds, by name.
        num_bytes: Of the chunks read so far.
    """

    def __init__(self, folder: Path) -> None:
        """Reads the metadata.

        Raises:
            CheckpointError: There is none, or it is none.
        """
        self._folder = folder
        self._reader = CheckedReader(folder)
        self._metadata = self._reader.read_metadata()
        self._reader.set_up_storage_reader(self._metadata, True)
        self._records = {
            name: record
            for name, record in self._metadata.state_dict_metadata.items()
            if isinstance(record, TensorStorageMetadata)
        }
        self.dtypes = {name: record.properties.dtype for name, record in self._records.items()}
        self.num_bytes = 0

    def full_shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor that it holds."""
        return tuple(self._records[name].size)

    def load(self, pieces: Pieces) -> None:
        """Fills this rank's pieces; reads the chunks that meet them and no others.

        Args:
            pieces: To be filled, on any device.

        Raises:
            CheckpointError: The checkpoint has other tensors.
        """
        problems = list(self._misfits(pieces))
        if problems:
            raise CheckpointError(f"training checkpoint {self._folder}: {'; '.join(problems)}")
        planner = PiecesLoadPlanner(pieces)
        planner.set_up_planner({}, self._metadata, True)
        plan = planner.create_local_plan()
        with _failures_named(self._folder):
            self._reader.read_data(plan, planner).wait()
        places = self._reader.storage_data
        self.num_bytes += sum(places[item.storage_index].length for item in plan.items)

    def _misfits(self, pieces: Pieces) -> Iterator[str]:
        for name, piece in pieces.items():
            if not prod(piece.full_shape):
                continue
            record = self._records.get(name)
            if record is None:
                yield f"missing tensor {name}"
            elif tuple(record.size) != piece.full_shape:
                yield f"{name} has shape {tuple(record.size)}, expected {piece.full_shape}"
            elif record.properties.dtype != piece.values.dtype:
                yield f"{name} is {record.properties.dtype}, expected {piece.values.dtype}"


@contextmanager
def _failures_named(folder: Path) -> Iterator[None]:
    """Within, what goes wrong on any rank becomes a `CheckpointError`."""
    try:
        yield
    except CheckpointException as error:
        found = (f"rank {rank}: {_text(failure)}" for rank, (failure, _) in error.failures.items())
        raise CheckpointError(f"{folder}: {'; '.join(dict.fromkeys(found))}") from error
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{folder}: {_text(error)}") from error


def _text(error: BaseException) -> str:
    """What an error says, with the system's reason where torch hides it behind its own."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    return str(cause or error).strip().partition("\n")[0]
