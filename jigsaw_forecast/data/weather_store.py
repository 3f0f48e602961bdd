"""WeatherBench-layout stores: one zarr array per variable, read as fields of a latitude band."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xarray as xr

from jigsaw_forecast.data.zarr_store import is_consolidated
from jigsaw_forecast.errors import DataError
from jigsaw_forecast.fields import Field, plausible_range
from jigsaw_forecast.grid import Grid

Array = npt.NDArray[np.float32]
Times = npt.NDArray[np.datetime64]
Indices = npt.NDArray[np.int64]

MAX_LISTED = 12  # of gaps or bad maps in one message
LEVEL_DIM = "level"
LATITUDE_DIM = "latitude"


@dataclass(frozen=True)
class Period:
    """A span of time, both ends included.

    Attributes:
        start: First time.
        end: Last time.
    """

    start: np.datetime64
    end: np.datetime64

    @classmethod
    def parse(cls, text: str) -> "Period":
        """The period `START/END`, ISO dates or times; an end without hours means its whole day.

        Raises:
            ValueError: The text is not two dates in order.
        """
        start_text, slash, end_text = (part.strip() for part in text.partition("/"))
        try:
            start, end = np.datetime64(start_text, "s"), np.datetime64(end_text, "s")
        except ValueError:
            raise ValueError(f"{text!r} is not START/END, such as 2017-01-01/2024-12-31") from None
        if not slash or np.isnat(start) or np.isnat(end):
            raise ValueError(f"{text!r} is not START/END, such as 2017-01-01/2024-12-31")
        if re.fullmatch(r"\d{4}-\d{2}-\d{2}", end_text):
            end = end + np.timedelta64(86399, "s")
        if end < start:
            raise ValueError(f"{text!r} ends before it starts")
        return cls(start, end)

    def __str__(self) -> str:
        """`START/END`."""
        return f"{self.start}/{self.end}"


class WeatherStore:
    """A zarr store with one array per variable, dims time, level, latitude, longitude.

    Dims may come in any order and latitudes ascend or descend (the WeatherBench 2 stores have
    longitude before latitude, ascending); what is read is always north to south.

    Attributes:
        path: The store.
        grid: Its grid.
        times: Valid times, datetime64[s], ascending.
        bytes_read: Bytes of values handed out by `read` so far.
        notice: What must be said wherever something made from this data is shown; its attribute.
    """

    def __init__(self, path: Path, fields: Sequence[Field]) -> None:
        """Opens a store and checks that it holds these fields.

        Raises:
            DataError: The store cannot be opened, or lacks variables, levels or dims; all listed.
            GridError: The grid is not a global regular one.
        """
        self.path = path
        self.bytes_read = 0
        if not path.exists():
            raise DataError(
                f"missing {path}: no such store; set data.path, or make the nature run there with "
                f"`jigsaw-forecast data nature-run {path}`"
            )
        try:
            self._data = xr.open_zarr(path, chunks=None, consolidated=is_consolidated(path))
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{path}: not a readable zarr store: {error}") from error
        problems = _problems(self._data, fields)
        if problems:
            raise DataError(f"{path}: {'; '.join(problems)}")
        self.notice = str(self._data.attrs.get("notice", ""))
        latitudes = self._data[LATITUDE_DIM].values
        self.grid = Grid.from_axes(latitudes, self._data["longitude"].values)
        self._ascending = bool(latitudes[0] < latitudes[-1])
        self.times: Times = self._data["time"].values.astype("datetime64[s]")
        self._levels = (
            {int(value): place for place, value in enumerate(self._data[LEVEL_DIM].values)}
            if LEVEL_DIM in self._data.dims
            else {}
        )

    def indices(self, period: Period) -> Indices:
        """Places on the time axis within a period.

        Raises:
            DataError: No time lies in the period.
        """
        inside = np.flatnonzero((self.times >= period.start) & (self.times <= period.end))
        if not inside.size:
            raise DataError(
                f"{self.path}: no time within {period}; it holds {self.times[0]} to "
                f"{self.times[-1]}"
            )
        return inside.astype(np.int64)

    def check_gaps(self, period: Period, interval: np.timedelta64) -> None:
        """Refuses a period in which the time axis is not regular or which it does not fill.

        Raises:
            DataError: Times are missing, doubled or out of order; lists where.
        """
        times = self.times[self.indices(period)]
        steps = np.diff(times)
        bad = np.flatnonzero(steps != interval)
        gaps = [f"{times[place]} to {times[place + 1]}" for place in bad]
        if times[0] - period.start >= interval:
            gaps.insert(0, f"{period.start} to {times[0]}")
        if period.end - times[-1] >= interval:
            gaps.append(f"{times[-1]} to {period.end}")
        if gaps:
            hours = int(interval / np.timedelta64(1, "h"))
            raise DataError(
                f"{self.path}: times missing or not {hours} h apart within {period}: "
                f"{_shortened(gaps)}"
            )

    def static(self, name: str) -> Array:
        """A variable without time, shape [Y, X], north to south.

        Raises:
            DataError: The store does not hold it.
        """
        if name not in self._data:
            raise DataError(f"{self.path}: missing static variable {name}")
        values = self._data[name].transpose(LATITUDE_DIM, "longitude").values
        north_first = values[::-1] if self._ascending else values
        return np.ascontiguousarray(north_first, dtype=np.float32)

    def read(self, indices: Indices, fields: Sequence[Field], rows: slice) -> Array:
        """Values at some times, shape [T, F, Y, X], float32, physical units, north to south.

        Args:
            indices: Places on the time axis, ascending; neighbours are read together.
            fields: Fields, in the order wanted.
            rows: Rows of the grid, north to south.

        Raises:
            DataError: Values are NaN, infinite or outside of the plausible range; lists the maps.
        """
        first, last, _ = rows.indices(self.grid.num_lat)
        shape = (len(indices), len(fields), max(last - first, 0), self.grid.num_lon)
        values = np.empty(shape, dtype=np.float32)
        for run in _runs(indices):
            for variable, places in _by_variable(fields).items():
                values[run, places] = self._read_variable(
                    variable, indices[run], [fields[place].level_hpa for place in places], rows
                )
        self.bytes_read += values.nbytes
        self._check_values(values, indices, fields)
        return values

    def _read_variable(
        self, name: str, indices: Indices, levels: Sequence[int], rows: slice
    ) -> Array:
        """One variable over neighbouring times, shape [T, L, Y, X]."""
        first, last, _ = rows.indices(self.grid.num_lat)
        if self._ascending:
            first, last = self.grid.num_lat - last, self.grid.num_lat - first
        array = self._data[name]
        chosen = {"time": slice(int(indices[0]), int(indices[-1]) + 1)}
        chosen[LATITUDE_DIM] = slice(first, last)
        array = array.isel(chosen)
        if LEVEL_DIM in array.dims:
            places = [self._levels[level] for level in levels]
            low = min(places)
            array = array.isel({LEVEL_DIM: slice(low, max(places) + 1)})
            values = array.transpose("time", LEVEL_DIM, LATITUDE_DIM, "longitude").values
            values = values[:, [place - low for place in places]]
        else:
            values = array.transpose("time", LATITUDE_DIM, "longitude").values[:, None]
        north_first: Array = values[:, :, ::-1] if self._ascending else values
        return north_first

    def _check_values(self, values: Array, indices: Indices, fields: Sequence[Field]) -> None:
        """Raises unless every map is finite and plausible."""
        if not values.size:
            return
        low, high = values.min(axis=(2, 3)), values.max(axis=(2, 3))  # NaN passes into both
        bounds = np.array([plausible_range(field) for field in fields])
        good = (low >= bounds[:, 0]) & (high <= bounds[:, 1])
        bad = [
            f"{fields[place]} at {self.times[indices[time]]} ({low[time, place]:g} to "
            f"{high[time, place]:g}, plausible {bounds[place, 0]:g} to {bounds[place, 1]:g})"
            for time, place in np.argwhere(~good)
        ]
        if bad:
            raise DataError(f"{self.path}: missing or implausible values: {_shortened(bad)}")


def _problems(data: xr.Dataset, fields: Sequence[Field]) -> list[str]:
    problems = []
    coordinates = [name for name in ("time", LATITUDE_DIM, "longitude") if name not in data.coords]
    if coordinates:
        problems.append(f"missing coordinates: {', '.join(coordinates)}")
    elif not np.issubdtype(data["time"].dtype, np.datetime64) or not data["time"].size:
        problems.append("missing times: the time coordinate holds no dates")
    held = [int(level) for level in data[LEVEL_DIM].values] if LEVEL_DIM in data.coords else []
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
        if name in data and set(data[name].dims) - {LEVEL_DIM} != expected:
            problems.append(f"{name} has dims {data[name].dims}")
    return problems


def _runs(indices: Indices) -> list[slice]:
    """Slices of `indices` that are neighbours in time."""
    breaks = [0, *(np.flatnonzero(np.diff(indices) != 1) + 1).tolist(), len(indices)]
    return [slice(a, b) for a, b in pairwise(breaks) if b > a]


def _by_variable(fields: Sequence[Field]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for place, field in enumerate(fields):
        places.setdefault(field.variable, []).append(place)
    return places


def _shortened(entries: Sequence[str]) -> str:
    rest = len(entries) - MAX_LISTED
    return ", ".join(entries[:MAX_LISTED]) + (f" and {rest} more" if rest > 0 else "")
