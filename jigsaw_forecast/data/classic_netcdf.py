"""Tells whether a netCDF file of a classic format is whole.

netCDF's library reads zeros where such a file has been cut off, without an error. Source: NetCDF
Classic Format Specification (Unidata), versions 1, 2 (64-bit offset) and 5 (64-bit data).
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

CLASSIC_MAGICS = (b"CDF\x01", b"CDF\x02", b"CDF\x05")

_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 4, 6: 8, 7: 1, 8: 2, 9: 4, 10: 8, 11: 8}
_MOST_LISTED = 100_000  # dimensions, attributes, variables or dimensions of one


@dataclass(frozen=True)
class _Array:
    begin: int
    num_bytes: int  # of one record, where it has records
    has_records: bool


class _Header:
    """Reads the parts of a header one after the other."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        version = self.take(4)[3]
        self.count_bytes = 8 if version == 5 else 4
        self.offset_bytes = 4 if version == 1 else 8

    def take(self, num_bytes: int) -> bytes:
        part = self.stream.read(num_bytes)
        if len(part) < num_bytes:
            raise EOFError
        return part

    def number(self, num_bytes: int) -> int:
        return int.from_bytes(self.take(num_bytes), "big")

    def count(self) -> int:
        return self.number(self.count_bytes)

    def list_length(self) -> int:
        """Number of elements of a list, after the tag that says of what."""
        self.take(4)
        length = self.count()
        if length > _MOST_LISTED:
            raise ValueError
        return length

    def skip(self, num_bytes: int) -> None:
        """Passes over bytes and what fills them up to a multiple of four."""
        self.take(_padded(num_bytes))

    def skip_attributes(self) -> None:
        for _ in range(self.list_length()):
            self.skip(self.count())
            num_bytes = _TYPE_BYTES[self.number(4)]
            self.skip(self.count() * num_bytes)

    def arrays(self) -> tuple[int, list[_Array]]:
        """Number of records, and where each array lies."""
        num_records = self.count()
        if num_records == (1 << 8 * self.count_bytes) - 1:
            num_records = 0  # being written: nobody has counted them
        sizes = []
        for _ in range(self.list_length()):
            self.skip(self.count())
            sizes.append(self.count())
        self.skip_attributes()
        found = []
        for _ in range(self.list_length()):
            self.skip(self.count())
            num_dims = self.count()
            if num_dims > _MOST_LISTED:
                raise ValueError
            shape = [sizes[self.count()] for _ in range(num_dims)]
            self.skip_attributes()
            num_bytes = _TYPE_BYTES[self.number(4)]
            self.count()  # its size, which is wrong beyond 4 GiB
            begin = self.number(self.offset_bytes)
            has_records = bool(shape) and shape[0] == 0
            num_bytes *= math.prod(shape[1:] if has_records else shape)
            found.append(_Array(begin, num_bytes, has_records))
        return num_records, found


def why_not_whole(path: Path) -> str:
    """What a file lacks by its own header, empty where it lacks nothing or is not classic netCDF.

    Args:
        path: A file.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        if stream.read(4) not in CLASSIC_MAGICS:
            return ""
        stream.seek(0)
        try:
            num_records, arrays = _Header(stream).arrays()
        except EOFError:
            return f"truncated: the file of {size} bytes ends within its header"
        except (KeyError, IndexError, ValueError):
            return "damaged: its header cannot be followed"
    needed = max((_end(array, num_records, arrays) for array in arrays), default=0)
    if needed <= size:
        return ""
    return f"truncated: its header tells of {needed} bytes, the file has {size}"


def _end(array: _Array, num_records: int, arrays: list[_Array]) -> int:
    """Where an array ends, without what fills it up."""
    if not array.has_records:
        return array.begin + array.num_bytes
    if num_records == 0:
        return 0
    records = [other.num_bytes for other in arrays if other.has_records]
    step = records[0] if len(records) == 1 else sum(map(_padded, records))
    return array.begin + (num_records - 1) * step + array.num_bytes


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // 4) * 4
