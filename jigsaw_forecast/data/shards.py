"""Shards of a training set: compressed chunks with checksums and an index, one file each.

The bytes are those of zarr version 3: codec `sharding_indexed` around `bytes`, `blosc` and
`crc32c`, index at the end, so any zarr library reads them. They are written and read here
directly, into memory that is there already (benchmarks/data_loading.py compares it with zarr's own
pipeline). Chunks lie band by band, fields within a band, so that
what one rank reads is one stretch of the file for each band.

Source: https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html
"""

import os
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs import blosc

from jigsaw_forecast.errors import DataError

Array = npt.NDArray[np.float32]
Index = npt.NDArray[np.uint64]
Bytes = npt.NDArray[np.uint8]  # views of bytes, which the checksum takes without a copy

FLOAT_BYTES = 4
CHECKSUM_BYTES = 4
ENTRY_BYTES = 16  # offset and length
EMPTY = np.uint64(2**64 - 1)  # offset and length of a chunk that is not there
# lz4 is fast in both directions, zstd shrinks further and encodes more slowly.
LEVELS = {"lz4": 5, "zstd": 3}
# A new name on each write, so that two writers cannot meet in one file.
_PARTIAL_SUFFIX = ".partial"


@dataclass(frozen=True)
class ShardLayout:
    """How maps lie in a shard.

    Attributes:
        num_times: Times in a whole shard.
        num_fields: Fields of the training set.
        num_bands: Latitude bands, each a chunk of its own.
        band_rows: Rows of a band.
        num_lon: Columns.
        codec: `lz4` or `zstd`.
    """

    num_times: int
    num_fields: int
    num_bands: int
    band_rows: int
    num_lon: int
    codec: str

    @property
    def num_rows(self) -> int:
        """Rows of a map."""
        return self.num_bands * self.band_rows

    @property
    def num_chunks(self) -> int:
        """Chunks of a whole shard."""
        return self.num_times * self.num_fields * self.num_bands

    @property
    def index_bytes(self) -> int:
        """Bytes of the index and its checksum at the end of a shard."""
        return self.num_chunks * ENTRY_BYTES + CHECKSUM_BYTES

    @property
    def index_shape(self) -> tuple[int, int, int, int]:
        """Time, field, band, and then offset and length."""
        return self.num_times, self.num_fields, self.num_bands, 2

    def metadata(self, num_times: int, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """The array's `zarr.json`."""
        inner = (1, 1, self.band_rows, self.num_lon)
        checksum: dict[str, Any] = {"name": "crc32c"}
        to_bytes = {"name": "bytes", "configuration": {"endian": "little"}}
        compression = {
            "name": "blosc",
            "configuration": {
                "typesize": FLOAT_BYTES,
                "cname": self.codec,
                "clevel": LEVELS[self.codec],
                "shuffle": "shuffle",
                "blocksize": 0,
            },
        }
        sharding = {
            "chunk_shape": list(inner),
            "codecs": [to_bytes, compression, checksum],
            "index_codecs": [to_bytes, checksum],
            "index_location": "end",
        }
        outer = [self.num_times, self.num_fields, self.num_rows, self.num_lon]
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [num_times, *outer[1:]],
            "data_type": "float32",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": outer}},
            # all shards in one folder, so that one listing shows which are missing
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "fill_value": "NaN",
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "attributes": dict(attributes),
            "dimension_names": ["time", "field", "latitude", "longitude"],
            "storage_transformers": [],
        }


def shard_name(number: int) -> str:
    """File name of a shard in the array's folder."""
    return f"c.{number}.0.0.0"


def decode_chunk(packed: Bytes, out: Array) -> bool:
    """Decodes a chunk into a contiguous array of its size; False where it is damaged.

    Takes one core: blosc uses threads of its own only when called from the main thread, so it is
    called from others, and it frees the interpreter meanwhile.
    """
    if not _is_whole(packed):
        return False
    blosc.decompress(packed[:-CHECKSUM_BYTES], out)
    return True


class ShardBuffer:
    """Encodes the chunks of a shard, in the order in which they are to lie, and writes them.

    The memory is used again for the next shard: chunks kept one by one would cost a page fault
    for each 4 KB of every sample.
    """

    def __init__(self, layout: ShardLayout) -> None:
        """Takes as much memory as the values of a whole shard."""
        self._layout = layout
        chunk_bytes = layout.band_rows * layout.num_lon * FLOAT_BYTES
        largest = chunk_bytes + blosc.MAX_OVERHEAD + CHECKSUM_BYTES
        self._memory = np.empty(layout.num_chunks * largest, dtype=np.uint8)
        self._index = np.full(layout.index_shape, EMPTY, dtype="<u8")
        self._end = 0

    def add(self, place: tuple[int, int, int], values: Array) -> None:
        """Encodes a band of one map.

        Args:
            place: Time within the shard, field and band.
            values: Contiguous, shape [band_rows, X].
        """
        codec = self._layout.codec
        packed = blosc.compress(
            values, codec.encode(), LEVELS[codec], blosc.SHUFFLE, 0, FLOAT_BYTES
        )
        content = packed, _checksum(packed)
        start = self._end
        for part in content:
            self._memory[self._end : self._end + len(part)] = np.frombuffer(part, dtype=np.uint8)
            self._end += len(part)
        self._index[place] = start, self._end - start

    def write(self, path: Path) -> int:
        """Writes what was added and starts anew; returns the size of the file.

        Under a temporary name and then renamed: it is there whole or not at all.
        """
        table = self._index.tobytes()
        partial = path.with_name(f"{path.name}.{os.getpid()}{_PARTIAL_SUFFIX}")
        with partial.open("wb") as stream:
            stream.write(self._memory[: self._end].data)
            stream.write(table + _checksum(table))
            stream.flush()
            _start_writing(stream.fileno())
        partial.rename(path)
        num_bytes = self._end + len(table) + CHECKSUM_BYTES
        self._index[...] = EMPTY
        self._end = 0
        return num_bytes


def _start_writing(file: int) -> None:
    """Has the kernel send a file to the disk now, without waiting for it.

    By itself it would begin when a tenth of the memory is full, and the disk would stand idle.
    """
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)


def map_checksum(values: Array, before: int = 0) -> int:
    """crc32c of a map's bytes as little-endian float32: the same however it is stored.

    Args:
        values: The map, or its next rows; contiguous.
        before: Checksum of the rows before them.
    """
    found: int = google_crc32c.extend(before, np.asarray(values, dtype="<f4"))
    return found


class ShardReader:
    """An open shard: its index, and its chunks by stretches of the file.

    Attributes:
        path: The file.
        num_bytes: Its size.
        index: Offset and length of each chunk, shape [time, field, band, 2].
    """

    def __init__(self, path: Path, layout: ShardLayout) -> None:
        """Reads the index.

        Raises:
            DataError: The file is missing, torn or damaged.
        """
        self.path = path
        try:
            self._file = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise DataError(f"missing {path}: a shard of the training set") from None
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from None
        # closed with the last user of the object, who may be a thread of a pool
        weakref.finalize(self, os.close, self._file)
        self.num_bytes = os.fstat(self._file).st_size
        self.index = self._read_index(layout)

    def _read_index(self, layout: ShardLayout) -> Index:
        start = self.num_bytes - layout.index_bytes
        table = os.pread(self._file, layout.index_bytes, start) if start >= 0 else b""
        content, checksum = table[:-CHECKSUM_BYTES], table[-CHECKSUM_BYTES:]
        if len(table) != layout.index_bytes or _checksum(content) != checksum:
            raise DataError(
                f"{self.path} is torn or damaged: its {self.num_bytes} bytes end in no whole "
                "index; restore it, or convert the data again"
            )
        return np.frombuffer(content, dtype="<u8").reshape(layout.index_shape)

    def read(self, offset: int, num_bytes: int) -> Bytes:
        """A stretch of the file.

        Raises:
            DataError: The file ends before it.
        """
        found = os.pread(self._file, num_bytes, offset)
        if len(found) != num_bytes:
            raise DataError(f"{self.path} is torn: it ends before byte {offset + num_bytes}")
        return np.frombuffer(found, dtype=np.uint8)


@dataclass(frozen=True)
class Stretch:
    """Neighbouring chunks of one shard, read at once.

    Attributes:
        offset: First byte.
        num_bytes: Of all of them.
        chunks: Place in the index, offset within the stretch and length of each.
    """

    offset: int
    num_bytes: int
    chunks: tuple[tuple[tuple[int, int, int], int, int], ...]


def find_stretches(
    index: Index, places: Iterable[tuple[int, int, int]], max_bytes: int
) -> list[Stretch]:
    """The fewest reads that give these chunks and nothing else, none longer than `max_bytes`.

    Args:
        index: Of the shard.
        places: Time, field and band of each chunk; all are there.
        max_bytes: Where a stretch ends at the latest, unless a single chunk is longer.
    """
    found: list[tuple[int, int, tuple[int, int, int]]] = sorted(
        (int(index[place][0]), int(index[place][1]), place) for place in places
    )
    stretches: list[Stretch] = []
    start, end = 0, 0
    members: list[tuple[tuple[int, int, int], int, int]] = []
    for offset, length, place in found:
        if members and (offset != end or offset + length - start > max_bytes):
            stretches.append(Stretch(start, end - start, tuple(members)))
            members = []
        if not members:
            start = offset
        members.append((place, offset - start, length))
        end = offset + length
    if members:
        stretches.append(Stretch(start, end - start, tuple(members)))
    return stretches


def _is_whole(packed: Bytes) -> bool:
    content, checksum = packed[:-CHECKSUM_BYTES], packed[-CHECKSUM_BYTES:]
    return _checksum(content) == checksum.tobytes()


def _checksum(content: bytes | Bytes) -> bytes:
    checksum: int = google_crc32c.value(content)
    return checksum.to_bytes(CHECKSUM_BYTES, "little")
