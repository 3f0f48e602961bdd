"""Forecasts that need no model: persistence and climatology, made of the truth."""

from dataclasses import dataclass

import numpy as np

from jigsaw_forecast.verify.archive import AnyMaps, Times, TimeSeries
from jigsaw_forecast.verify.climatology import day_of_year

PERSISTENCE = "persistence"
CLIMATOLOGY = "climatology"
PROBABILISTIC = "probabilistic-climatology"
BASELINES = (PERSISTENCE, CLIMATOLOGY, PROBABILISTIC)


@dataclass
class YearsAsMembers:
    """The same day and hour of other years as the members of an ensemble.

    Day 366 has members of leap years only; the others are missing.

    Source: weatherbench2.utils.make_probabilistic_climatology.

    Attributes:
        truth: The analyses.
        years: One member each.
    """

    truth: TimeSeries
    years: tuple[int, ...]

    def times(self, time: np.datetime64) -> Times:
        """The members' times for a valid time; NaT where a year has no such day."""
        one = np.array([time], dtype="datetime64[s]")
        day = day_of_year(one)[0]
        within = one[0] - one.astype("datetime64[D]").astype("datetime64[s]")[0]
        found = []
        for year in self.years:
            start = np.datetime64(f"{year:04d}-01-01", "D")
            date = start + np.timedelta64(int(day), "D")
            is_there = date.astype("datetime64[Y]") == start.astype("datetime64[Y]")
            moment = date.astype("datetime64[s]") + within
            found.append(moment if is_there else np.datetime64("NaT", "s"))
        return np.array(found, dtype="datetime64[s]")

    def read(self, name: str, time: np.datetime64, levels: list[int]) -> AnyMaps:
        """Members at a valid time, shape [M, levels, Y, X], NaN where the truth lacks one."""
        shape = (len(self.years), max(1, len(levels)), *self.truth.archive.grid.shape)
        values: AnyMaps = np.full(shape, np.nan)
        for member, own in enumerate(self.times(time)):
            if not np.isnat(own) and self.truth.has(name, own):
                values[member] = self.truth.read(name, own, levels)
        return values
