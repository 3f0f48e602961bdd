"""What `data convert` reads: WeatherBench-layout stores and training sets, or any files."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jigsaw_forecast.data.convert_fields import Selection, find_fields
from jigsaw_forecast.data.convert_files import STATICS, FileInput, on_grid
from jigsaw_forecast.data.records import Axes
from jigsaw_forecast.data.selection import list_times
from jigsaw_forecast.data.store import Array, Store, Times
from jigsaw_forecast.data.stores import open_store
from jigsaw_forecast.data.weather_store import WeatherStore
from jigsaw_forecast.errors import DataError, GridError
from jigsaw_forecast.fields import Field
from jigsaw_forecast.grid import Grid


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
        doubts: What whoever gave the inputs may not have meant, a line each.
    """

    times: Times
    grid: Grid
    num_rows: int
    fields: tuple[Field, ...]
    times_per_chunk: int
    notice: str
    doubts: tuple[str, ...]

    def read_into(self, out: Array, times: Times) -> None:
        """Reads values, SI units, not checked for their range.

        Args:
            out: Where they go, shape [T, F, num_rows, X].
            times: Which, ascending.

        Raises:
            DataError: Fields are missing at a time, or cannot be read.
        """

    def statics(self) -> dict[str, Array]:
        """The static maps [Y, X] that any input holds, by name."""


def open_input(paths: Sequence[Path], selection: Selection) -> ConvertInput:
    """Opens inputs; stores that hold all fields are read as such, anything else record by record.

    Raises:
        DataError: Inputs cannot be read, or lack fields or times; all listed.
        GridError: Their grid is no regular global one and none to regrid to was given.
    """
    fields = selection.fields or find_fields(*paths)
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
                f"mixed grids: {stores[0].path} has {source.name}, unlike {', '.join(other)}; "
                "convert those of each grid apart with --grid LONxLAT, then the sets together"
            )
        self._is_regridding = self.grid != source
        held = min(store.num_rows for store in stores)
        self.num_rows = self.grid.num_lat if self._is_regridding else held
        short = [str(store.path) for store in stores if store.num_rows < source.num_lat]
        if self._is_regridding and short:
            raise DataError(f"{', '.join(short)}: missing the row of the south pole: cannot regrid")
        joined = np.concatenate([store.times for store in stores])
        self.times, first, counts = np.unique(joined, return_index=True, return_counts=True)
        self._owner = np.repeat(range(len(stores)), [len(store.times) for store in stores])[first]
        self._place = np.concatenate([np.arange(len(store.times)) for store in stores])[first]
        self.times_per_chunk = max(
            store.times_per_chunk if isinstance(store, WeatherStore) else 1 for store in stores
        )
        self.notice = "; ".join(dict.fromkeys(store.notice for store in stores if store.notice))
        doubled = self.times[counts > 1]
        self.doubts: tuple[str, ...] = ()
        if doubled.size:
            doubt = f"{list_times(doubled)}: held more than once; the store named first gives them"
            self.doubts = (doubt,)

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
                target[...] = on_grid(maps, axes, self.grid, self.fields)

    def statics(self) -> dict[str, Array]:
        """As `ConvertInput.statics`."""
        source = self._stores[0].grid
        found: dict[str, Array] = {}
        for store, name in product(self._stores, STATICS):
            if name in found:
                continue
            with suppress(DataError):  # not there, or in units that are unknown
                values = store.static(name)
                if self._is_regridding:
                    axes = Axes(source.latitudes, source.longitudes)
                    values = on_grid(values[None], axes, self.grid, [Field(name)])[0]
                found[name] = values[: self.grid.num_model_lat]
        return found
