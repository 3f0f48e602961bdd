"""What `data convert` reads: WeatherBench-layout stores and training sets, or any files."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jigsaw_forecast.data.grib import GribSource
from jigsaw_forecast.data.records import Axes, FieldRecord, Source
from jigsaw_forecast.data.regrid import regrid as regrid_maps
from jigsaw_forecast.data.selection import Choice, choose
from jigsaw_forecast.data.source import open_source
from jigsaw_forecast.data.store import Array, Store, Times, shorten
from jigsaw_forecast.data.stores import open_store
from jigsaw_forecast.data.training_store import FORMAT, TrainingStore, read_attributes
from jigsaw_forecast.data.weather_store import WeatherStore
from jigsaw_forecast.errors import DataError, GridError
from jigsaw_forecast.fields import VARIABLES, WIND_COMPONENTS, Field, LevelType, Role
from jigsaw_forecast.grid import Grid

STATICS = ("land_sea_mask", "geopotential_at_surface")
MAX_OPEN_FILES = 16  # of each worker; a GRIB file is scanned again when it is opened again


class ConvertInput(Protocol):
    """The times that inputs hold together, and their values; can be pickled for a worker.

    Attributes:
        times: Valid times, datetime64[s], ascending, each once.
        grid: Grid of what is read.
        num_rows: Rows that are read: those of a model, and the row of the south pole where it
            lies with them, so that chunks are decoded in place.
        fields: Fields in the order of what is read.
        times_per_chunk: Times that are best read together.
        notice: What must be said of the data.
    """

    times: Times
    grid: Grid
    num_rows: int
    fields: tuple[Field, ...]
    times_per_chunk: int
    notice: str

    def read_into(self, out: Array, times: Times) -> None:
        """Reads values, SI units, not checked for their range.

        Args:
            out: Where they go, shape [T, F, num_rows, X].
            times: Which, ascending.

        Raises:
            DataError: Fields are missing at a time, or cannot be read.
        """

    def static(self, name: str) -> Array | None:
        """A static map [Y, X], None where no input holds it."""


@dataclass(frozen=True)
class Selection:
    """What to take from inputs.

    Attributes:
        fields: Fields; empty for every prognostic field of the first time.
        grid: Grid to regrid to, None for the inputs' own.
        member: Ensemble member, None where there is only one.
    """

    fields: tuple[Field, ...] = ()
    grid: Grid | None = None
    member: int | None = None


def open_input(paths: Sequence[Path], selection: Selection) -> ConvertInput:
    """Opens inputs; stores that hold all fields are read as such, anything else record by record.

    Raises:
        DataError: Inputs cannot be read, or lack fields or times; all listed.
        GridError: Their grid is no regular global one and none to regrid to was given.
    """
    fields = selection.fields or find_fields(paths[0])
    selection = replace(selection, fields=fields)
    stores: list[Store] = []
    if selection.member is None and all(path.is_dir() for path in paths):
        with suppress(DataError, GridError):  # the general way says what is wrong
            stores = [open_store(path, fields) for path in paths]
            for store in stores:
                if isinstance(store, WeatherStore):
                    store.checks_values = False  # the converter does, chunk by chunk
    if stores:
        return StoreInput(stores, selection)
    return FileInput(paths, selection)


def find_fields(path: Path) -> tuple[Field, ...]:
    """Every field that a model could predict at the first time of an input, in the table's order.

    Raises:
        DataError: It cannot be read or holds none.
    """
    attributes = read_attributes(path)
    if attributes is not None and attributes.get("format") == FORMAT:
        return TrainingStore(path).header.fields
    source = open_source(path)
    times = source.valid_times()
    records = source.records_at(times[0]) if times.size else []
    found = {
        field
        for record in records
        if (record.usable or _is_diagnostic(record)) and (field := _field(record)) is not None
    }
    if not found:
        reasons = dict.fromkeys(record.why for record in records if record.why)
        raise DataError(f"{path}: missing fields: it holds none; {shorten(list(reasons), 3)}")
    order = list(VARIABLES)
    return tuple(sorted(found, key=lambda f: (order.index(f.variable), f.level_hpa)))


def _field(record: FieldRecord) -> Field | None:
    """The predicted field that a record holds, None where it holds none."""
    spec = VARIABLES.get(record.variable)
    if spec is None or spec.role is Role.STATIC:
        return None
    if spec.level_type is LevelType.SURFACE:
        return Field(spec.name)
    level = record.level or 0
    return Field(spec.name, int(level)) if level == int(level) > 0 else None


def _is_diagnostic(record: FieldRecord) -> bool:
    """Whether a store's array is unusable only because it is no initial condition."""
    spec = VARIABLES.get(record.variable)
    return spec is not None and spec.role is Role.DIAGNOSTIC and spec.name == record.short_name


def read_statics(path: Path, grid: Grid, names: Sequence[str] = STATICS) -> dict[str, Array]:
    """Static maps [model rows, X] of a file on a grid, at any time; those that it holds.

    Raises:
        DataError: The file cannot be read.
    """
    source = _opened(path)
    times: Sequence[np.datetime64] = list(source.valid_times())
    if not isinstance(source, GribSource):
        times = times[:1]  # arrays without time come with any
    maps: dict[str, Array] = {}
    for time in times or [np.datetime64("NaT", "s")]:
        fields = [Field(name) for name in names if name not in maps]
        if not fields:
            break
        for field, choice in choose(source.records_at(time), fields, None).choices.items():
            axes = choice.record.axes
            assert axes is not None, "usable records have axes"
            values = choice.convert(list(source.read(choice.records_to_read)), field)
            found = _on_grid(values[None], axes, grid, [field])[0]
            maps[field.variable] = found[: grid.num_model_lat]
    return maps


class StoreInput:
    """Stores that hold all fields, one after the other in time: the fast way."""

    def __init__(self, stores: Sequence[Store], selection: Selection) -> None:
        """Joins their times; the first store that has a time gives it.

        Raises:
            DataError: Their grids differ, or lack the row that regridding needs.
        """
        self._stores = stores
        self._selection = selection
        self.fields = selection.fields
        source = stores[0].grid
        self.grid = selection.grid or source
        other = [str(store.path) for store in stores if store.grid != source]
        if other:
            raise DataError(
                f"mixed grids: {stores[0].path} has {source.name}, unlike {', '.join(other)}"
            )
        self._is_regridding = self.grid != source
        held = min(store.num_rows for store in stores)
        self.num_rows = self.grid.num_lat if self._is_regridding else held
        short = [str(store.path) for store in stores if store.num_rows < source.num_lat]
        if self._is_regridding and short:
            raise DataError(f"{', '.join(short)}: missing the row of the south pole: cannot regrid")
        self.times, first = np.unique(
            np.concatenate([store.times for store in stores]), return_index=True
        )
        self._owner = np.repeat(range(len(stores)), [len(store.times) for store in stores])[first]
        self._place = np.concatenate([np.arange(len(store.times)) for store in stores])[first]
        self.times_per_chunk = max(
            store.times_per_chunk if isinstance(store, WeatherStore) else 1 for store in stores
        )
        self.notice = "; ".join(dict.fromkeys(store.notice for store in stores if store.notice))

    def __reduce__(self) -> tuple[Any, ...]:
        """Opens the stores again where it is unpickled."""
        return open_input, ([store.path for store in self._stores], self._selection)

    def read_into(self, out: Array, times: Times) -> None:
        """As `ConvertInput.read_into`."""
        found = np.searchsorted(self.times, times)
        for place, owner in enumerate(self._owner[found]):
            if place and owner == self._owner[found[place - 1]]:
                continue  # read with the one before
            same = self._owner[found[place:]] == owner
            num_same = int(np.argmin(same)) if not same.all() else len(same)
            indices = self._place[found[place : place + num_same]]
            part = out[place : place + num_same]
            if not self._is_regridding:
                rows = slice(0, self.num_rows)
                self._stores[owner].read_into(part, indices, self.fields, rows)
                continue
            source = self._stores[owner].grid
            axes = Axes(source.latitudes, source.longitudes)
            values = self._stores[owner].read(indices, self.fields, slice(None))
            for target, maps in zip(part, values, strict=True):
                target[...] = _on_grid(maps, axes, self.grid, self.fields)

    def static(self, name: str) -> Array | None:
        """As `ConvertInput.static`."""
        source = self._stores[0].grid
        for store in self._stores:
            with suppress(DataError):
                values = store.static(name)
                if self._is_regridding:
                    axes = Axes(source.latitudes, source.longitudes)
                    values = _on_grid(values[None], axes, self.grid, [Field(name)])[0]
                return values[: self.grid.num_model_lat]
        return None


class FileInput:
    """GRIB, netCDF and zarr of any layout, record by record: units and heights are converted."""

    def __init__(self, paths: Sequence[Path], selection: Selection) -> None:
        """Reads all headers.

        Raises:
            DataError: Fields are missing at a time, or a file cannot be read; all listed.
        """
        self._paths = tuple(paths)
        self._selection = selection
        self.fields = selection.fields
        self.times_per_chunk = 1
        self.notice = ""
        holders: dict[np.datetime64, list[int]] = {}
        faults = []
        for number, path in enumerate(self._paths):
            try:
                for time in _opened(path).valid_times():
                    holders.setdefault(time, []).append(number)
            except DataError as error:
                faults.append(str(error))
        if faults:
            raise DataError("\n".join(faults))
        self._holders = self._check_times(holders)
        self.times = np.array(sorted(self._holders), dtype="datetime64[s]")
        self._axes = self._find_axes()
        self.grid = selection.grid or Grid.from_axes(
            self._axes.latitudes.tolist(), self._axes.longitudes.tolist()
        )
        self.num_rows = self.grid.num_lat

    def read_into(self, out: Array, times: Times) -> None:
        """As `ConvertInput.read_into`."""
        for maps, time in zip(out, times, strict=True):
            choices = self._choose(time)
            for place, found in self._read_choices(choices, time):
                field = [self.fields[place]]
                maps[place] = _on_grid(found[None], self._axes, self.grid, field)[0]

    def static(self, name: str) -> Array | None:
        """As `ConvertInput.static`: the first record of any time, or of none."""
        found = (read_statics(path, self.grid, (name,)).get(name) for path in self._paths)
        return next((values for values in found if values is not None), None)

    def _check_times(
        self, holders: dict[np.datetime64, list[int]]
    ) -> dict[np.datetime64, tuple[int, ...]]:
        """The times at which any wanted field is valid, all of them checked for every field.

        Headers of GRIB are in memory, so each time is looked at; arrays have the same fields at
        all times, so one time for each group of files is enough.
        """
        held: dict[np.datetime64, tuple[int, ...]] = {}
        faults: dict[str, list[str]] = {}
        seen: dict[tuple[int, ...], bool] = {}
        last: list[str] = []
        for time, numbers in sorted(holders.items()):
            group = tuple(numbers)
            is_array = not any(
                isinstance(_opened(self._paths[number]), GribSource) for number in group
            )
            if is_array and group in seen:
                if seen[group]:
                    held[time] = group
                continue
            found = choose(self._records(group, time), self.fields, self._selection.member)
            seen[group] = bool(found.choices)
            if found.choices:  # else a static file's own time
                held[time] = group
                for fault in found.faults:
                    faults.setdefault(fault, []).append(str(time.astype("datetime64[m]")))
            else:
                last = found.faults
        names = shorten([str(path) for path in self._paths], 3)
        if faults:
            lines = [f"{fault} (at {shorten(times, 4)})" for fault, times in faults.items()]
            raise DataError("\n  - ".join([f"{names} cannot be converted:", *lines]))
        if not held:
            why = "; ".join(last) if holders else "no field has a time"
            raise DataError(f"{names}: missing all fields: {why}")
        return held

    def _find_axes(self) -> Axes:
        """The grid of the first time; reading refuses any other."""
        return _axes_of(self._choose(self.times[0], is_first=True), self._paths)

    def _records(self, numbers: Sequence[int], time: np.datetime64) -> list[FieldRecord]:
        return [
            record for number in numbers for record in _opened(self._paths[number]).records_at(time)
        ]

    def _choose(self, time: np.datetime64, *, is_first: bool = False) -> list[Choice]:
        """The record of each field at a time."""
        records = self._records(self._holders[time], time)
        found = choose(records, self.fields, self._selection.member)
        where = f"{shorten([str(self._paths[n]) for n in self._holders[time]], 3)} at {time}"
        if found.faults:
            raise DataError(f"{where}: {'; '.join(found.faults)}")
        choices = [found.choices[field] for field in self.fields]
        if not is_first and not _axes_of(choices, self._paths).is_close(self._axes):
            raise DataError(f"{where}: mixed grids: expected {self._axes} as at {self.times[0]}")
        return choices

    def _read_choices(
        self, choices: Sequence[Choice], time: np.datetime64
    ) -> Iterator[tuple[int, Array]]:
        """Place and values of each field in SI units; all of a file's in one go."""
        by_path: dict[Path, list[int]] = {}
        for place, choice in enumerate(choices):
            by_path.setdefault(choice.record.path, []).append(place)
        for path, places in by_path.items():
            together = [p for p in places if choices[p].records_to_read[-1].path == path]
            records = [r for p in together for r in choices[p].records_to_read]
            values = _opened(path).read(records)
            for place in together:
                parts = [next(values) for _ in choices[place].records_to_read]
                yield place, choices[place].convert(parts, self.fields[place])
            for place in (p for p in places if p not in together):
                records = list(choices[place].records_to_read)
                parts = [next(_opened(r.path).read([r])) for r in records]
                yield place, choices[place].convert(parts, self.fields[place])


@lru_cache(maxsize=MAX_OPEN_FILES)
def _opened(path: Path) -> Source:
    return open_source(path)


def _axes_of(choices: Sequence[Choice], paths: Sequence[Path]) -> Axes:
    """The one grid that all records are on."""
    records = [record for choice in choices for record in choice.records_to_read]
    first = records[0].axes
    assert first is not None, "usable records have axes"
    other = {r.grid for r in records if r.axes is not None and not r.axes.is_close(first)}
    if other:
        raise DataError(
            f"{shorten([str(path) for path in paths], 3)}: mixed grids: {records[0].grid} and "
            f"{', '.join(sorted(other))}"
        )
    return first


def _on_grid(maps: Array, axes: Axes, grid: Grid, fields: Sequence[Field]) -> Array:
    """Maps [F, Y, X] on a grid, regridded where it is another."""
    is_wind = [field.variable in WIND_COMPONENTS for field in fields]
    return regrid_maps(maps, axes.latitudes, axes.longitudes, grid, is_wind)
