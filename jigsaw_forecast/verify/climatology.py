"""Climatology by day of year and hour, smoothed over a window of days."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Array64 = npt.NDArray[np.float64]

DAYS = 366
LAST_DAY_OF_COMMON_YEARS = 364  # from 0; WeatherBench 2 lets it stand for day 366 as well
WINDOW_DAYS = 61  # WeatherBench 2


def window_weights(num_days: int = WINDOW_DAYS) -> Array64:
    """Triangular weights by distance, 1 in the middle and 0 at the ends, shape [num_days].

    Source: WeatherBench 2 (Rasp et al. 2024), section 2.5: 61 days, linearly decaying.
    """
    half = num_days // 2
    distance = np.abs(np.arange(num_days) - half)
    return np.asarray(1.0 - distance / half)


def day_of_year(times: npt.NDArray[np.datetime64]) -> npt.NDArray[np.int64]:
    """Day of the year from 0, UTC."""
    days = times.astype("datetime64[D]")
    return np.asarray((days - times.astype("datetime64[Y]")).astype(np.int64))


def hour_of_day(times: npt.NDArray[np.datetime64]) -> npt.NDArray[np.int64]:
    """Hour of the day, UTC."""
    hours = times.astype("datetime64[h]") - times.astype("datetime64[D]")
    return np.asarray(hours.astype(np.int64))


def days_of(time: np.datetime64) -> tuple[int, ...]:
    """Days of the year, from 0, that a time counts for: the last of a common year is day 366 too.

    Source: weatherbench2.utils.compute_rolling_stat fills the gap day so.
    """
    day = int(day_of_year(np.array([time]))[0])
    year = time.astype("datetime64[Y]")
    next_year = (year + np.timedelta64(1, "Y")).astype("datetime64[D]")
    is_common = (next_year - year.astype("datetime64[D]")) == np.timedelta64(DAYS - 1, "D")
    return (day, DAYS - 1) if day == LAST_DAY_OF_COMMON_YEARS and is_common else (day,)


class ClimatologyBuilder:
    """Sums maps by hour and day of year; additive over chunks of times."""

    def __init__(self, shape: tuple[int, ...], hours: Sequence[int] = (0, 6, 12, 18)) -> None:
        """Starts empty for maps of this shape at these hours."""
        self._hours = np.asarray(hours)
        self._sums = np.zeros((len(hours), DAYS, *shape))
        self._counts = np.zeros((len(hours), DAYS))

    def add(self, times: npt.NDArray[np.datetime64], values: npt.NDArray[np.floating]) -> None:
        """Adds maps [T, ...]; times at other hours are left out."""
        for time, time_hour, maps in zip(times, hour_of_day(times), values, strict=True):
            place = np.flatnonzero(self._hours == time_hour)
            for day in days_of(time) if place.size else ():
                self._sums[place[0], day] += maps
                self._counts[place[0], day] += 1

    def merge(self, other: "ClimatologyBuilder") -> None:
        """Adds another part of the times."""
        self._sums += other._sums
        self._counts += other._counts

    def finish(self, num_days: int = WINDOW_DAYS) -> "Climatology":
        """The climatology: weighted mean over years and the window, across the new year."""
        weights = window_weights(num_days)
        half = num_days // 2
        # circulant matrix of the window over the year
        distance = np.subtract.outer(np.arange(DAYS), np.arange(DAYS))
        distance = np.abs((distance + DAYS // 2) % DAYS - DAYS // 2)
        matrix = np.where(distance <= half, weights[np.minimum(distance + half, num_days - 1)], 0.0)
        counts = self._counts @ matrix.T
        counts = np.where(counts > 0, counts, np.nan)  # days far from all times have no climatology
        flat = self._sums.reshape(len(self._hours), DAYS, -1)
        means = np.matmul(matrix, flat) / counts[:, :, None]
        return Climatology(self._hours, means.reshape(self._sums.shape).astype(np.float32))


class Climatology:
    """Mean maps by hour and day of year.

    Attributes:
        hours: Hours of the day that it holds, UTC.
        maps: Shape [hours, 366, ...], float32.
    """

    def __init__(self, hours: npt.NDArray[np.int64], maps: Array) -> None:
        """Takes the maps."""
        self.hours = hours
        self.maps = maps

    def at(self, times: npt.NDArray[np.datetime64]) -> Array:
        """Maps for valid times, shape [T, ...]; the nearest earlier hour that it holds."""
        places = np.searchsorted(self.hours, hour_of_day(times), side="right") - 1
        return self.maps[places, day_of_year(times)]
