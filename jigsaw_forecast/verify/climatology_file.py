"""Climatologies on disk, by day of year and hour, in the layout of WeatherBench 2."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xarray as xr

from jigsaw_forecast.data.axes import order_axes
from jigsaw_forecast.data.conventions import Axis, axis_of, levels_hpa
from jigsaw_forecast.errors import DataError
from jigsaw_forecast.verify.archive import AnyMaps, ArchiveGrid, Times
from jigsaw_forecast.verify.climatology import day_of_year, hour_of_day
from jigsaw_forecast.verify.dataset import open_dataset

HOUR, DAY = "hour", "dayofyear"
_MAX_SINGLE_DAYS = 40  # more than this are told as runs
_MEAN_SUFFIX = "_mean"  # weatherbench2 adds it where a store holds several statistics
_THRESHOLD, _DRY_FRACTION = "_seeps_threshold", "_seeps_dry_fraction"


class ClimatologyFile:
    """Mean maps by day of year and hour, read one at a time.

    Attributes:
        path: The store or file.
        grid: Its grid, that of `regrid` where given.
        hours: Hours of the day that it has, UTC; None where it has one map a day.
        days: Days of the year that it has, from 1.
        levels: Pressure levels by variable, hPa; empty for a single level.
        units: By variable, as the file says them.
    """

    def __init__(self, path: Path) -> None:
        """Opens it.

        Raises:
            DataError: It cannot be read or has no dim `dayofyear`.
        """
        if not path.exists():
            raise DataError(
                f"missing climatology {path}; make one with `jigsaw-forecast data climatology`"
            )
        self.path = path
        self._data = open_dataset(path)
        if DAY not in self._data.dims:
            raise DataError(
                f"{path} is no climatology: missing dim {DAY}; it has "
                f"{', '.join(map(str, self._data.dims))}"
            )
        self.days = tuple(int(day) for day in self._data[DAY].values)
        self.hours = (
            tuple(int(hour) for hour in self._data[HOUR].values)
            if HOUR in self._data.dims
            else None
        )
        axes = {axis_of(str(dim), self._data.coords.get(dim)): dim for dim in self._data.dims}
        lacking = [a.value for a in (Axis.LATITUDE, Axis.LONGITUDE) if a not in axes]
        if lacking:
            raise DataError(f"{path} is no climatology of maps: missing {', '.join(lacking)}")
        self._lat, self._lon = axes[Axis.LATITUDE], axes[Axis.LONGITUDE]
        self._level = axes.get(Axis.PRESSURE)
        self._order = order_axes(self._data[self._lat].values, self._data[self._lon].values)
        self.grid = ArchiveGrid(self._order.axes.latitudes, self._order.axes.longitudes)
        self._all_levels: list[float] = []
        if self._level is not None:
            held = levels_hpa(str(self._level), self._data[self._level])
            self._all_levels = [float(level) for level in np.atleast_1d(held)]
        self._names: dict[str, str] = {}
        self.levels: dict[str, tuple[float, ...]] = {}
        self.units: dict[str, str] = {}
        for array in self._data.data_vars.values():
            self._add(array)
        self._regrid: Callable[[AnyMaps], AnyMaps] | None = None

    def _add(self, array: xr.DataArray) -> None:
        stored = str(array.name)
        if DAY not in array.dims or stored.endswith((_THRESHOLD, _DRY_FRACTION)):
            return
        name = stored.removesuffix(_MEAN_SUFFIX)
        if name in self._names and stored.endswith(_MEAN_SUFFIX):
            return
        self._names[name] = stored
        self.levels[name] = tuple(self._all_levels) if self._level in array.dims else ()
        self.units[name] = str(array.attrs.get("units", ""))

    def set_regridder(self, regrid: Callable[[AnyMaps], AnyMaps], grid: ArchiveGrid) -> None:
        """Hands out maps on another grid from now on; SEEPS, which is not linear, is dropped."""
        self._regrid, self.grid = regrid, grid

    def has(self, name: str) -> bool:
        """Whether it holds a variable."""
        return name in self._names

    def missing_days(self, times: Times) -> list[str]:
        """Days and hours that valid times need and it lacks, `day 60 06 UTC`, or runs of days."""
        lacking: dict[int, set[int]] = {}
        for day, hour in zip(day_of_year(times) + 1, hour_of_day(times), strict=True):
            no_hour = self.hours is not None and int(hour) not in self.hours
            if int(day) not in self.days or no_hour:
                lacking.setdefault(int(day), set()).add(int(hour))
        hours_of = {day: [f"{hour:02d}" for hour in sorted(lacking[day])] for day in lacking}
        if self.hours is None:
            hours_of = {day: [] for day in lacking}
        runs = _runs(sorted(lacking), hours_of.get)
        if (
            sum(map(len, hours_of.values())) <= _MAX_SINGLE_DAYS
            and len(lacking) <= _MAX_SINGLE_DAYS
        ):
            runs = [[day] for day in sorted(lacking)]
        return [part for run in runs for part in _describe_run(run, hours_of[run[0]])]

    def read(self, name: str, time: np.datetime64, levels: Sequence[float]) -> AnyMaps:
        """Mean maps for a valid time, shape [levels, Y, X].

        Args:
            name: A variable that it has.
            time: Valid time, a day and hour that it has.
            levels: In hPa; empty for a single level.
        """
        array = self._data[self._names[name]].isel(self._place(time))
        if self._level in array.dims:
            array = array.isel({self._level: [self._all_levels.index(level) for level in levels]})
        return self._arrange(array)

    def read_many(
        self, name: str, times: Sequence[np.datetime64], levels: Sequence[float]
    ) -> dict[np.datetime64, AnyMaps]:
        """Mean maps for valid times, each of shape [levels, Y, X], in few accesses."""
        by_hour: dict[int, dict[int, list[np.datetime64]]] = {}
        for time in times:
            place = self._place(time)
            days = by_hour.setdefault(place.get(HOUR, -1), {})
            days.setdefault(place[DAY], []).append(time)
        found: dict[np.datetime64, AnyMaps] = {}
        for hour, days in by_hour.items():
            array = self._data[self._names[name]]
            if hour >= 0:
                array = array.isel({HOUR: hour})
            if self._level in array.dims:
                places = [self._all_levels.index(level) for level in levels]
                array = array.isel({self._level: places})
            for run in _runs(sorted(days)):
                block = array.isel({DAY: slice(run[0], run[-1] + 1)}).load()
                for index, day in enumerate(run):
                    mean = self._arrange(block.isel({DAY: index}))
                    found |= dict.fromkeys(days[day], mean)
        return found

    def has_seeps(self, name: str) -> bool:
        """Whether it holds what SEEPS of a precipitation needs, on the grid of the score."""
        return self._regrid is None and {
            f"{name}{_THRESHOLD}",
            f"{name}{_DRY_FRACTION}",
        } <= {str(one) for one in self._data.data_vars}

    def wet_threshold(self, name: str, time: np.datetime64) -> AnyMaps:
        """Boundary between light and heavy precipitation, m, shape [1, Y, X]."""
        return self._arrange(self._data[f"{name}{_THRESHOLD}"].isel(self._place(time)))

    def dry_fraction(self, name: str) -> npt.NDArray[np.float64]:
        """Mean over all days and hours that it has, shape [Y, X]."""
        array = self._data[f"{name}{_DRY_FRACTION}"]
        over = [dim for dim in (HOUR, DAY) if dim in array.dims]
        total: npt.NDArray[np.float64] | None = None
        count = 0
        days = array.sizes[DAY]
        for day in range(days):  # a day at a time, in a store that may not fit into memory
            part = array.isel({DAY: [day]}).astype(np.float64)
            size = int(np.prod([part.sizes[dim] for dim in over]))
            summed = part.sum(over, skipna=False).transpose(self._lat, self._lon).values
            total = summed if total is None else total + summed
            count += size
        assert total is not None
        return np.asarray(self._order.arrange(total / count), dtype=np.float64)

    def _place(self, time: np.datetime64) -> dict[str, int]:
        one = np.array([time])
        place = {DAY: self.days.index(int(day_of_year(one)[0]) + 1)}
        if self.hours is not None:
            place[HOUR] = self.hours.index(int(hour_of_day(one)[0]))
        return place

    def _arrange(self, array: xr.DataArray) -> AnyMaps:
        dims = [self._level] if self._level in array.dims else []
        values = self._order.arrange(array.transpose(*dims, self._lat, self._lon).values)
        maps = values if values.ndim == 3 else values[None]
        return self._regrid(maps) if self._regrid is not None else maps


def _runs(
    places: Sequence[int], kind: Callable[[int], object] = lambda place: None
) -> list[list[int]]:
    """Ascending places as runs of neighbours of one kind."""
    runs: list[list[int]] = []
    for place in places:
        if runs and place == runs[-1][-1] + 1 and kind(place) == kind(runs[-1][-1]):
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs


def _describe_run(days: Sequence[int], hours: Sequence[str]) -> list[str]:
    if len(days) > 1:
        at = f" at {', '.join(hours)} UTC" if hours else ""
        return [f"days {days[0]} to {days[-1]}{at}"]
    return [f"day {days[0]} {hour} UTC" for hour in hours] or [f"day {days[0]}"]
