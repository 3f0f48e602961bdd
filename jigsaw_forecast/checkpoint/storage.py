"""Torch's files of a Distributed Checkpoint: hashed when written, read without running code."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult

from jigsaw_forecast.checkpoint.format import ShardRecord, file_digest
from jigsaw_forecast.errors import CheckpointError

METADATA = ".metadata"
_DIGEST = "sha256 of "

Finish = Callable[[dict[str, ShardRecord]], None]


class HashingWriter(FileSystemWriter):
    """Torch's writer, which then hashes its files and ends with the caller's own act."""

    def __init__(self, folder: Path, finish: Finish, failure: Exception | None) -> None:
        # the pieces are on the CPU already: nothing is to be copied ahead
        super().__init__(folder, sync_files=True, thread_count=1, per_thread_copy_ahead=0)
        self._folder = folder
        self._finish = finish
        self._failure = failure

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Leaves the folder to rank 0, which has made it before it comes here."""
        if self._failure is not None:
            raise self._failure
        return plan

    def write_data(
        self, plan: SavePlan, planner: SavePlanner
    ) -> torch.futures.Future[list[WriteResult]]:
        """Writes this rank's file and adds its digest to the results."""
        results = super().write_data(plan, planner).wait()
        names = sorted({result.storage_data.relative_path for result in results})
        for name in names or [f"{plan.storage_data.prefix}0.distcp"]:
            path = self._folder / name
            record = WriteResult(
                MetadataIndex(_DIGEST + name), path.stat().st_size, file_digest(path)
            )
            results.append(record)
        future: torch.futures.Future[list[WriteResult]] = torch.futures.Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Writes the metadata of all ranks' files, then runs the caller's act; on rank 0."""
        files: dict[str, ShardRecord] = {}
        written: list[list[WriteResult]] = [[]]
        for result in (result for own in results for result in own):
            if result.index.fqn.startswith(_DIGEST):
                name = result.index.fqn.removeprefix(_DIGEST)
                files[name] = ShardRecord(
                    sha256=result.storage_data, num_bytes=result.size_in_bytes
                )
            else:
                written[0].append(result)
        super().finish(metadata, written)
        path = self._folder / METADATA
        files[METADATA] = ShardRecord(sha256=file_digest(path), num_bytes=path.stat().st_size)
        self._finish(files)


# all that the pickle of torch 2.13 names, in every Python that has another path class
_METADATA_CLASSES = {
    ("torch", "Size"),
    ("torch", "float32"),
    ("torch", "float64"),
    ("torch", "bfloat16"),
    ("torch", "uint8"),
    ("torch", "int64"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.metadata", "Metadata"),
    ("torch.distributed.checkpoint.metadata", "MetadataIndex"),
    ("torch.distributed.checkpoint.metadata", "StorageMeta"),
    ("torch.distributed.checkpoint.metadata", "TensorProperties"),
    ("torch.distributed.checkpoint.metadata", "TensorStorageMetadata"),
    ("torch.distributed.checkpoint.metadata", "ChunkStorageMetadata"),
    ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("pathlib._local", "PosixPath"),
}


class _MetadataUnpickler(pickle.Unpickler):
    """Makes what metadata consists of and refuses all else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _METADATA_CLASSES:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which metadata does not")
        return super().find_class(module, name)


class CheckedReader(FileSystemReader):
    """Torch's reader, whose metadata makes nothing but metadata."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The metadata.

        Raises:
            CheckpointError: It is none, or names anything that metadata does not consist of.
        """
        path = Path(self.path) / METADATA
        try:
            with path.open("rb") as file:
                metadata = _load_metadata(file)
        except (OSError, pickle.UnpicklingError, EOFError, AttributeError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from error
        return metadata


def _load_metadata(file: IO[bytes]) -> Metadata:
    metadata = _MetadataUnpickler(file).load()
    if not isinstance(metadata, Metadata):
        raise pickle.UnpicklingError("it is no metadata of a Distributed Checkpoint")
    return metadata
