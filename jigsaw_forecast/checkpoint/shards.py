"""Shards: safetensors files, written from memory as it lies and read block by block.

The format is eight bytes with the header's length (little-endian), a JSON header that gives each
block's dtype, shape and byte range after the header, then the blocks without gaps. Source:
https://huggingface.co/docs/safetensors, "Format". Written here because the library's writer
copies all of a shard, and its reader offers no part of a file to hash and use in one pass.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jigsaw_forecast.checkpoint.format import ITEM_BYTES, ShardRecord

_DTYPE_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}
_LENGTH_BYTES = 8
_ALIGNMENT = 8
_WRITE_CHUNK_BYTES = 1 << 22
assert _DTYPE_NAMES.keys() == ITEM_BYTES.keys()


class ShardDamage(Exception):
    """What is wrong with a shard; always caught and told with all other damage."""


@dataclass(frozen=True)
class StoredBlock:
    """A block on its way to a shard.

    Attributes:
        key: Its name.
        dtype: As torch names it.
        shape: Its lengths.
        values: Its bytes.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    values: memoryview


def write_shard(path: Path, blocks: Sequence[StoredBlock]) -> ShardRecord:
    """Writes a shard and returns its record; hashes what it writes, so nothing is read back.

    Raises:
        OSError: The disk refuses it.
    """
    # readers that map the file need each block at a multiple of its item size
    ordered = sorted(blocks, key=lambda block: -ITEM_BYTES[block.dtype])
    entries: dict[str, Any] = {}
    end = 0
    for block in ordered:
        start, end = end, end + block.values.nbytes
        entries[block.key] = {
            "dtype": _DTYPE_NAMES[block.dtype],
            "shape": list(block.shape),
            "data_offsets": [start, end],
        }
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _ALIGNMENT)
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        start_bytes = len(header).to_bytes(_LENGTH_BYTES, "little") + header
        for content in (memoryview(start_bytes), *(block.values for block in ordered)):
            _write(file.fileno(), content)
            digest.update(content)
    num_bytes = _LENGTH_BYTES + len(header) + end
    return ShardRecord(sha256=digest.hexdigest(), num_bytes=num_bytes)


def _write(descriptor: int, content: memoryview) -> None:
    """Writes all of a buffer; one system call may write less than it is asked to."""
    done = 0
    while done < content.nbytes:
        done += os.write(descriptor, content[done : done + _WRITE_CHUNK_BYTES])


class ShardReader:
    """An open shard; any thread may read from it.

    Attributes:
        num_header_bytes: Read when it was opened.
    """

    def __init__(self, path: Path, num_header_bytes: int) -> None:
        """Opens a shard and parses its header.

        Args:
            path: The file.
            num_header_bytes: Length of what comes before the blocks, as `model.json` implies it.

        Raises:
            ShardDamage: It cannot be opened, or its header is not one.
        """
        self.num_header_bytes = num_header_bytes
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise ShardDamage(f"cannot be opened: {error.strerror}") from error
        try:
            self._entries = self._parse_header()
        except ShardDamage:
            self.close()
            raise

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)

    def read(self, key: str, dtype: str, shape: tuple[int, ...], target: memoryview) -> None:
        """Reads a block.

        Args:
            key: Its name.
            dtype: As `model.json` records it.
            shape: As `model.json` implies it.
            target: Where its bytes go; of its size.

        Raises:
            ShardDamage: The header tells another story than `model.json`, or the file ends early.
        """
        entry = self._entries.get(key)
        expected = {"dtype": _DTYPE_NAMES[dtype], "shape": list(shape)}
        if not isinstance(entry, dict) or any(entry.get(k) != v for k, v in expected.items()):
            raise ShardDamage("header and model.json differ on")
        start, end = self._range(entry)
        if end - start != target.nbytes:
            raise ShardDamage("header and model.json differ on")
        self._read(self.num_header_bytes + start, target)

    def _range(self, entry: dict[str, Any]) -> tuple[int, int]:
        match entry.get("data_offsets"):
            case [int(start), int(end)] if 0 <= start <= end:
                return start, end
        raise ShardDamage("header and model.json differ on")

    def _parse_header(self) -> dict[str, Any]:
        not_a_header = "its header is not that of a safetensors file of model.json"
        if self.num_header_bytes < _LENGTH_BYTES:
            raise ShardDamage(not_a_header)
        content = bytearray(self.num_header_bytes)
        self._read(0, memoryview(content))
        if int.from_bytes(content[:_LENGTH_BYTES], "little") != len(content) - _LENGTH_BYTES:
            raise ShardDamage(not_a_header)
        try:
            entries = json.loads(content[_LENGTH_BYTES:])
        except (ValueError, RecursionError) as error:
            raise ShardDamage(not_a_header) from error
        if not isinstance(entries, dict):
            raise ShardDamage(not_a_header)
        return entries

    def _read(self, offset: int, target: memoryview) -> None:
        done = 0
        while done < target.nbytes:
            try:
                count = os.preadv(self._descriptor, [target[done:]], offset + done)
            except OSError as error:
                raise ShardDamage(f"cannot be read: {error.strerror}") from error
            if count == 0:
                raise ShardDamage("it ends early")
            done += count
