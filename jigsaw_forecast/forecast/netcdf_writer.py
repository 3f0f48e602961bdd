"""netCDF 4 files with the dims and names of a forecast store, by the CF conventions."""

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import google_crc32c
import netCDF4
import numpy as np

from jigsaw_forecast.errors import OutputError
from jigsaw_forecast.fields import Field
from jigsaw_forecast.forecast.cf import (
    coordinates,
    global_attributes,
    variable_attributes,
    variable_dims,
)
from jigsaw_forecast.forecast.product import Maps, Mark, OutputSpec, Payload, Slot, Writer
from jigsaw_forecast.forecast.staging import PARTIAL_SUFFIX, remove_if_possible, reported
from jigsaw_forecast.state import State

COMPRESSION_LEVEL: Final = 1  # zlib; higher levels cost much time for a few per cent


class NetcdfWriter(Writer):
    """Writes one netCDF file; one process writes all of it.

    Values are float32, shuffled, deflated and sealed with a Fletcher-32 checksum, one map a
    chunk. What is not written reads as NaN.
    """

    _dataset: netCDF4.Dataset | None = None

    def _open(self) -> None:
        self._checksums: dict[Slot, int] = {}  # of lead times that are written but not marked
        if self._staging is not None:
            # RuntimeError is how netCDF4 reports a failure inside of HDF5
            with reported(self.path, RuntimeError):
                path = self._staging.partial
                new = self._copy_of(path) if self.goes_on else _new_dataset(path, self.spec)
                self._dataset = new

    @classmethod
    def side_paths(cls, path: Path) -> tuple[Path, ...]:
        """See `Writer.side_paths`: the copy that a resumed run makes first."""
        return (_copy_path(path.with_name(path.name + PARTIAL_SUFFIX)),)

    @classmethod
    def recover(cls, partial: Path, spec: OutputSpec, marks: Mapping[Slot, Mark]) -> list[Slot]:
        """See `Writer.recover`: all that is marked is read and its checksum computed again.

        HDF5 does not promise that a file whose writer was killed can be read, and a damaged index
        reads as values that were never written.
        """
        whole: list[Slot] = []
        # RuntimeError is how netCDF4 reports a failure inside of HDF5
        try:
            with netCDF4.Dataset(partial, "r") as old:
                for slot, mark in marks.items():
                    maps = _read_slot(old, spec, slot)
                    if _checksum(values.data for values in maps) != mark["crc32c"]:
                        break
                    whole.append(slot)
        except (OSError, RuntimeError, KeyError, IndexError):
            return whole
        return whole

    def _copy_of(self, partial: Path) -> netCDF4.Dataset:
        """A new file under the same name with the lead times that are done.

        It is made, and stays open, as an uninterrupted run makes it, so that it ends the same.
        """
        fresh = _copy_path(partial)
        try:
            dataset = _new_dataset(fresh, self.spec)
            with netCDF4.Dataset(partial, "r") as old:
                for slot in self._done:
                    maps = _read_slot(old, self.spec, slot)
                    for field, values in zip(self.spec.fields, maps, strict=True):
                        name, place = _place(self.spec, field, slot)
                        dataset[name][place] = values
                    dataset.sync()
            os.replace(fresh, partial)
        except BaseException:
            remove_if_possible(fresh)
            raise
        return dataset

    def _encode(self, states: State, maps: Maps, slot: Slot) -> Payload:
        numbers = [self.spec.fields.index(field) for field in states.fields]
        return [
            (number, memoryview(values).cast("B"))
            for number, values in zip(numbers, maps, strict=True)
        ]

    def _append(self, slot: Slot, payload: Payload) -> None:
        assert self._dataset is not None, "only the creator writes a netCDF file"
        shape = (self.spec.grid.num_lat, self.spec.grid.num_lon)
        before = self._checksums.get(slot, 0)
        self._checksums[slot] = _checksum((content for _, content in payload), before)
        with reported(self.path, RuntimeError):
            for number, content in payload:
                values = np.frombuffer(content, np.float32).reshape(shape)
                name, place = _place(self.spec, self.spec.fields[number], slot)
                self._dataset[name][place] = values
            self._dataset.sync()  # after each, as `_copy_of` does: HDF5 places chunks at a sync

    def _mark(self, slot: Slot) -> Mark:
        self._count()
        return {"crc32c": self._checksums.pop(slot)}

    def _close(self) -> None:
        dataset, self._dataset = self._dataset, None
        if dataset is None:
            return
        try:
            with reported(self.path, RuntimeError):
                dataset.close()
        except OutputError:
            with suppress(RuntimeError, OSError):
                dataset.close()
            raise
        self._count()

    def _count(self) -> None:
        assert self._staging is not None
        with reported(self.path):
            self.bytes_written = self._staging.partial.stat().st_size


def _copy_path(partial: Path) -> Path:
    return partial.with_name(f".{partial.name}.copy")


def _new_dataset(path: Path, spec: OutputSpec) -> netCDF4.Dataset:
    """A new file with its dims, coordinates and variables, all values missing."""
    dataset = netCDF4.Dataset(path, "w", format="NETCDF4")
    dataset.setncatts(global_attributes(spec))
    axes = coordinates(spec)
    for axis in axes:
        dataset.createDimension(axis.name, axis.values.size)
        variable = dataset.createVariable(axis.name, axis.values.dtype, (axis.name,))
        variable.setncatts(axis.attributes)
        variable[:] = axis.values
    valid = dataset.createVariable("valid_time", np.int64, ("time", "prediction_timedelta"))
    lead_axis = next(axis for axis in axes if axis.name == "prediction_timedelta")
    units = axes[0].attributes["units"]
    valid.setncatts({**axes[0].attributes, "standard_name": "time", "long_name": "valid time"})
    lead = lead_axis.values if units.startswith("hours") else lead_axis.values * 3600
    valid[:] = axes[0].values[:, None] + lead[None, :]
    sizes = {axis.name: axis.values.size for axis in axes}
    for name in spec.variables:
        dims = variable_dims(spec, name)
        variable = dataset.createVariable(
            name,
            "f4",
            dims,
            compression="zlib",
            complevel=COMPRESSION_LEVEL,
            shuffle=True,
            fletcher32=True,
            chunksizes=[sizes[d] if d in ("latitude", "longitude") else 1 for d in dims],
            fill_value=float("nan"),
        )
        variable.setncatts({**variable_attributes(name), "coordinates": "valid_time"})
    dataset.sync()
    return dataset


def _place(spec: OutputSpec, field: Field, slot: Slot) -> tuple[str, tuple[int, ...]]:
    """The variable that holds a field, and where."""
    level = (spec.levels_hpa.index(field.level_hpa),) if field.level_hpa else ()
    return field.variable, (*spec.row(slot), *level)


def _checksum(maps: Iterable[bytes | memoryview], checksum: int = 0) -> int:
    """Of the values of a lead time, in the order of the fields; goes on from those before."""
    for content in maps:
        checksum = google_crc32c.extend(checksum, np.frombuffer(content, np.uint8))
    return checksum


def _read_slot(dataset: netCDF4.Dataset, spec: OutputSpec, slot: Slot) -> list[Maps]:
    """All maps of a lead time, in the order of the fields."""
    dataset.set_auto_mask(False)
    places = [_place(spec, field, slot) for field in spec.fields]
    return [np.ascontiguousarray(dataset[name][place]) for name, place in places]
