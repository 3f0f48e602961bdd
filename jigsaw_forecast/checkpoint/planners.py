"""What torch's Distributed Checkpoint is told to write and to read: chunks with their place."""

from collections.abc import Iterator
from math import prod
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from jigsaw_forecast.checkpoint.format import Part
from jigsaw_forecast.checkpoint.pieces import Pieces
from jigsaw_forecast.parallel.mesh import Mesh


class PiecesSavePlanner(DefaultSavePlanner):
    """Plans to write the chunks of pieces, each by one of the replicas that hold it."""

    def __init__(self, pieces: Pieces, mesh: Mesh) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._pieces = pieces
        self._data = mesh.data

    def create_local_plan(self) -> SavePlan:
        """This rank's chunks."""
        items = [self._item(name, chunk) for name, chunk in self._own_chunks()]
        self.plan = SavePlan(items)
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor:
        """The values of a chunk."""
        assert write_item.tensor_data is not None
        chunk = _part(write_item.tensor_data.chunk)
        return self._pieces[write_item.index.fqn].view(chunk).contiguous()

    def _own_chunks(self) -> Iterator[tuple[str, Part]]:
        """Largest first to the replica that has least so far; alike on all, so none need talk."""
        loads = [0] * self._data.size
        chunks = [
            (_num_items(chunk) * piece.values.element_size(), name, chunk)
            for name, piece in self._pieces.items()
            for chunk in piece.chunks()
            if piece.is_replicated
        ]
        for num_bytes, name, chunk in sorted(chunks, key=lambda item: -item[0]):
            replica = loads.index(min(loads))
            loads[replica] += num_bytes
            if replica == self._data.index:
                yield name, chunk
        for name, piece in self._pieces.items():
            if not piece.is_replicated:
                yield from ((name, chunk) for chunk in piece.chunks())

    def _item(self, name: str, chunk: Part) -> WriteItem:
        piece, place = self._pieces[name], _chunk(chunk)
        return WriteItem(
            index=MetadataIndex(name, place.offsets),
            type=WriteItemType.SHARD,
            tensor_data=TensorWriteData(
                chunk=place,
                properties=TensorProperties(dtype=piece.values.dtype),
                size=torch.Size(piece.full_shape),
            ),
        )


class PiecesLoadPlanner(LoadPlanner):
    """Plans to read the chunks that meet pieces."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces

    def set_up_planner(
        self, state_dict: Any, metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        """Takes what the checkpoint holds."""
        assert metadata is not None
        self._records = metadata.state_dict_metadata

    def create_local_plan(self) -> LoadPlan:
        """The chunks that meet this rank's pieces."""
        items = []
        for name, piece in self._pieces.items():
            record = self._records.get(name)
            if isinstance(record, TensorStorageMetadata) and piece.values.numel():
                items += create_read_items_for_chunk_list(name, record, [_chunk(piece.part)])
        return LoadPlan(items)

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        """The plans as they are: each rank reads by itself."""
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        """The plan as it is."""
        return central_plan

    def load_bytes(self, read_item: ReadItem, value: Any) -> None:
        """Nothing comes here."""
        raise AssertionError("a training checkpoint holds tensors only")

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        """Where to put a chunk: a view of the piece."""
        values = self._pieces[read_item.dest_index.fqn].values.detach()
        place = zip(read_item.dest_offsets, read_item.lengths, strict=True)
        return values[tuple(slice(start, start + length) for start, length in place)]

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        """Nothing to do: what `resolve_tensor` gives is a view."""


def _chunk(part: Part) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(
        offsets=torch.Size(piece.start for piece in part),
        sizes=torch.Size(piece.stop - piece.start for piece in part),
    )


def _part(chunk: ChunkStorageMetadata | None) -> Part:
    assert chunk is not None
    return tuple(
        slice(start, start + length)
        for start, length in zip(chunk.offsets, chunk.sizes, strict=True)
    )


def _num_items(part: Part) -> int:
    return prod(piece.stop - piece.start for piece in part)
