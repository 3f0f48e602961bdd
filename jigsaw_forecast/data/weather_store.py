"""WeatherBench-layout stores: one zarr array per variable, read as fields of a latitude band."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr
from zarr.storage import LocalStore

from jigsaw_forecast.data.bad_maps import describe_bad_maps
from jigsaw_forecast.data.conventions import levels_hpa
from jigsaw_forecast.data.conversions import to_si
from jigsaw_forecast.data.counting_store import CountingStore
from jigsaw_forecast.data.map_chunks import MapChunks, find_codec
from jigsaw_forecast.data.store import (
    Array,
    Finish,
    Indices,
    Period,
    ReadThreads,
    Store,
    Times,
)
from jigsaw_forecast.data.zarr_store import is_consolidated
from jigsaw_forecast.errors import DataError
from jigsaw_forecast.fields import VARIABLES, Field
from jigsaw_forecast.grid import Grid

__all__ = ["Array", "Indices", "Period", "Times", "WeatherStore"]

LEVEL_DIM = "level"
LATITUDE_DIM = "latitude"
_DIGEST_HEAD_BYTES = 65536  # of the first and the last chunk of each variable
_PRESSURE = "mean_sea_level_pressure"  # whose units levels may be in


class WeatherStore(Store):
    """A zarr store with one array per variable, dims time, level, latitude, longitude.

    Dims may come in any order and latitudes ascend or descend (the WeatherBench 2 stores have
    longitude before latitude, ascending); what is read is always north to south and in SI units.
    A chunk that is missing reads as missing values, whatever the array's fill value says. Whole
    chunks are decoded: a rank that needs one band of them reads the others for nothing, which a
    training set made by `data convert` avoids.

    Attributes:
        checks_values: Whether what is read is checked for its plausible range.
    """

    def __init__(self, path: Path, fields: Sequence[Field], num_threads: int | None = None) -> None:
        """Opens a store and checks that it holds these fields.

        Args:
            path: The store.
            fields: What must be there.
            num_threads: Threads that read and decode; by default this rank's share of the cores.

        Raises:
            DataError: The store cannot be opened, or lacks variables, levels or dims; all listed.
            GridError: The grid is not a global regular one.
        """
        self.path = path
        if not path.exists():
            raise DataError(
                f"missing {path}: no such store; set data.path, or make it: of other data with "
                f"`jigsaw-forecast data convert IN... {path}`, of a simulated planet with "
                f"`jigsaw-forecast data nature-run {path}`"
            )
        if path.is_file():
            raise DataError(
                f"{path} is a file, expected a zarr store; make a training set of it with "
                f"`jigsaw-forecast data convert {path} {path.with_suffix('.zarr')}`"
            )
        try:
            files = CountingStore(LocalStore(path, read_only=True))
            self._data = xr.open_zarr(files, chunks=None, consolidated=is_consolidated(path))
            group = zarr.open_group(files, mode="r", use_consolidated=False)
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{path}: not a readable zarr store: {error}") from error
        problems = _problems(self._data, fields)
        if problems:
            raise DataError(f"{path}: {'; '.join(problems)}")
        self._files = files
        self.notice = str(self._data.attrs.get("notice", ""))
        latitudes = self._data[LATITUDE_DIM].values
        self.grid = Grid.from_axes(latitudes, self._data["longitude"].values)
        self._ascending = bool(latitudes[0] < latitudes[-1])
        self.times = self._data["time"].values.astype("datetime64[s]")
        self._levels = {level: place for place, level in enumerate(_levels(self._data))}
        self._names = list(dict.fromkeys(field.variable for field in fields))
        self._stored = {name: group[name] for name in self._names}
        self._plain = {
            name: _marking_absent(stored)
            for name, stored in self._stored.items()
            if isinstance(stored, zarr.Array) and _is_plain(self._data[name])
        }
        self._chunks: dict[str, MapChunks] = {}
        for name in self._plain:
            stored, dims = self._stored[name], self._data[name].dims
            assert isinstance(stored, zarr.Array)
            codec = find_codec(stored, tuple(map(str, dims)))
            if codec and self._conversion(name) == (1.0, 0.0):
                self._chunks[name] = MapChunks(path / name, stored, codec)
        self._threads = ReadThreads(num_threads)
        self._chunk_bytes_read = 0
        self.checks_values = True

    @cached_property
    def digest(self) -> str:
        """Of the fields' metadata and coordinates and of the heads of their outermost chunks."""
        digest = hashlib.sha256()
        for name in ("time", LEVEL_DIM, LATITUDE_DIM, "longitude"):
            if name in self._data.coords:
                digest.update(np.ascontiguousarray(self._data[name].values).tobytes())
        for name in sorted(self._names):
            stored = self._stored[name]
            assert isinstance(stored, zarr.Array)
            digest.update(f"{name} {stored.shape} {stored.dtype} {stored.chunks}".encode())
            for place in ((0,) * stored.ndim, tuple(n - 1 for n in stored.cdata_shape)):
                chunk = self.path / name / stored.metadata.encode_chunk_key(place)
                if chunk.is_file():
                    digest.update(str(chunk.stat().st_size).encode())
                    with chunk.open("rb") as stream:
                        digest.update(stream.read(_DIGEST_HEAD_BYTES))
        return digest.hexdigest()

    @property
    def disk_bytes_read(self) -> int:
        """Bytes of chunks and metadata taken from files so far."""
        return self._files.bytes_read + self._chunk_bytes_read

    @property
    def times_per_chunk(self) -> int:
        """Times that are decoded together, at most, whichever of them are wanted."""
        sizes = [1]
        for name, stored in self._stored.items():
            assert isinstance(stored, zarr.Array)
            sizes.append(stored.chunks[self._data[name].dims.index("time")])
        return max(sizes)

    def static(self, name: str) -> Array:
        """A variable without time, or its first time, SI units, shape [Y, X], north to south.

        Raises:
            DataError: The store does not hold it, or in units or dims that are unknown here.
        """
        if name not in self._data:
            raise DataError(f"{self.path}: missing static variable {name}")
        array = self._data[name]
        if "time" in array.dims:  # ARCO-ERA5 repeats the surface at every hour
            array = array.isel(time=0)
        units = str(array.attrs.get("units", ""))
        if set(array.dims) != {LATITUDE_DIM, "longitude"}:
            raise DataError(f"{self.path}: static {name} has dims {array.dims}")
        if name in VARIABLES and to_si(name, units) is None:
            expected = VARIABLES[name].units
            raise DataError(f"{self.path}: static {name} is in {units!r}, expected {expected}")
        scale, offset = to_si(name, units) or (1.0, 0.0)
        values = array.transpose(LATITUDE_DIM, "longitude").values
        if (scale, offset) != (1.0, 0.0):
            values = values.astype(np.float64) * scale + offset
        north_first = values[::-1] if self._ascending else values
        return np.ascontiguousarray(north_first, dtype=np.float32)

    def read_into(
        self,
        out: Array,
        indices: Indices,
        fields: Sequence[Field],
        rows: slice,
        finish: Finish | None = None,
    ) -> None:
        """Reads values as `Store.read_into` says; neighbouring times are read together.

        Raises:
            DataError: Values are NaN, infinite or outside of the plausible range; lists the maps.
        """
        if not out.size:
            return
        jobs = []
        for variable, places in _by_variable(fields).items():
            levels = [fields[place].level_hpa for place in places]
            if variable in self._chunks:
                jobs += [
                    self._threads.submit(
                        self._read_chunk, variable, int(index), levels, rows, out[at], places
                    )
                    for at, index in enumerate(indices)
                ]
                continue
            for run in _runs(indices):
                out[run, places] = self._read_variable(variable, indices[run], levels, rows)
        self._chunk_bytes_read += sum(job.result() for job in jobs)
        self.bytes_read += out.nbytes
        if self.checks_values:
            self._check_values(out, indices, fields)
        if finish is not None:
            for maps in out:
                for place, values in enumerate(maps):
                    finish(place, slice(0, values.shape[0]), values)

    def _read_chunk(
        self,
        name: str,
        index: int,
        levels: Sequence[int],
        rows: slice,
        out: Array,
        places: Sequence[int],
    ) -> int:
        """One variable at one time into its places of [F, Y, X]; returns the bytes read."""
        chunks, dims = self._chunks[name], self._data[name].dims[1:]
        first, last, _ = rows.indices(self.grid.num_lat)
        wanted = [self._levels[level] for level in levels] if LEVEL_DIM in dims else [0]
        start, stop = places[0], places[-1] + 1
        is_as_stored = (
            dims in ((LATITUDE_DIM, "longitude"), (LEVEL_DIM, LATITUDE_DIM, "longitude"))
            and not self._ascending
            and wanted == list(range(chunks.shape[0] if LEVEL_DIM in dims else 1))
            and list(places) == list(range(start, stop))
            and last - first == self.grid.num_lat
        )
        if is_as_stored:
            return chunks.read(index, out[start:stop])
        whole, num_bytes = chunks.read_whole(index)
        order = [dim for dim in (LEVEL_DIM, LATITUDE_DIM, "longitude") if dim in dims]
        maps = whole.transpose([dims.index(dim) for dim in order])
        maps = maps if LEVEL_DIM in dims else maps[None]
        maps = maps[:, ::-1] if self._ascending else maps
        for place, level in zip(places, wanted, strict=True):
            out[place] = maps[level, first:last]
        return num_bytes

    def _read_variable(
        self, name: str, indices: Indices, levels: Sequence[int], rows: slice
    ) -> npt.NDArray[Any]:
        """One variable over neighbouring times, shape [T, L, Y, X], SI units."""
        first, last, _ = rows.indices(self.grid.num_lat)
        if self._ascending:
            first, last = self.grid.num_lat - last, self.grid.num_lat - first
        array = self._data[name]
        chosen = {"time": slice(int(indices[0]), int(indices[-1]) + 1)}
        chosen[LATITUDE_DIM] = slice(first, last)
        places = [self._levels[level] for level in levels] if LEVEL_DIM in array.dims else []
        if places:
            chosen[LEVEL_DIM] = slice(min(places), max(places) + 1)
        values = self._select(name, chosen)
        order = [dim for dim in ("time", LEVEL_DIM, LATITUDE_DIM, "longitude") if dim in array.dims]
        values = values.transpose([array.dims.index(dim) for dim in order])
        if not places:
            values = values[:, None]
        elif (wanted := [place - min(places) for place in places]) != list(range(values.shape[1])):
            values = values[:, wanted]
        scale, offset = self._conversion(name)
        if (scale, offset) != (1.0, 0.0):
            values = values.astype(np.float64) * scale + offset
        return values[:, :, ::-1] if self._ascending else values

    def _select(self, name: str, chosen: dict[str, slice]) -> npt.NDArray[Any]:
        """Part of an array in its own order of dims."""
        dims = self._data[name].dims
        try:
            if name in self._plain:
                place = tuple(chosen.get(str(dim), slice(None)) for dim in dims)
                return np.asarray(self._plain[name].get_basic_selection(place))
            return np.asarray(self._data[name].isel(chosen).values)
        except (OSError, RuntimeError, ValueError) as error:
            raise DataError(
                f"{self.path}: array {name} cannot be read: {error}; a chunk is damaged"
            ) from None

    def _conversion(self, name: str) -> tuple[float, float]:
        found = to_si(name, str(self._data[name].attrs.get("units", "")))
        assert found is not None, "checked when the store was opened"
        return found

    def _check_values(self, values: Array, indices: Indices, fields: Sequence[Field]) -> None:
        """Raises unless every map is finite and plausible."""
        low, high = values.min(axis=(2, 3)), values.max(axis=(2, 3))  # NaN passes into both
        if bad := describe_bad_maps(fields, self.times[indices], low, high):
            raise DataError(f"{self.path}: {bad}")


def _levels(data: xr.Dataset) -> list[int]:
    """Levels in whole hPa; as they are where their units are unknown."""
    if LEVEL_DIM not in data.coords:
        return []
    coordinate = data[LEVEL_DIM]
    if to_si(_PRESSURE, str(coordinate.attrs.get("units", ""))) is None:
        return [int(level) for level in np.atleast_1d(coordinate.values)]
    return [int(level) for level in np.atleast_1d(levels_hpa(LEVEL_DIM, coordinate))]


def _problems(data: xr.Dataset, fields: Sequence[Field]) -> list[str]:
    problems = []
    coordinates = [name for name in ("time", LATITUDE_DIM, "longitude") if name not in data.coords]
    if coordinates:
        problems.append(f"missing coordinates: {', '.join(coordinates)}")
    elif not np.issubdtype(data["time"].dtype, np.datetime64) or not data["time"].size:
        problems.append("missing times: the time coordinate holds no dates")
    held = _levels(data)
    missing = [
        str(field)
        for field in fields
        if field.variable not in data or (field.level_hpa and field.level_hpa not in held)
    ]
    if missing:
        variables = ", ".join(sorted(map(str, data.data_vars)))
        problems.append(f"missing fields: {', '.join(missing)}; it holds {variables}")
        if held:
            problems.append(f"levels {held}")
    for name in dict.fromkeys(field.variable for field in fields):
        expected = {"time", LATITUDE_DIM, "longitude"}
        if name not in data:
            continue
        if set(data[name].dims) - {LEVEL_DIM} != expected:
            problems.append(f"{name} has dims {data[name].dims}")
        units = str(data[name].attrs.get("units", ""))
        if to_si(name, units) is None:
            problems.append(f"{name} is in {units!r}, expected {VARIABLES[name].units}")
    return problems


def _is_plain(array: xr.DataArray) -> bool:
    """Whether stored values are the values: floats, not packed, and nothing but NaN missing."""
    encoding = array.encoding
    fill = encoding.get("_FillValue", encoding.get("missing_value"))
    # zero is zarr's default fill value and marks nothing
    marks_nothing = fill is None or fill == 0 or math.isnan(float(fill))
    is_packed = "scale_factor" in encoding or "add_offset" in encoding
    stored = np.dtype(encoding.get("dtype", array.dtype))
    return stored.kind == "f" and marks_nothing and not is_packed


def _marking_absent(stored: zarr.Array[Any]) -> zarr.Array[Any]:
    """The array with NaN for its fill value, which zarr returns for a chunk that is not there."""
    metadata = replace(stored.metadata, fill_value=stored.dtype.type(np.nan))
    return zarr.Array(replace(stored.async_array, metadata=metadata))


def _runs(indices: Indices) -> list[slice]:
    """Slices of `indices` that are neighbours in time."""
    breaks = [0, *(np.flatnonzero(np.diff(indices) != 1) + 1).tolist(), len(indices)]
    return [slice(a, b) for a, b in pairwise(breaks) if b > a]


def _by_variable(fields: Sequence[Field]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for place, field in enumerate(fields):
        places.setdefault(field.variable, []).append(place)
    return places
