"""Forecast stores: zarr v3 in the by-init layout of WeatherBench 2, written map by map."""

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from jigsaw_forecast.fields import Field
from jigsaw_forecast.forecast.cf import (
    coordinates,
    global_attributes,
    variable_attributes,
    variable_dims,
)
from jigsaw_forecast.forecast.product import ONE_HOUR, Maps, Unit, Writer
from jigsaw_forecast.forecast.staging import PARTIAL_SUFFIX, reported
from jigsaw_forecast.state import State

PROGRESS_NAME = "progress.json"
FINISHED_ATTRIBUTE = "finished_lead_times"
FINEST_WHOLE_COLUMN_DEGREES = 1.0  # design.md section 5: one map a chunk at 1 degree and finer


class ZarrWriter(Writer):
    """Writes a forecast store; several processes may, each its own units, which are whole chunks.

    Chunks hold one initial time, one lead time and one map at 1 degree and finer, all levels of
    a variable on coarser grids. Each is compressed without loss and sealed with a crc32c. What
    is not written reads as NaN; `progress.json`, and in the end an attribute of the store, tells
    it from NaN that was written.
    """

    is_open_on_all_ranks = True

    def _open(self) -> None:
        self._partial = self.path.with_name(self.path.name + PARTIAL_SUFFIX)
        self._store = _CountingStore(self._partial)
        with reported(self.path), _quiet_consolidation():
            if self.is_creator:
                self._group = zarr.create_group(
                    self._store, zarr_format=3, attributes=global_attributes(self.spec)
                )
                self._create_coordinates()
                self._create_variables()
                zarr.consolidate_metadata(self._store)
                self._record_done()
            else:
                self._group = zarr.open_group(self._store, mode="r+", use_consolidated=False)
            self._arrays = {name: self._open_array(name) for name in self.spec.variables}
        self._count()

    def units(self) -> list[Unit]:
        """Single maps at 1 degree and finer, else all levels of a variable."""
        fields = self.spec.fields
        if self._has_single_map_chunks():
            return [(field,) for field in fields]
        return [
            tuple(field for field in fields if field.variable == variable)
            for variable in self.spec.variables
        ]

    def _write(self, states: State, maps: Maps) -> None:
        row = self._row_of(states)
        held = {field: maps[index] for index, field in enumerate(states.fields)}
        with reported(self.path):
            for unit in self.units():
                if unit[0] in held:
                    self._write_chunk(row, unit, held)
        self._count()

    def _write_chunk(self, row: tuple[int, int], unit: Unit, held: dict[Field, Maps]) -> None:
        array = self._arrays[unit[0].variable]
        if not unit[0].level_hpa:
            array[row] = held[unit[0]]
        elif self._has_single_map_chunks():
            array[(*row, self.spec.levels_hpa.index(unit[0].level_hpa))] = held[unit[0]]
        else:
            column = np.full(array.shape[2:], np.nan, dtype=np.float32)
            for field in unit:
                column[self.spec.levels_hpa.index(field.level_hpa)] = held[field]
            array[row] = column

    def _create_coordinates(self) -> None:
        for axis in coordinates(self.spec):
            array = self._group.create_array(
                axis.name,
                shape=axis.values.shape,
                chunks=axis.values.shape,
                dtype=axis.values.dtype,
                dimension_names=(axis.name,),
                compressors=[Crc32cCodec()],
                attributes=dict(axis.attributes),
                config={"write_empty_chunks": True},
            )
            array[:] = axis.values

    def _create_variables(self) -> None:
        sizes = {axis.name: axis.values.size for axis in coordinates(self.spec)}
        one_per_chunk = {"time", "prediction_timedelta"}
        if self._has_single_map_chunks():
            one_per_chunk.add("level")
        for variable in self.spec.variables:
            dims = variable_dims(self.spec, variable)
            self._group.create_array(
                variable,
                shape=tuple(sizes[dim] for dim in dims),
                chunks=tuple(1 if dim in one_per_chunk else sizes[dim] for dim in dims),
                dtype=np.float32,
                fill_value=np.nan,
                dimension_names=dims,
                # plain checksums in zstd miss flipped bits: design.md section 6
                compressors=[
                    BloscCodec(cname="zstd", clevel=3, shuffle="shuffle", typesize=4),
                    Crc32cCodec(),
                ],
                attributes=dict(variable_attributes(variable)),
            )

    def _open_array(self, variable: str) -> zarr.Array[Any]:
        array = self._group[variable]
        assert isinstance(array, zarr.Array)
        # a map that is NaN throughout is then told from one that was never written
        return array.with_config({"write_empty_chunks": True})

    def _has_single_map_chunks(self) -> bool:
        return 360.0 / self.spec.grid.num_lon <= FINEST_WHOLE_COLUMN_DEGREES

    def _row_of(self, states: State) -> tuple[int, int]:
        inits = [init.astype("datetime64[s]") for init in self.spec.init_times]
        return inits.index(states.init_time), self.spec.lead_hours.index(states.lead_hours)

    def _finished(self) -> list[list[str | int]]:
        return [[str(init), int(lead / ONE_HOUR)] for init, lead in sorted(self._done)]

    def _record_done(self) -> None:
        # written whole and made durable, so that a reader never sees half a record
        target = self._partial / PROGRESS_NAME
        fresh = target.with_suffix(".tmp")
        text = json.dumps({"finished": self._finished()}, indent=1)
        with reported(self.path):
            with fresh.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, target)

    def _seal(self) -> None:
        with reported(self.path), _quiet_consolidation():
            self._group.attrs[FINISHED_ATTRIBUTE] = self._finished()
            (self._partial / PROGRESS_NAME).unlink()
            zarr.consolidate_metadata(self._store)
        self._count()

    def _close(self) -> None:
        self._store.close()

    def _count(self) -> None:
        self.bytes_written = self._store.num_bytes_set


class _CountingStore(LocalStore):
    """A folder that counts the bytes put into it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.num_bytes_set = 0

    async def set(self, key: str, value: Buffer) -> None:
        await super().set(key, value)
        self.num_bytes_set += len(value)


@contextmanager
def _quiet_consolidation() -> Iterator[None]:
    # consolidated metadata is an extension of zarr v3 that xarray reads; zarr warns of it
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        warnings.filterwarnings("ignore", message="Object at progress")
        yield
