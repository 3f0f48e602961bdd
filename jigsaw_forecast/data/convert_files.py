"""Any files as input of `data convert`, record by record: GRIB, netCDF and zarr of any layout."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from jigsaw_forecast.data.convert_fields import Selection, as_trained_on, opened, opened_together
from jigsaw_forecast.data.duplicates import agree
from jigsaw_forecast.data.grib import GribSource
from jigsaw_forecast.data.records import NOT_A_TIME, Axes, FieldRecord
from jigsaw_forecast.data.regrid import regrid as regrid_maps
from jigsaw_forecast.data.selection import Choice, choose
from jigsaw_forecast.data.store import Array, Times, shorten
from jigsaw_forecast.errors import DataError
from jigsaw_forecast.fields import WIND_COMPONENTS, Field
from jigsaw_forecast.grid import Grid

STATICS = ("land_sea_mask", "geopotential_at_surface")


def read_statics(path: Path, grid: Grid, names: Sequence[str] = STATICS) -> dict[str, Array]:
    """Static maps [model rows, X] of a file on a grid, at any time; those that it holds.

    Raises:
        DataError: The file cannot be read.
    """
    source = opened(path)
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
            found = on_grid(values[None], axes, grid, [field])[0]
            maps[field.variable] = found[: grid.num_model_lat]
    return maps


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
                for time in opened(path).valid_times():
                    holders.setdefault(time, []).append(number)
            except DataError as error:
                faults.append(str(error))
        if faults:
            raise DataError("\n".join(faults))
        self._used: set[Path] = set()
        self._holders, self._axes = self._check_times(holders)
        self.times = np.array(sorted(self._holders), dtype="datetime64[s]")
        self.doubts = tuple(self._find_unused(holders))
        self.grid = selection.grid or Grid.from_axes(
            self._axes.latitudes.tolist(), self._axes.longitudes.tolist()
        )
        self.num_rows = self.grid.num_lat

    def read_into(self, out: Array, times: Times) -> None:
        """As `ConvertInput.read_into`."""
        for maps, time in zip(out, times, strict=True):
            for place, found in self._read_choices(self._choose(time)):
                field = [self.fields[place]]
                maps[place] = on_grid(found[None], self._axes, self.grid, field)[0]

    def statics(self) -> dict[str, Array]:
        """As `ConvertInput.statics`: the first record of any time, or of none."""
        found: dict[str, Array] = {}
        for path in self._paths:
            if missing := [name for name in STATICS if name not in found]:
                found |= read_statics(path, self.grid, missing)
        return found

    def _check_times(
        self, holders: dict[np.datetime64, list[int]]
    ) -> tuple[dict[np.datetime64, tuple[int, ...]], Axes]:
        """The times at which any wanted field is valid, checked for every field, and the grid.

        Headers of GRIB are in memory, so each time is looked at; arrays have the same fields at
        all times, so one time for each group of files is enough.
        """
        held: dict[np.datetime64, tuple[int, ...]] = {}
        faults: dict[str, list[str]] = {}
        seen: dict[tuple[int, ...], bool] = {}
        last: list[str] = []
        first: FieldRecord | None = None
        for time, numbers in sorted(holders.items()):
            group = tuple(numbers)
            sources = opened_together([self._paths[number] for number in group])
            is_array = not any(isinstance(source, GribSource) for source in sources)
            if is_array and group in seen:
                if seen[group]:
                    held[time] = group
                continue
            found = choose(self._records(group, time), self.fields, self._selection.member)
            seen[group] = bool(found.choices)
            if not found.choices:  # a static file's own time
                last = found.faults
                continue
            held[time] = group
            records = [r for choice in found.choices.values() for r in choice.records_to_read]
            first = first or records[0]
            self._used.update(r.path for c in found.choices.values() for r in c.all_records)
            for fault in (*found.faults, *_grid_faults(first, records)):
                faults.setdefault(fault, []).append(str(time.astype("datetime64[m]")))
        names = shorten([str(path) for path in self._paths], 3)
        if faults:
            lines = [f"{fault} (at {shorten(times, 4)})" for fault, times in faults.items()]
            raise DataError("\n  - ".join([f"{names} cannot be converted:", *lines]))
        if first is None:
            raise DataError(f"{names}: {'; '.join(last) if holders else 'no field has a time'}")
        assert first.axes is not None, "usable records have axes"
        return held, first.axes

    def _find_unused(self, holders: dict[np.datetime64, list[int]]) -> list[str]:
        """Files of which nothing is taken, and why."""
        doubts = []
        for number, path in enumerate(self._paths):
            if path in self._used:
                continue
            times = [time for time, numbers in holders.items() if number in numbers]
            records = self._records((number,), min(times) if times else NOT_A_TIME)
            if any(record.variable in STATICS for record in records):
                continue
            reasons = [f"{record.short_name} {record.why}".rstrip() for record in records]
            held = shorten(list(dict.fromkeys(reasons)), 3) or "no field"
            doubts.append(f"{path}: none of the fields wanted is in it: it holds {held}")
        return doubts

    def _records(self, numbers: Sequence[int], time: np.datetime64) -> list[FieldRecord]:
        return [
            as_trained_on(record)
            for source in opened_together([self._paths[number] for number in numbers])
            for record in source.records_at(time)
        ]

    def _choose(self, time: np.datetime64) -> list[Choice]:
        """The record of each field at a time."""
        records = self._records(self._holders[time], time)
        found = choose(records, self.fields, self._selection.member)
        faults = list(found.faults)
        if not faults:
            choices = [found.choices[field] for field in self.fields]
            faults += self._find_contradictions(choices)
        if faults:
            where = f"{shorten([str(self._paths[n]) for n in self._holders[time]], 3)} at {time}"
            raise DataError(f"{where}: {'; '.join(faults)}")
        return choices

    def _find_contradictions(self, choices: Sequence[Choice]) -> list[str]:
        """Fields that are held more than once with different values."""
        faults = []
        for field, choice in zip(self.fields, choices, strict=True):
            if not choice.duplicates:
                continue
            same = (choice.record, *choice.duplicates)
            first, *others = (next(opened(record.path).read([record])) for record in same)
            other = [
                r for r, v in zip(choice.duplicates, others, strict=True) if not agree(first, v)
            ]
            if other:
                places = [f"{record.path} ({record.where})" for record in (choice.record, *other)]
                faults.append(
                    f"{field} occurs with different values in {' and '.join(places)}; give one only"
                )
        return faults

    def _read_choices(self, choices: Sequence[Choice]) -> Iterator[tuple[int, Array]]:
        """Place and values of each field in SI units; all of a file's in one go."""
        by_path: dict[Path, list[int]] = {}
        for place, choice in enumerate(choices):
            by_path.setdefault(choice.record.path, []).append(place)
        for path, places in by_path.items():
            together = [p for p in places if choices[p].records_to_read[-1].path == path]
            records = [r for p in together for r in choices[p].records_to_read]
            values = opened(path).read(records)
            for place in together:
                parts = [next(values) for _ in choices[place].records_to_read]
                yield place, choices[place].convert(parts, self.fields[place])
            for place in (p for p in places if p not in together):
                records = list(choices[place].records_to_read)
                parts = [next(opened(r.path).read([r])) for r in records]
                yield place, choices[place].convert(parts, self.fields[place])


def _grid_faults(first: FieldRecord, records: Iterable[FieldRecord]) -> list[str]:
    """Records on another grid than the first of all."""
    axes = first.axes
    assert axes is not None, "usable records have axes"
    other = {
        f"{record.grid} ({record.axes}) in {record.path}": None
        for record in records
        if record.axes is not None and not record.axes.is_close(axes)
    }
    if not other:
        return []
    return [
        f"mixed grids: {first.grid} ({axes}) in {first.path}, unlike {', '.join(other)}; convert "
        "those of each grid apart with --grid LONxLAT, then the sets together"
    ]


def on_grid(maps: Array, axes: Axes, grid: Grid, fields: Sequence[Field]) -> Array:
    """Maps [F, Y, X] on a grid, regridded where it is another."""
    is_wind = [field.variable in WIND_COMPONENTS for field in fields]
    return regrid_maps(maps, axes.latitudes, axes.longitudes, grid, is_wind)
