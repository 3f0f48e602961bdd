"""Archives of maps: forecasts, analyses and climatologies as the score reads them, lazily.

An archive knows which maps it has by initial and lead time (analyses have lead time zero) and hands
them out north to south and from longitude 0, in the numbers of the file. Names end here: what is
read is in WeatherBench names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from jigsaw_forecast.data.records import Float64Array

AnyMaps = npt.NDArray[np.floating]
Times = npt.NDArray[np.datetime64]
Spans = npt.NDArray[np.timedelta64]
Mask = npt.NDArray[np.bool_]

COORDINATE_TOLERANCE_DEGREES = 1e-3  # GRIB 1 rounds to millidegrees; weatherbench2 takes the same


@dataclass(frozen=True, eq=False)
class ArchiveGrid:
    """Rows and columns of an archive, global or not.

    Attributes:
        latitudes: Degrees north, strictly descending, shape [Y].
        longitudes: Degrees east from 0, strictly ascending, shape [X].
    """

    latitudes: Float64Array
    longitudes: Float64Array

    @property
    def name(self) -> str:
        """`64x32`: columns by rows."""
        return f"{self.longitudes.size}x{self.latitudes.size}"

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.latitudes.size, self.longitudes.size

    def is_close(self, other: "ArchiveGrid") -> bool:
        """Whether the points are the same to a thousandth of a degree."""
        return self.shape == other.shape and bool(
            np.abs(self.latitudes - other.latitudes).max() < COORDINATE_TOLERANCE_DEGREES
            and np.abs(self.longitudes - other.longitudes).max() < COORDINATE_TOLERANCE_DEGREES
        )

    def __str__(self) -> str:
        """Rows and columns with their first and last coordinate."""
        lat, lon = self.latitudes, self.longitudes
        return f"{self.name} (latitude {lat[0]:g}..{lat[-1]:g}, longitude {lon[0]:g}..{lon[-1]:g})"


@dataclass(frozen=True, eq=False)
class ArchiveVariable:
    """One variable of an archive.

    Attributes:
        name: WeatherBench name where it is known, else the file's.
        levels: hPa, ascending; empty for a single level.
        units: As the file says them, may be empty.
        init_times: datetime64[s], ascending, shape [I].
        lead_times: timedelta64[s], ascending, shape [L].
        exists: Which maps there are, shape [I, L].
        note: How it was converted, otherwise empty.
    """

    name: str
    levels: tuple[float, ...]
    units: str
    init_times: Times
    lead_times: Spans
    exists: Mask
    note: str = ""


class Archive(Protocol):
    """Maps by variable, initial time, lead time, member and level.

    Attributes:
        path: What it was opened from.
        grid: The same for all variables.
        variables: By name.
        members: Ensemble members, empty for a single forecast.
        attributes: Provenance, where the file holds any.
        skipped: Arrays that cannot be scored, with the reason.
    """

    path: Path
    grid: ArchiveGrid
    members: tuple[int, ...]
    attributes: Mapping[str, str]

    @property
    def variables(self) -> Mapping[str, ArchiveVariable]:
        """What it holds."""

    @property
    def skipped(self) -> Mapping[str, str]:
        """What it holds that cannot be scored."""

    def static(self, name: str) -> AnyMaps | None:
        """A field without time, shape [Y, X], or None."""

    def read(self, name: str, init: int, leads: Sequence[int], levels: Sequence[int]) -> AnyMaps:
        """Maps of one variable from one initial time.

        Args:
            name: Key of `variables`.
            init: Place on the variable's `init_times`.
            leads: Places on its `lead_times`, ascending.
            levels: Places on its `levels`; `[0]` for a single level.

        Returns:
            Shape [leads, members or 1, levels, Y, X]; NaN where a map does not exist.
        """

    def read_series(
        self, name: str, inits: Sequence[int], lead: int, levels: Sequence[int]
    ) -> AnyMaps:
        """Maps of one lead time that exist, from several initial times, of the first member.

        Args:
            name: Key of `variables`.
            inits: Places on the variable's `init_times`, ascending.
            lead: Place on its `lead_times`.
            levels: Places on its `levels`; `[0]` for a single level.

        Returns:
            Shape [inits, levels, Y, X].
        """

    def preferred_leads(self, name: str) -> int:
        """Lead times that one access had better read together: those of a chunk."""

    def absent(self, name: str) -> Mask | None:
        """Which existing maps were never written, shape [I, L], None where it cannot tell."""


@dataclass
class TimeSeries:
    """Analyses by valid time, made of an archive.

    Where a variable has maps of lead time zero these alone count; where it has none, as
    precipitation, the shortest lead time stands for the analysis.

    Attributes:
        archive: Where the maps are.
        times: By variable, valid times that it has, ascending.
    """

    archive: Archive
    times: dict[str, Times] = field(default_factory=dict)
    _places: dict[str, dict[np.datetime64, tuple[int, int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Lists the valid times."""
        for name, variable in self.archive.variables.items():
            places: dict[np.datetime64, tuple[int, int]] = {}
            is_analysis = variable.lead_times == np.timedelta64(0, "s")
            analyses = np.flatnonzero(is_analysis & variable.exists.any(axis=0))
            leads = analyses if analyses.size else np.arange(variable.lead_times.size)
            for lead in map(int, leads[::-1]):  # the shortest last, so that it stays
                for init in np.flatnonzero(variable.exists[:, lead]):
                    valid = variable.init_times[init] + variable.lead_times[lead]
                    places[valid] = (int(init), lead)
            self._places[name] = places
            self.times[name] = np.array(sorted(places), dtype="datetime64[s]")

    def has(self, name: str, time: np.datetime64) -> bool:
        """Whether a variable has a map at a valid time."""
        return time in self._places.get(name, {})

    def lead_time(self, name: str, time: np.datetime64) -> np.timedelta64:
        """How old the forecast is that stands for the analysis; zero for an analysis."""
        _, lead = self._places[name][time]
        return np.timedelta64(self.archive.variables[name].lead_times[lead], "s")

    def read(self, name: str, time: np.datetime64, levels: Sequence[int]) -> AnyMaps:
        """Maps at a valid time, shape [levels, Y, X]."""
        init, lead = self._places[name][time]
        maps: AnyMaps = self.archive.read(name, init, [lead], levels)[0, 0]
        return maps

    def read_many(
        self, name: str, times: Sequence[np.datetime64], levels: Sequence[int]
    ) -> dict[np.datetime64, AnyMaps]:
        """Maps at valid times that it has, each of shape [levels, Y, X], in few accesses."""
        by_lead: dict[int, list[tuple[int, np.datetime64]]] = {}
        for time in times:
            init, lead = self._places[name][time]
            by_lead.setdefault(lead, []).append((init, time))
        found: dict[np.datetime64, AnyMaps] = {}
        for lead, pairs in by_lead.items():
            pairs.sort()
            maps = self.archive.read_series(name, [init for init, _ in pairs], lead, levels)
            found |= {time: one for (_, time), one in zip(pairs, maps, strict=True)}
        return found
