"""Writes a checkpoint folder shard by shard, whole or not at all."""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from jigsaw_forecast.checkpoint.blocks import Degrees, num_blocks
from jigsaw_forecast.checkpoint.format import (
    FORMAT_VERSION,
    Manifest,
    ShardRecord,
    TensorRecord,
    write_manifest,
)
from jigsaw_forecast.checkpoint.shards import StoredBlock, write_shard
from jigsaw_forecast.errors import CheckpointError

MAX_SHARD_BYTES = 1 << 28  # a shard is in memory when it is written


class CheckpointWriter:
    """Collects blocks and writes a shard whenever enough are there.

    Until `finish` all lies in a folder `NAME.partial`, which `abandon` removes and `begin` clears.
    """

    def __init__(self, folder: Path, advance: Callable[[int], None] = lambda _: None) -> None:
        """Touches nothing yet.

        Args:
            folder: What the checkpoint will be; must not exist.
            advance: Called with the number of bytes just written.
        """
        self.folder = folder
        self.partial = folder.with_name(folder.name + ".partial")
        self._advance = advance
        self._blocks: list[StoredBlock] = []
        self._num_bytes = 0
        self._tensors: dict[str, TensorRecord] = {}
        self._shards: dict[str, ShardRecord] = {}

    def begin(self) -> None:
        """Makes an empty folder to write to.

        Raises:
            CheckpointError: The checkpoint exists already, or its place cannot be written.
        """
        if self.folder.exists():
            raise CheckpointError(f"checkpoint {self.folder} exists already")
        with self._writing():
            shutil.rmtree(self.partial, ignore_errors=True)
            self.partial.mkdir(parents=True)

    def add_tensor(self, name: str, values: torch.Tensor, degrees: Mapping[int, Degrees]) -> None:
        """Adds a whole tensor on the CPU block by block.

        Args:
            name: Of the tensor.
            values: May be a view; blocks that lie in one piece are not copied.
            degrees: In how many parts a mesh may cut each dim.

        Raises:
            CheckpointError: A shard cannot be written.
        """
        shape = tuple(values.shape)
        dtype = str(values.dtype).removeprefix("torch.")
        counts = num_blocks(shape, degrees, dtype)
        places = TensorRecord.places(shape, counts)
        shards, digests = [], []
        for key, part in places:
            block = values[part].contiguous()
            content = _bytes(block)
            digests.append(hashlib.sha256(content).hexdigest())
            stored = StoredBlock(f"{name}@{key}", dtype, tuple(block.shape), content)
            shards.append(self._add(stored))
        self._tensors[name] = TensorRecord(
            shape=shape,
            dtype=dtype,
            num_blocks=counts,
            shards=tuple(shards),
            digests=tuple(digests),
        )

    def finish(self, **description: Any) -> Manifest:
        """Writes what is left and gives the folder its name.

        Args:
            description: What a `Manifest` holds besides version, name, tensors and shards.

        Raises:
            CheckpointError: The disk refuses it.
        """
        manifest = self.seal(**description)
        with self._writing():
            self.partial.rename(self.folder)
        return manifest

    def seal(self, **description: Any) -> Manifest:
        """Writes what is left and `model.json`; the folder keeps its partial name.

        Args:
            description: As `finish` takes it.

        Raises:
            CheckpointError: The disk refuses it.
        """
        self._flush()
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            name=self.folder.name,
            tensors=self._tensors,
            shards=self._shards,
            **description,
        )
        with self._writing():
            write_manifest(self.partial, manifest)
        return manifest

    def abandon(self) -> None:
        """Removes what was written."""
        shutil.rmtree(self.partial, ignore_errors=True)

    def _add(self, block: StoredBlock) -> str:
        """Collects a block and returns the name of the shard it will be in."""
        if self._blocks and self._num_bytes + block.values.nbytes > MAX_SHARD_BYTES:
            self._flush()
        self._blocks.append(block)
        self._num_bytes += block.values.nbytes
        return self._current

    @property
    def _current(self) -> str:
        return f"weights-{len(self._shards):05d}.safetensors"

    def _flush(self) -> None:
        """Writes the collected blocks."""
        if not self._blocks:
            return
        with self._writing():
            record = write_shard(self.partial / self._current, self._blocks)
        self._shards[self._current] = record
        self._advance(self._num_bytes)
        self._blocks, self._num_bytes = [], 0

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Within, what the disk refuses becomes a `CheckpointError`."""
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"checkpoint {self.folder}: cannot be written: {error}"
            ) from error


def _bytes(block: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor, without a copy."""
    if not block.numel():
        return memoryview(b"")  # torch gives such tensors strides that cannot be viewed as bytes
    return block.reshape(-1).view(torch.uint8).numpy().data
