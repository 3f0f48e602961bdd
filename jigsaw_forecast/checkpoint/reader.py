"""Reads a rank's parts of a checkpoint: each block once, hashed as it is read, then used."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import local
from types import TracebackType
from typing import NamedTuple, Self

import torch

from jigsaw_forecast.checkpoint.blocks import overlap
from jigsaw_forecast.checkpoint.format import Block, Manifest, Part, TensorRecord
from jigsaw_forecast.checkpoint.shards import ShardDamage, ShardReader

MAX_THREADS = 16  # beyond, no file system seen gave more
_NUM_TENSORS_NAMED = 3

_Job = tuple[Block, Part]


class Damage(NamedTuple):
    """One thing that is wrong with a shard, and the tensor where it showed."""

    shard: str
    reason: str
    tensor: str


class CheckpointReader:
    """Reads parts of tensors, counts the bytes and notes all damage; use as a context manager.

    What it has read may be used only once `damages` is known to be empty. Shards are opened when
    first needed. Blocks are read and hashed by as many threads as torch computes with, which is
    this rank's share of the cores.

    Attributes:
        num_bytes: Bytes read so far: blocks and headers of shards.
        damages: What was found to be wrong.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, advance: Callable[[int], None] = lambda _: None
    ) -> None:
        """Opens nothing yet.

        Args:
            folder: Of the checkpoint.
            manifest: Its `model.json`.
            advance: Called with the number of bytes just read.
        """
        self.num_bytes = 0
        self.damages: set[Damage] = set()
        self._folder = folder
        self._manifest = manifest
        self._header_bytes = manifest.header_bytes()
        self._advance = advance
        self._shards: dict[str, ShardReader | None] = {}
        self._buffers = local()
        self._pool = ThreadPoolExecutor(min(torch.get_num_threads(), MAX_THREADS))

    def __enter__(self) -> Self:
        """Nothing to do."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends the threads and closes the shards."""
        self._pool.shutdown(cancel_futures=True)
        for shard in self._shards.values():
            if shard is not None:
                shard.close()

    def read(self, name: str, part: Part, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A part of a whole tensor on the CPU; its values are undefined where a block is damaged.

        Args:
            name: Of the tensor.
            part: What to read of it.
            dtype: Of the result; by default the stored one.
        """
        record = self._manifest.tensors[name]
        shape = tuple(piece.stop - piece.start for piece in part)
        result = torch.empty(shape, dtype=dtype or getattr(torch, record.dtype))
        jobs = list(self._jobs(name, record, part))

        def run(job: _Job) -> ShardDamage | None:
            block, common = job
            shard = self._shards[block.shard]
            assert shard is not None
            try:
                values = self._read_block(shard, record, block)
            except ShardDamage as damage:
                return damage
            target = result[_relative(common, part)]
            target.copy_(values[_relative(common, block.part)])
            return None

        for (block, _), damage in zip(jobs, self._map(run, jobs), strict=True):
            if damage is not None:
                self.damages.add(Damage(block.shard, str(damage), name))
            self._count(record.num_bytes(block))
        return result

    def _jobs(self, name: str, record: TensorRecord, part: Part) -> Iterator[_Job]:
        """The blocks that the part needs and where they meet it; opens their shards."""
        for block in record.blocks(name):
            common = overlap(part, block)
            if common is not None and self._open(block.shard):
                yield block, common

    def _open(self, name: str) -> bool:
        """Opens a shard unless it is open; whether it can be read."""
        if name not in self._shards:
            self._shards[name] = None
            try:
                shard = ShardReader(self._folder / name, self._header_bytes[name])
            except ShardDamage as damage:
                self.damages.add(Damage(name, str(damage), ""))
            else:
                self._shards[name] = shard
                self._count(shard.num_header_bytes)
        return self._shards[name] is not None

    def _map(
        self, run: Callable[[_Job], ShardDamage | None], jobs: list[_Job]
    ) -> Iterable[ShardDamage | None]:
        return map(run, jobs) if len(jobs) == 1 else self._pool.map(run, jobs)

    def _read_block(self, shard: ShardReader, record: TensorRecord, block: Block) -> torch.Tensor:
        """A whole block, compared with its digest where it has one; in the thread's buffer.

        Raises:
            ShardDamage: It cannot be read or is altered.
        """
        num_bytes = record.num_bytes(block)
        buffer: torch.Tensor | None = getattr(self._buffers, "values", None)
        if buffer is None or buffer.numel() < num_bytes:
            # kept: the system would clear a new one's pages for each block
            self._buffers.values = buffer = torch.empty(num_bytes, dtype=torch.uint8)
        content = buffer[:num_bytes]
        view = content.numpy().data
        shard.read(block.key, record.dtype, block.shape, view)
        if block.sha256 and hashlib.sha256(view).hexdigest() != block.sha256:
            raise ShardDamage("sha256 differs in")
        return content.view(getattr(torch, record.dtype)).view(block.shape)

    def _count(self, num_bytes: int) -> None:
        self.num_bytes += num_bytes
        self._advance(num_bytes)


def _relative(part: Part, outer: Part) -> Part:
    """A part counted from the start of another that contains it."""
    return tuple(
        slice(piece.start - whole.start, piece.stop - whole.start)
        for piece, whole in zip(part, outer, strict=True)
    )


def describe_damages(folder: Path, damages: Iterable[Damage]) -> list[str]:
    """One line for each damaged shard, with the tensors where it showed."""
    reasons: dict[str, dict[str, set[str]]] = {}
    for shard, reason, tensor in damages:
        reasons.setdefault(shard, {}).setdefault(reason, set()).add(tensor)
    lines = []
    for shard, found in sorted(reasons.items()):
        texts = [f"{reason} {_some(tensors)}".strip() for reason, tensors in sorted(found.items())]
        lines.append(f"{folder / shard}: {', '.join(texts)}")
    return lines


def _some(tensors: set[str]) -> str:
    names = sorted(tensors)
    rest = len(names) - _NUM_TENSORS_NAMED
    text = " and ".join(names[:_NUM_TENSORS_NAMED])
    return f"{text} and {rest} more tensors" if rest > 0 else text
