"""Fields in labelled arrays: what netCDF files and zarr stores have in common."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xarray as xr

from jigsaw_forecast.data.axes import AxisOrder, order_axes
from jigsaw_forecast.data.conventions import (
    Axis,
    axis_of,
    check_levels,
    levels_hpa,
    recognise,
)
from jigsaw_forecast.data.records import (
    NOT_A_TIME,
    PRESSURE_LEVEL,
    FieldRecord,
    FieldStatistics,
    Float32Array,
)
from jigsaw_forecast.fields import VARIABLES, Role

Selection = tuple[int | slice | list[int], ...]
_CLOCKS = (Axis.TIME, Axis.VALID_TIME, Axis.REFERENCE_TIME)


@dataclass(frozen=True, eq=False)
class FieldArray:
    """One array of a store and what its dimensions mean.

    Attributes:
        name: Its name in the store.
        variable: As in `FieldRecord`.
        units: As the store says them.
        dims: Names of the dimensions, in order.
        axes: What each dimension stands for.
        order: How rows and columns are reached, None where there are none.
        grid: Name of the grid.
        levels: hPa, or None for a surface field, one for each index.
        members: Ensemble members, None for a store without.
        init_times: By index along time and lead time, shape [T, L].
        valid_times: Likewise.
        level_type: `isobaricInhPa`, `hybrid` or `surface`.
        levels_per_chunk: Levels that are stored and decoded as one.
        why: Why a forecast cannot use it, otherwise empty.
    """

    name: str
    variable: str
    units: str
    dims: tuple[Hashable, ...]
    axes: tuple[Axis, ...]
    order: AxisOrder | None
    grid: str
    levels: tuple[float | None, ...]
    members: tuple[int | None, ...]
    init_times: npt.NDArray[np.datetime64]
    valid_times: npt.NDArray[np.datetime64]
    level_type: str
    levels_per_chunk: int
    why: str


@dataclass(frozen=True)
class _Place:
    array: FieldArray
    time: int
    lead: int
    level: int
    member: int


class ArraySource(ABC):
    """Labelled arrays as a source of fields; children load the values."""

    def __init__(self, path: Path, dataset: xr.Dataset) -> None:
        """Describes every array of a dataset whose times are decoded."""
        self.path = path
        self._arrays = [
            describe(dataset, name)
            for name in dataset.data_vars
            if _is_field(dataset, dataset[name])
        ]

    @abstractmethod
    def _load(self, array: FieldArray, selection: Selection) -> npt.NDArray[np.floating]:
        """Decoded values of part of an array, missing points NaN; integers drop their dims."""

    def records(self) -> list[FieldRecord]:
        """All fields: each array at each time, lead time, level and member."""
        return [
            record
            for array in self._arrays
            for record in _records(array, self.path, np.argwhere(np.ones(array.valid_times.shape)))
        ]

    def records_at(self, valid_time: np.datetime64) -> list[FieldRecord]:
        """The fields valid at one time, and those without time."""
        found: list[FieldRecord] = []
        for array in self._arrays:
            is_there = (array.valid_times == valid_time) | np.isnat(array.valid_times)
            found += _records(array, self.path, np.argwhere(is_there))
        return found

    def valid_times(self) -> npt.NDArray[np.datetime64]:
        """All valid times, sorted, datetime64[s]."""
        times = [array.valid_times.ravel() for array in self._arrays]
        joined = np.concatenate([*times, np.array([], dtype="datetime64[s]")])
        return np.unique(joined[~np.isnat(joined)])

    def read(self, records: Sequence[FieldRecord]) -> Iterator[Float32Array]:
        """Decoded values [Y, X] in file units, all levels of a variable in one access."""
        places = [_place(record) for record in records]
        pending: dict[_Place, Float32Array] = {}
        for index, place in enumerate(places):
            if place not in pending:
                self._read_levels(place, places[index:], pending)
            is_last_use = place not in places[index + 1 :]
            yield pending.pop(place) if is_last_use else pending[place]

    def unit_of(self, record: FieldRecord) -> Hashable:
        """The chunk that holds the record's level."""
        place = _place(record)
        chunk = place.level // place.array.levels_per_chunk
        return place.array.name, place.time, place.lead, place.member, chunk

    def statistics(self, record: FieldRecord) -> FieldStatistics:
        """Extremes, mean and missing points as decoded, on any grid."""
        place = _place(record)
        return FieldStatistics.of(self._load(place.array, _selection(place, place.level)))

    def _read_levels(
        self, place: _Place, places: Sequence[_Place], into: dict[_Place, Float32Array]
    ) -> None:
        """Reads `place` and its siblings that differ only in level."""
        array = place.array
        siblings = {
            other.level: other
            for other in places
            if (other.array, other.time, other.lead, other.member)
            == (array, place.time, place.lead, place.member)
        }
        levels = sorted(siblings)
        values = self._load(array, _selection(place, levels))
        values = values.transpose(_map_order(array))
        assert array.order is not None
        values = array.order.arrange(values).astype(np.float32, copy=False)
        has_levels = values.ndim > 2
        for index, level in enumerate(levels):
            into[siblings[level]] = values[index] if has_levels else values


def describe(dataset: xr.Dataset, name: Hashable) -> FieldArray:
    """What one array of a dataset holds and why it cannot be used, if so."""
    array = dataset[name]
    coords = {key: array.coords[key] for key in array.coords}
    axes = tuple(axis_of(str(dim), coords.get(dim)) for dim in array.dims)
    roles = {axis: dim for dim, axis in zip(array.dims, axes, strict=True)}
    scalars = {
        axis_of(str(key), value): key
        for key, value in coords.items()
        if value.ndim == 0 and str(key) not in array.dims
    }
    faults = _dim_faults(array, axes)
    order, grid = None, "none"
    if Axis.LATITUDE in roles and Axis.LONGITUDE in roles:
        lat, lon = roles[Axis.LATITUDE], roles[Axis.LONGITUDE]
        order = order_axes(array[lat].values, array[lon].values)
        grid = f"{order.kind} {array.sizes[lat]}x{array.sizes[lon]}"
        bare = [str(dim) for dim in (lat, lon) if dim not in array.coords]
        faults.append(f"missing coordinate {' and '.join(bare)}" if bare else order.why)
    else:
        grid, fault = _other_grid(array)
        faults.append(fault)
    levels, level_fault = _levels(array, roles, scalars)
    has_pressure = Axis.PRESSURE in roles or Axis.PRESSURE in scalars
    has_model_levels = Axis.MODEL_LEVEL in roles or Axis.MODEL_LEVEL in scalars
    quantity = recognise(array, has_pressure, has_model_levels)
    init_times, valid_times, time_fault = _times(array, roles, scalars)
    spec = VARIABLES.get(quantity.variable)
    is_fixed = not {Axis.TIME, Axis.VALID_TIME} & roles.keys()
    if spec is not None and spec.role is Role.STATIC and is_fixed:
        time_fault = ""
    faults = [quantity.why, *faults, level_fault, time_fault]
    pressure_or_surface = PRESSURE_LEVEL if has_pressure else "surface"
    return FieldArray(
        name=str(name),
        variable=quantity.variable,
        units=str(array.attrs.get("units", "")),
        dims=array.dims,
        axes=axes,
        order=order,
        grid=grid,
        levels=levels,
        members=_members(array, roles, scalars),
        init_times=init_times,
        valid_times=valid_times,
        level_type="hybrid" if has_model_levels else pressure_or_surface,
        levels_per_chunk=_levels_per_chunk(array, axes),
        why="; ".join(fault for fault in faults if fault),
    )


def _is_field(dataset: xr.Dataset, array: xr.DataArray) -> bool:
    """Whether an array could be a field: numbers over space, not the bounds of an axis."""
    if array.ndim == 0 or not np.issubdtype(array.dtype, np.number):
        return False
    bounds = {str(dataset[key].attrs.get("bounds", "")) for key in dataset.variables}
    return str(array.name) not in bounds and not str(array.name).endswith(("_bnds", "_bounds"))


def _dim_faults(array: xr.DataArray, axes: Sequence[Axis]) -> list[str]:
    unknown = [
        f"{dim} ({array.sizes[dim]})"
        for dim, axis in zip(array.dims, axes, strict=True)
        if axis is Axis.OTHER and array.sizes[dim] > 1
    ]
    return [f"unknown dimension {', '.join(unknown)}"] if unknown else []


def _other_grid(array: xr.DataArray) -> tuple[str, str]:
    """Name of a grid without latitude and longitude axes, and what is wrong with it."""
    shape = "x".join(str(size) for size in array.shape[-2:])
    two_dimensional = [
        key for key in array.coords if array.coords[key].ndim == 2 and "lat" in str(key).lower()
    ]
    names = [str(array.coords[dim].attrs.get("standard_name", "")) for dim in array.coords]
    if "grid_latitude" in names or {"rlat", "rlon"} <= {str(dim) for dim in array.dims}:
        return f"rotated_ll {shape}", "rotated latitude-longitude grid (rotated_ll)"
    if two_dimensional:
        return f"curvilinear {shape}", "curvilinear grid with two-dimensional coordinates"
    if any("lat" in str(key).lower() for key in array.coords):
        return f"unstructured {array.shape[-1]}", "unstructured grid (a list of points)"
    return f"none {shape}", f"no latitude and longitude axes; its dimensions are {array.dims}"


def _levels(
    array: xr.DataArray, roles: dict[Axis, Hashable], scalars: dict[Axis, Hashable]
) -> tuple[tuple[float | None, ...], str]:
    for axis in (Axis.PRESSURE, Axis.MODEL_LEVEL):
        key = roles.get(axis, scalars.get(axis))
        if key is None:
            continue
        if key not in array.coords:
            size = array.sizes[key]
            return (None,) * size, f"dimension {key} has no coordinate"
        coordinate = array.coords[key]
        if axis is Axis.MODEL_LEVEL:
            return tuple(np.atleast_1d(coordinate.values).tolist()), ""
        levels = np.atleast_1d(levels_hpa(str(key), coordinate))
        return tuple(_plain(level) for level in levels), check_levels(levels)
    return (None,), ""


def _levels_per_chunk(array: xr.DataArray, axes: Sequence[Axis]) -> int:
    """Levels of one chunk; an array that is not chunked is read level by level."""
    chunks = array.encoding.get("chunks") or array.encoding.get("chunksizes")
    for axis in (Axis.PRESSURE, Axis.MODEL_LEVEL):
        if chunks and axis in axes:
            return max(int(chunks[axes.index(axis)]), 1)
    return 1


def _plain(level: float) -> int | float:
    return int(level) if level == int(level) else float(level)


def _members(
    array: xr.DataArray, roles: dict[Axis, Hashable], scalars: dict[Axis, Hashable]
) -> tuple[int | None, ...]:
    key = roles.get(Axis.MEMBER, scalars.get(Axis.MEMBER))
    if key is None:
        return (None,)
    if key not in array.coords or not np.issubdtype(array.coords[key].dtype, np.number):
        return tuple(range(array.sizes[key])) if key in array.dims else (None,)
    return tuple(int(member) for member in np.atleast_1d(array.coords[key].values))


def _times(
    array: xr.DataArray, roles: dict[Axis, Hashable], scalars: dict[Axis, Hashable]
) -> tuple[npt.NDArray[np.datetime64], npt.NDArray[np.datetime64], str]:
    """Init and valid times [T, L], and what is wrong with them."""
    time_dims = [roles[axis] for axis in _CLOCKS if axis in roles]
    lead_dim = roles.get(Axis.LEAD_TIME)
    num_times = max((array.sizes[dim] for dim in time_dims), default=1)
    num_leads = array.sizes[lead_dim] if lead_dim is not None else 1
    nothing = np.full((num_times, num_leads), NOT_A_TIME, dtype="datetime64[s]")
    long = [str(dim) for dim in time_dims if array.sizes[dim] > 1]
    if len(long) > 1:
        return nothing, nothing, f"two dimensions of time: {', '.join(long)}"
    keys = {axis: roles.get(axis, scalars.get(axis)) for axis in (*_CLOCKS, Axis.LEAD_TIME)}
    if keys[Axis.VALID_TIME] is None:
        keys[Axis.VALID_TIME] = _auxiliary_valid_time(array, {*time_dims, lead_dim})
    found = {
        axis: _over_times(array.coords[key], lead_dim, nothing.shape)
        for axis, key in keys.items()
        if key is not None and key in array.coords
    }
    lead = found.pop(Axis.LEAD_TIME, None)
    reference = found.get(Axis.REFERENCE_TIME)
    if reference is not None and reference.dtype.kind != "M" and len(found) > 1:
        del found[Axis.REFERENCE_TIME]  # another coordinate says when
    if not found:
        return nothing, nothing, "no time coordinate: nothing says when it is valid"
    for times in found.values():
        if not np.issubdtype(times.dtype, np.datetime64):
            return nothing, nothing, _calendar_fault(times)
    if lead is not None and not np.issubdtype(lead.dtype, np.timedelta64):
        return nothing, nothing, f"lead time {keys[Axis.LEAD_TIME]} has no units of time"
    return _settle_times(found, lead, nothing)


def _settle_times(
    clocks: dict[Axis, npt.NDArray[np.generic]],
    lead: npt.NDArray[np.generic] | None,
    nothing: npt.NDArray[np.datetime64],
) -> tuple[npt.NDArray[np.datetime64], npt.NDArray[np.datetime64], str]:
    """Init and valid times by what the coordinates say together.

    `time` is the valid time beside a reference time (CF) or alone, and the initial time beside a
    lead time or a coordinate named `valid_time`.
    """
    times = {axis: values.astype("datetime64[s]") for axis, values in clocks.items()}
    init = times.get(Axis.REFERENCE_TIME)
    valid = times.get(Axis.VALID_TIME)
    if Axis.TIME in times and init is None and (valid is not None or lead is not None):
        init = times[Axis.TIME]
    elif Axis.TIME in times and valid is None:
        valid = times[Axis.TIME]
    span = lead.astype("timedelta64[s]") if lead is not None else None
    if init is None:
        assert valid is not None
        return valid - span if span is not None else valid, valid, ""
    if valid is None:
        return init, init + span if span is not None else init, ""
    if span is not None and not np.array_equal(init + span, valid):
        at = tuple(np.argwhere(init + span != valid)[0])
        return (
            nothing,
            nothing,
            f"its times disagree: valid time {valid[at]}, but initial time {init[at]} and lead "
            f"time {span[at].astype('timedelta64[h]')} make {(init + span)[at]}",
        )
    return init, valid, ""


def _auxiliary_valid_time(array: xr.DataArray, dims: set[Hashable]) -> Hashable | None:
    """A coordinate that gives the valid time along other dimensions of time."""
    for key, coordinate in array.coords.items():
        if axis_of(str(key), coordinate) is Axis.VALID_TIME and set(coordinate.dims) <= dims:
            return key
    return None


def _over_times(
    coordinate: xr.DataArray, lead_dim: Hashable, shape: tuple[int, int]
) -> npt.NDArray[np.generic]:
    """Values of a coordinate of time over all [T, L]."""
    values = coordinate.values
    has_leads = lead_dim in coordinate.dims
    if has_leads:
        values = np.moveaxis(values, coordinate.dims.index(lead_dim), -1)
    return np.broadcast_to(values.reshape(-1, shape[1] if has_leads else 1), shape)


def _calendar_fault(times: npt.NDArray[np.generic]) -> str:
    calendar = getattr(times.flat[0], "calendar", None) if times.size else None
    if calendar:
        return f"calendar {calendar}: its dates are not those of the real calendar"
    return f"the time coordinate has no units that say when it is ({times.dtype})"


def _records(array: FieldArray, path: Path, indices: npt.NDArray[np.intp]) -> Iterator[FieldRecord]:
    axes = array.order.axes if array.order is not None and not array.order.why else None
    for time, lead in indices:
        for level_index, level in enumerate(array.levels):
            for member_index, member in enumerate(array.members):
                yield FieldRecord(
                    variable=array.variable,
                    short_name=array.name,
                    level=level,
                    level_type=array.level_type,
                    valid_time=array.valid_times[time, lead],
                    init_time=array.init_times[time, lead],
                    member=member,
                    grid=array.grid,
                    units=array.units,
                    usable=not array.why,
                    why=array.why,
                    path=path,
                    axes=axes,
                    locator=_Place(array, int(time), int(lead), level_index, member_index),
                )


def _place(record: FieldRecord) -> _Place:
    assert isinstance(record.locator, _Place), "a record of another source"
    return record.locator


def _selection(place: _Place, levels: int | list[int]) -> Selection:
    """Index along each dimension of the array."""
    chosen: dict[Axis, int | slice | list[int]] = {
        Axis.LATITUDE: slice(None),
        Axis.LONGITUDE: slice(None),
        Axis.PRESSURE: levels,
        Axis.MODEL_LEVEL: levels,
        Axis.TIME: place.time,
        Axis.VALID_TIME: place.time,
        Axis.REFERENCE_TIME: place.time,
        Axis.LEAD_TIME: place.lead,
        Axis.MEMBER: place.member,
    }
    is_on_map = place.array.order is not None
    return tuple(chosen.get(axis, 0 if is_on_map else slice(None)) for axis in place.array.axes)


def _map_order(array: FieldArray) -> tuple[int, ...]:
    """Permutation of the dims that `_selection` keeps to level, latitude, longitude."""
    wanted = (Axis.PRESSURE, Axis.MODEL_LEVEL, Axis.LATITUDE, Axis.LONGITUDE)
    kept = [axis for axis in array.axes if axis in wanted]
    return tuple(kept.index(axis) for axis in wanted if axis in kept)
