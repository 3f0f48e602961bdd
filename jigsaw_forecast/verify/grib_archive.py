"""Archives in GRIB files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jigsaw_forecast.data.conversions import to_si
from jigsaw_forecast.data.grib import GribSource
from jigsaw_forecast.data.records import (
    GEOPOTENTIAL_HEIGHT,
    PRESSURE_LEVEL,
    Axes,
    FieldRecord,
)
from jigsaw_forecast.errors import DataError
from jigsaw_forecast.fields import GRAVITY_M_S2, VARIABLES, LevelType, Role, find_variable
from jigsaw_forecast.verify.archive import AnyMaps, ArchiveGrid, ArchiveVariable, Mask

_Key = tuple[np.datetime64, np.timedelta64, float, int | None]  # init, lead, level, member


class GribArchive:
    """A GRIB file; one message is decoded at a time."""

    def __init__(self, path: Path) -> None:
        """Lists the messages.

        Raises:
            DataError: The file is damaged, or holds no maps that can be scored.
        """
        self.path = path
        self.attributes: Mapping[str, str] = {}
        self.skipped: dict[str, str] = {}
        self._source = GribSource(path)
        self._statics: dict[str, FieldRecord] = {}
        self._records: dict[str, dict[_Key, FieldRecord]] = {}
        axes: Axes | None = None
        for record in self._source.records():
            name = _variable_of(record)
            if record.axes is None or np.isnat(record.valid_time) or not name:
                self.skipped[record.short_name] = record.why or "not a map that can be scored"
                continue
            if axes is not None and not record.axes.is_close(axes):
                raise DataError(f"{path} holds several grids: {record.axes} beside {axes}")
            axes = axes or record.axes
            spec = VARIABLES.get(name)
            if spec is not None and spec.role is Role.STATIC:
                self._statics.setdefault(name, record)
                continue
            level = float(record.level or 0) if record.level_type == PRESSURE_LEVEL else 0.0
            lead = np.timedelta64(record.lead_time, "s")
            key = (record.init_time.astype("datetime64[s]"), lead, level, record.member)
            self._records.setdefault(name, {}).setdefault(key, record)
        if axes is None:
            reasons = "; ".join(f"{name}: {why}" for name, why in self.skipped.items())
            raise DataError(f"{path} holds no maps that can be scored: {reasons}")
        self.grid = ArchiveGrid(axes.latitudes, axes.longitudes)
        self.members = self._find_members()
        self.variables = {name: self._describe(name) for name in self._records}

    def _find_members(self) -> tuple[int, ...]:
        numbers = {
            key[3] for records in self._records.values() for key in records if key[3] is not None
        }
        return tuple(sorted(numbers)) if len(numbers) > 1 else ()

    def _describe(self, name: str) -> ArchiveVariable:
        records = self._records[name]
        inits = np.array(sorted({key[0] for key in records}), dtype="datetime64[s]")
        leads = np.array(sorted({key[1] for key in records}), dtype="timedelta64[s]")
        levels = sorted({key[2] for key in records})
        held = {(key[0], key[1]) for key in records}
        exists = np.array([[(i, lead) in held for lead in leads] for i in inits], dtype=bool)
        first = next(iter(records.values()))
        is_height = first.variable == GEOPOTENTIAL_HEIGHT
        spec = VARIABLES.get(name)
        return ArchiveVariable(
            name,
            () if levels == [0.0] else tuple(levels),
            spec.units if spec is not None else first.units,
            inits,
            leads,
            exists,
            "converted from geopotential height" if is_height else "",
        )

    def static(self, name: str) -> AnyMaps | None:
        """A field that does not depend on time, shape [Y, X], or None."""
        record = self._statics.get(name)
        return None if record is None else self._decode(record)

    def read(self, name: str, init: int, leads: Sequence[int], levels: Sequence[int]) -> AnyMaps:
        """Maps of one variable from one initial time: see `Archive.read`."""
        variable, records = self.variables[name], self._records[name]
        members: tuple[int | None, ...] = self.members or (None,)
        shape = (len(leads), len(members), len(levels), *self.grid.shape)
        values = np.full(shape, np.nan)
        single = {key[:3]: record for key, record in records.items()} if not self.members else {}
        for row, lead in enumerate(leads):
            for place, level in enumerate(levels):
                level_hpa = variable.levels[level] if variable.levels else 0.0
                where = (variable.init_times[init], variable.lead_times[lead], level_hpa)
                for column, member in enumerate(members):
                    record = records.get((*where, member)) if self.members else single.get(where)
                    if record is not None:
                        values[row, column, place] = self._decode(record)
        return values

    def read_series(
        self, name: str, inits: Sequence[int], lead: int, levels: Sequence[int]
    ) -> AnyMaps:
        """Maps of one lead time: see `Archive.read_series`."""
        return np.stack([self.read(name, init, [lead], levels)[0, 0] for init in inits])

    def _decode(self, record: FieldRecord) -> AnyMaps:
        (values,) = self._source.read([record])
        scale, offset = to_si(_variable_of(record), record.units) or (1.0, 0.0)
        if record.variable == GEOPOTENTIAL_HEIGHT:
            scale, offset = GRAVITY_M_S2, 0.0
        return np.asarray(values.astype(np.float64) * scale + offset)

    def preferred_leads(self, name: str) -> int:
        """One: each message stands alone."""
        return 1

    def absent(self, name: str) -> Mask | None:
        """GRIB lists what it has."""
        return None


def _variable_of(record: FieldRecord) -> str:
    """WeatherBench name of a record, else the file's own; empty where it cannot be scored."""
    if record.variable == GEOPOTENTIAL_HEIGHT:
        return "geopotential" if record.level_type == PRESSURE_LEVEL else ""
    known = find_variable(record.variable)
    if known is None:
        return ""
    on_pressure = record.level_type == PRESSURE_LEVEL
    if record.level_type.startswith("hybrid"):
        return ""
    return known.name if on_pressure == (known.level_type is LevelType.PRESSURE) else ""
