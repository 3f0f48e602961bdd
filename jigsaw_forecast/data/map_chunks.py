"""Reads the chunks of a WeatherBench-layout array straight from their files into place.

For arrays in which a chunk is one time, all levels, the whole globe, as in WeatherBench 2 and
ARCO-ERA5 at 0.25 degrees. zarr decodes such a chunk to new memory and copies it from there
(benchmarks/data_loading.py compares them).
"""

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from numcodecs import blosc, zstd

from jigsaw_forecast.errors import DataError

Array = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

_BLOSC_HEADER_BYTES = 16
_BLOSC, _ZSTD = "blosc", "zstd"


class MapChunks:
    """One array whose chunks are one time each; use from threads, which decode side by side.

    Attributes:
        shape: Of one time, in the array's order of dims.
    """

    def __init__(self, folder: Path, stored: zarr.Array[Any], codec: str) -> None:
        """Takes an array for which `find_codec` gave this codec, and its folder."""
        self.shape = stored.shape[1:]
        self._folder = folder
        self._metadata = stored.metadata
        self._codec = codec
        self._memory = threading.local()

    def read_whole(self, index: int) -> tuple[Array, int]:
        """As `read`, into memory that this thread's next call uses again."""
        out = getattr(self._memory, "values", None)
        if out is None:
            out = self._memory.values = np.empty(self.shape, dtype=np.float32)
        return out, self.read(index, out)

    def read(self, index: int, out: Array) -> int:
        """Decodes one time into a contiguous array; returns the bytes taken from the file.

        A chunk that is not there gives NaN.

        Raises:
            DataError: The chunk is damaged.
        """
        place = (index, *(0 for _ in self.shape))
        path = self._folder / self._metadata.encode_chunk_key(place)
        try:
            packed = self._read_file(path)
        except FileNotFoundError:
            out[...] = np.nan
            return 0
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from None
        try:
            if self._codec == _BLOSC:
                _check_blosc(packed, out.nbytes)
                blosc.decompress(packed, out)
            else:
                zstd.decompress(packed, out)
        except (RuntimeError, ValueError) as error:
            raise DataError(f"{path}: damaged chunk: {error}") from None
        return len(packed)

    def _read_file(self, path: Path) -> Bytes:
        """A file's bytes, in memory that this thread's next call uses again."""
        with path.open("rb", buffering=0) as stream:
            size = os.fstat(stream.fileno()).st_size
            buffer = getattr(self._memory, "packed", None)
            if buffer is None or len(buffer) < size:
                buffer = self._memory.packed = np.empty(size, dtype=np.uint8)
            packed: Bytes = buffer[:size]
            return packed[: stream.readinto(packed.data)]


def find_codec(stored: zarr.Array[Any], dims: tuple[str, ...]) -> str:
    """How an array's chunks are compressed, empty where they are not such that this reads them."""
    whole_maps = dims[0] == "time" and stored.chunks == (1, *stored.shape[1:])
    if not whole_maps or stored.dtype != np.dtype("<f4"):
        return ""
    metadata: dict[str, Any] = dict(stored.metadata.to_dict())
    if metadata["zarr_format"] == 2:
        compressor = metadata.get("compressor") or {}
        is_plain = metadata.get("order") == "C" and not metadata.get("filters")
        name = str(compressor.get("id", "")) if is_plain else ""
    else:
        codecs = [dict(codec) for codec in metadata["codecs"]]
        names = [codec["name"] for codec in codecs]
        endian = (codecs[0].get("configuration") or {}).get("endian")
        is_plain = len(codecs) == 2 and names[0] == "bytes" and str(endian) == "little"
        name = names[1] if is_plain else ""
    return name if name in (_BLOSC, _ZSTD) else ""


def _check_blosc(packed: Bytes, num_bytes: int) -> None:
    """Refuses a chunk whose header does not fit it: the decoder would read beyond its end.

    Source: c-blosc README_CHUNK_FORMAT: octets 4 to 7 are the size decoded, 12 to 15 encoded.
    """
    decoded, encoded = (int.from_bytes(packed[at : at + 4].tobytes(), "little") for at in (4, 12))
    if len(packed) < _BLOSC_HEADER_BYTES or encoded != len(packed) or decoded != num_bytes:
        raise ValueError(f"its header says {decoded} of {num_bytes} bytes, {encoded} encoded")
