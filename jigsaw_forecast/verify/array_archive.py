"""Archives in zarr stores and netCDF files."""

import itertools
import logging
import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from jigsaw_forecast.data.array_source import FieldArray, describe
from jigsaw_forecast.data.conventions import Axis
from jigsaw_forecast.data.records import GEOPOTENTIAL_HEIGHT
from jigsaw_forecast.errors import DataError
from jigsaw_forecast.fields import GRAVITY_M_S2, VARIABLES, Role
from jigsaw_forecast.verify.archive import (
    AnyMaps,
    ArchiveGrid,
    ArchiveVariable,
    Mask,
)
from jigsaw_forecast.verify.cache import ArrayCache
from jigsaw_forecast.verify.dataset import open_dataset, plain_zarr_arrays, with_lead_times

_log = logging.getLogger(__name__)

_CLOCKS = (Axis.TIME, Axis.VALID_TIME, Axis.REFERENCE_TIME)
TIME_BLOCK_BYTES = 96 << 20  # of chunks with several times that are kept decoded
# names that mean one thing to a forecast and another to a score, which keeps the file's
_OWN_NAMES = ("total_precipitation",)


@dataclass(frozen=True, eq=False)
class _Array:
    """One array of a file and where its maps lie in it.

    Attributes:
        field: What its dims mean.
        places: Index along time and along lead time of each map, shape [I, L, 2], -1 for none.
        levels: Index along level of each level of the variable.
        scale: Factor that its values are multiplied with.
    """

    field: FieldArray
    places: npt.NDArray[np.int64]
    levels: tuple[int, ...]
    scale: float


class ArrayArchive:
    """A zarr store or netCDF file, opened by xarray; only what is asked for is read."""

    def __init__(self, path: Path) -> None:
        """Opens the file and reads its coordinates.

        Raises:
            DataError: It cannot be read, or holds no maps on a latitude-longitude grid.
        """
        self.path = path
        self._blocks = ArrayCache(TIME_BLOCK_BYTES)
        self._absent: dict[str, Mask | None] = {}
        self._data = with_lead_times(open_dataset(path))
        self._zarr = plain_zarr_arrays(path, self._data)
        self.attributes: Mapping[str, str] = {str(k): str(v) for k, v in self._data.attrs.items()}
        self.variables: dict[str, ArchiveVariable] = {}
        self.skipped: dict[str, str] = {}
        self._arrays: dict[str, _Array] = {}
        self._statics: dict[str, FieldArray] = {}
        self.members: tuple[int, ...] = ()
        grids: dict[str, ArchiveGrid] = {}
        for name in self._data.data_vars:
            if self._data[name].ndim < 2 or self._data[name].dtype.kind not in "fiu":
                continue
            described = describe(self._data, name)
            reason = self._add(described)
            if reason:
                self.skipped[str(name)] = reason
            elif described.order is not None:
                axes = described.order.axes
                grids[str(name)] = ArchiveGrid(axes.latitudes, axes.longitudes)
        if not grids:
            reasons = "; ".join(f"{name}: {why}" for name, why in self.skipped.items())
            raise DataError(
                f"{path} holds no maps that can be scored{': ' if reasons else ''}{reasons}"
            )
        self.grid = next(iter(grids.values()))
        others = [f"{k} is on {g}" for k, g in grids.items() if not g.is_close(self.grid)]
        if others:
            raise DataError(f"{path} holds several grids: {'; '.join(others)}, others {self.grid}")

    def _add(self, described: FieldArray) -> str:
        """Takes an array up; why it cannot be, otherwise empty."""
        if described.order is None:
            return described.why or "no latitude and longitude"
        sizes = self._data[described.name].sizes
        if min(sizes[dim] for dim in described.dims) == 0 or described.grid.startswith("none"):
            return "empty"
        axes = dict(zip(described.dims, described.axes, strict=True))
        if any(axis is Axis.OTHER and sizes[dim] > 1 for dim, axis in axes.items()):
            return described.why
        if described.level_type == "hybrid":
            return "on model levels"
        name = described.name if described.name in _OWN_NAMES else described.variable
        spec = VARIABLES.get(name)
        has_time = bool({*_CLOCKS, Axis.LEAD_TIME} & set(described.axes))
        if not has_time or (spec is not None and spec.role is Role.STATIC):
            self._statics[name] = described
            return ""
        if np.isnat(described.valid_times).any() or np.isnat(described.init_times).any():
            return described.why or "no time says when it is valid"
        if name in self.variables:
            return f"{name} again: another array is taken for it already"
        scale, note = 1.0, ""
        if described.name == "geopotential":
            name = described.name  # whatever its units say: they are compared with the truth's
        if name == GEOPOTENTIAL_HEIGHT and described.units in ("m", "gpm", ""):
            name, scale, note = "geopotential", GRAVITY_M_S2, "converted from geopotential height"
        members = tuple(int(m) for m in described.members if m is not None)
        if Axis.MEMBER in described.axes:
            if self.members and self.members != members:
                return f"members {members} where other variables have {self.members}"
            self.members = members
        elif self.members and Axis.MEMBER not in described.axes:
            return "no members where other variables have some"
        levels: tuple[float, ...] = ()
        order: tuple[int, ...] = (0,)
        if described.levels != (None,):
            held = [float(level) if level is not None else np.nan for level in described.levels]
            order = tuple(int(place) for place in np.argsort(held))
            levels = tuple(held[place] for place in order)
        inits, leads, places = _index_times(described)
        units = "m2 s-2" if note else described.units
        self.variables[name] = ArchiveVariable(
            name, levels, units, inits, leads, places[..., 0] >= 0, note
        )
        self._arrays[name] = _Array(described, places, order, scale)
        return ""

    def static(self, name: str) -> AnyMaps | None:
        """A field without time, shape [Y, X], or None; the first where it has a time."""
        described = self._statics.get(name)
        if described is None:
            return None
        selection = {
            dim: 0
            for dim, axis in zip(described.dims, described.axes, strict=True)
            if axis not in (Axis.LATITUDE, Axis.LONGITUDE)
        }
        lat = described.dims[described.axes.index(Axis.LATITUDE)]
        lon = described.dims[described.axes.index(Axis.LONGITUDE)]
        values = self._data[described.name].isel(selection).transpose(lat, lon).values
        assert described.order is not None
        arranged: AnyMaps = described.order.arrange(values.astype(np.float64))
        return arranged

    def read(self, name: str, init: int, leads: Sequence[int], levels: Sequence[int]) -> AnyMaps:
        """Maps of one variable from one initial time: see `Archive.read`."""
        array = self._arrays[name]
        places = array.places[init, list(leads)]
        exists = places[:, 0] >= 0
        num_members = max(1, len(self.members))
        shape = (len(leads), num_members, len(levels), *self.grid.shape)
        if not exists.any():
            return np.full(shape, np.nan, dtype=np.float32)
        times, spans = np.unique(places[exists, 0]), np.unique(places[exists, 1])
        block = self._block(array, times, spans, [array.levels[one] for one in levels])
        # block: [times, lead times, members, levels, Y, X]; one of the first two is usually 1
        if times.size == 1 and exists.all() and np.array_equal(spans, places[:, 1]):
            values = block[0]
        else:
            values = np.full(shape, np.nan, dtype=block.dtype)
            row = np.searchsorted(times, places[exists, 0])
            column = np.searchsorted(spans, places[exists, 1])
            values[exists] = block[row, column]
        if array.scale != 1.0:
            values = values.astype(np.float64) * array.scale
        found: AnyMaps = values
        return found

    def read_series(
        self, name: str, inits: Sequence[int], lead: int, levels: Sequence[int]
    ) -> AnyMaps:
        """Maps of one lead time: see `Archive.read_series`."""
        array = self._arrays[name]
        places = array.places[list(inits), lead]
        times, spans = np.unique(places[:, 0]), np.unique(places[:, 1])
        block = self._block(array, times, spans, [array.levels[one] for one in levels])
        if spans.size == 1 and np.array_equal(times, places[:, 0]):
            values = block[:, 0, 0]  # a view
        else:
            row = np.searchsorted(times, places[:, 0])
            values = block[row, np.searchsorted(spans, places[:, 1]), 0]
        return values.astype(np.float64) * array.scale if array.scale != 1.0 else values

    def _block(
        self,
        array: _Array,
        times: npt.NDArray[np.int64],
        spans: npt.NDArray[np.int64],
        levels: list[int],
    ) -> AnyMaps:
        """Part of an array, shape [times, lead times, members, levels, Y, X]."""
        described = array.field
        selection: list[Any] = []
        roles: list[Axis] = []
        for axis in described.axes:
            if axis in _CLOCKS:
                selection.append(_as_slice(times))
                roles.append(Axis.TIME)
            elif axis is Axis.LEAD_TIME:
                selection.append(_as_slice(spans))
                roles.append(axis)
            elif axis in (Axis.PRESSURE, Axis.MODEL_LEVEL):
                selection.append(_as_slice(np.array(levels)))
                roles.append(Axis.PRESSURE)
            elif axis is Axis.OTHER:
                selection.append(0)
            else:
                selection.append(slice(None))
                roles.append(axis)
        values = self._load_chunks(described, selection, times)
        wanted = (
            Axis.TIME,
            Axis.LEAD_TIME,
            Axis.MEMBER,
            Axis.PRESSURE,
            Axis.LATITUDE,
            Axis.LONGITUDE,
        )
        values = values.transpose([roles.index(axis) for axis in wanted if axis in roles])
        absent = tuple(place for place, axis in enumerate(wanted) if axis not in roles)
        values = np.expand_dims(values, absent)
        assert described.order is not None
        return described.order.arrange(values)

    def _load_chunks(
        self, described: FieldArray, selection: list[Any], times: npt.NDArray[np.int64]
    ) -> AnyMaps:
        """Values of a selection; whole chunks along time are read once and kept for a while."""
        place = next((i for i, axis in enumerate(described.axes) if axis in _CLOCKS), None)
        chunks = self._data[described.name].encoding.get("chunks")
        if place is None or times.size != 1 or not chunks or chunks[place] <= 1:
            return self._load(described.name, described.dims, tuple(selection))
        sizes = [self._data.sizes[dim] for dim in described.dims]
        length, time = int(chunks[place]), int(times[0])
        num_values = np.prod([_length(one, n) for one, n in zip(selection, sizes, strict=True)])
        if num_values * length * self._data[described.name].dtype.itemsize > TIME_BLOCK_BYTES // 2:
            return self._load(described.name, described.dims, tuple(selection))
        first = time - time % length
        whole = list(selection)
        whole[place] = slice(first, min(first + length, sizes[place]))
        block = self._blocks.get(
            (described.name, repr(whole)),
            lambda: self._load(described.name, described.dims, tuple(whole)),
        )
        kept = sum(not isinstance(one, int) for one in selection[:place])
        return np.take(block, [time - first], axis=kept)

    def _load(self, name: str, dims: tuple[Hashable, ...], selection: tuple[Any, ...]) -> AnyMaps:
        stored = self._zarr.get(name)
        try:
            if stored is not None:
                values = np.asarray(stored.get_orthogonal_selection(selection))
            else:
                part = self._data[name].isel(dict(zip(dims, selection, strict=True)))
                values = np.asarray(part.values)
        except (OSError, RuntimeError, ValueError) as fault:
            raise DataError(
                f"{self.path}: array {name} cannot be read: {fault}; the file is damaged"
            ) from None
        return values if values.dtype.kind == "f" else values.astype(np.float64)

    def preferred_leads(self, name: str) -> int:
        """Lead times in a chunk."""
        described = self._arrays[name].field
        chunks = self._data[described.name].encoding.get("chunks")
        if not chunks or Axis.LEAD_TIME not in described.axes:
            return 1
        return int(chunks[described.axes.index(Axis.LEAD_TIME)])

    def absent(self, name: str) -> Mask | None:
        """Maps whose chunks do not exist, by the files of an unsharded zarr array."""
        if name not in self._absent:
            self._absent[name] = self._find_absent(name)
        return self._absent[name]

    def _find_absent(self, name: str) -> Mask | None:
        array = self._arrays[name]
        stored = self._zarr.get(array.field.name)
        if stored is None or stored.metadata.zarr_format not in (2, 3) or stored.shards is not None:
            return None
        folder = self.path / stored.path
        axes = array.field.axes
        ranges = [
            range(-(-size // chunk))
            for size, chunk in zip(stored.shape, stored.chunks, strict=True)
        ]
        others = [
            r for r, a in zip(ranges, axes, strict=True) if a not in (*_CLOCKS, Axis.LEAD_TIME)
        ]
        found = np.zeros(array.places.shape[:2], dtype=bool)
        cache: dict[tuple[int, int], bool] = {}
        for place in np.argwhere(array.places[..., 0] >= 0):
            time, lead = array.places[tuple(place)]
            chunk_of = {
                axis: (lead if axis is Axis.LEAD_TIME else time) // stored.chunks[i]
                for i, axis in enumerate(axes)
                if axis in (*_CLOCKS, Axis.LEAD_TIME)
            }
            key = (
                int(next((v for a, v in chunk_of.items() if a in _CLOCKS), 0)),
                int(chunk_of.get(Axis.LEAD_TIME, 0)),
            )
            if key not in cache:
                cache[key] = not any(
                    os.path.exists(folder / _chunk_key(stored, axes, key, rest))
                    for rest in itertools.product(*others)
                )
            found[tuple(place)] = cache[key]
        return found


def _chunk_key(
    stored: "zarr.Array[Any]", axes: Sequence[Axis], key: tuple[int, int], rest: tuple[int, ...]
) -> str:
    remaining = iter(rest)
    coordinates = tuple(
        key[0] if axis in _CLOCKS else key[1] if axis is Axis.LEAD_TIME else next(remaining)
        for axis in axes
    )
    return str(stored.metadata.encode_chunk_key(coordinates))


def _index_times(
    described: FieldArray,
) -> tuple[npt.NDArray[np.datetime64], npt.NDArray[np.timedelta64], npt.NDArray[np.int64]]:
    """Initial times, lead times, and the place along both dims of each pair, -1 for none."""
    init, valid = described.init_times, described.valid_times
    spans = (valid - init).astype("timedelta64[s]")
    inits, row = np.unique(init, return_inverse=True)
    leads, column = np.unique(spans, return_inverse=True)
    places = np.full((inits.size, leads.size, 2), -1, dtype=np.int64)
    times, lead_places = np.indices(init.shape)
    # a pair that occurs twice keeps its first place
    flat = (row.ravel()[::-1], column.ravel()[::-1])
    places[flat[0], flat[1], 0] = times.ravel()[::-1]
    places[flat[0], flat[1], 1] = lead_places.ravel()[::-1]
    return inits.astype("datetime64[s]"), leads, places


def _length(selection: Any, size: int) -> int:
    if isinstance(selection, slice):
        return len(range(*selection.indices(size)))
    return 1 if isinstance(selection, int) else len(selection)


def _as_slice(places: npt.NDArray[np.int64]) -> slice | npt.NDArray[np.int64]:
    """Neighbours as a slice, which every store reads faster than a list."""
    steps = np.diff(places)
    if places.size and (steps == 1).all():
        return slice(int(places[0]), int(places[-1]) + 1)
    return places
