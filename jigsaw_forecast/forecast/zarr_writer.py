"""Forecast stores: zarr v3 in the by-init layout of WeatherBench 2, written map by map.

zarr makes the store and its metadata; chunks are written as zarr would write them, without it.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import google_crc32c
import numpy as np
import zarr
from numcodecs import blosc
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
from jigsaw_forecast.forecast.encoders import num_encoders
from jigsaw_forecast.forecast.product import Maps, Mark, OutputSpec, Payload, Slot, Unit, Writer
from jigsaw_forecast.forecast.staging import PARTIAL_SUFFIX, reported
from jigsaw_forecast.state import State

FINISHED_ATTRIBUTE = "finished_lead_times"
FINEST_WHOLE_COLUMN_DEGREES = 1.0  # design.md section 5: one map a chunk at 1 degree and finer
CHECKSUM_BYTES = 4  # crc32c at the end of each chunk, little endian
# Measured at 0.25 degrees, one core: 730 MB/s to 0.62 of the size, zstd level 3 270 MB/s to 0.58.
CODEC, LEVEL, FLOAT_BYTES = "lz4", 5, 4
COMPRESSOR = BloscCodec(cname=CODEC, clevel=LEVEL, shuffle="shuffle", typesize=FLOAT_BYTES)  # type: ignore[arg-type]
AUTOMATIC = 0  # blosc chooses the size of its blocks, as zarr lets it


class ZarrWriter(Writer):
    """Writes a forecast store; several processes may, each its own units, which are whole chunks.

    Chunks hold one initial time, one member, one lead time and one map at 1 degree and finer, all
    levels of a variable on coarser grids. Each is compressed without loss and sealed with a
    crc32c. What is not written reads as NaN; an attribute of the finished store tells it from NaN
    that was written.
    """

    is_open_on_all_ranks = True

    def _open(self) -> None:
        self._partial = self.path.with_name(self.path.name + PARTIAL_SUFFIX)
        self._store = _CountingStore(self._partial)
        self._num_chunk_bytes = 0
        self._pool = ThreadPoolExecutor(num_encoders(), "zarr")
        with reported(self.path), _quiet_consolidation():
            if self.is_creator and not self.goes_on:
                self._group = zarr.create_group(
                    self._store, zarr_format=3, attributes=global_attributes(self.spec)
                )
                self._create_coordinates()
                self._create_variables()
                zarr.consolidate_metadata(self._store)
            else:
                self._group = zarr.open_group(self._store, mode="r+", use_consolidated=False)
        self._count()

    @classmethod
    def recover(cls, partial: Path, spec: OutputSpec, marks: Mapping[Slot, Mark]) -> list[Slot]:
        """See `Writer.recover`: the checksum of every chunk that is marked is computed again."""
        for left in partial.rglob("*.partial"):
            left.unlink()  # a chunk or metadata that was being written
        whole: list[Slot] = []
        for slot in marks:
            row = spec.row(slot)
            paths = dict.fromkeys(_chunk_path(partial, spec, row, field) for field in spec.fields)
            if not all(map(_has_checksum, paths)):
                break
            whole.append(slot)
        return whole

    @classmethod
    def units_of(cls, spec: OutputSpec) -> list[Unit]:
        """Single maps at 1 degree and finer, else all levels of a variable."""
        if _has_single_map_chunks(spec):
            return [(field,) for field in spec.fields]
        return [
            tuple(field for field in spec.fields if field.variable == variable)
            for variable in spec.variables
        ]

    def _encode(self, states: State, maps: Maps, slot: Slot) -> Payload:
        row = self.spec.row(slot)
        held = {field: maps[index] for index, field in enumerate(states.fields)}
        units = [unit for unit in self.units() if unit[0] in held]

        def write(unit: Unit) -> int:
            path = _chunk_path(self._partial, self.spec, row, unit[0])
            return _write_chunk(path, self._make_chunk(unit, held))

        with reported(self.path):
            self._num_chunk_bytes += sum(self._map(write, units))
        self._count()
        return []

    def _map(self, write: Callable[[Unit], int], units: list[Unit]) -> Iterable[int]:
        # a pool of one thread would only take turns with this one
        return map(write, units) if num_encoders() == 1 else self._pool.map(write, units)

    def _make_chunk(self, unit: Unit, held: dict[Field, Maps]) -> Maps:
        """The values of the chunk that holds a unit."""
        if not unit[0].level_hpa or _has_single_map_chunks(self.spec):
            return held[unit[0]]
        shape = (len(self.spec.levels_hpa), self.spec.grid.num_lat, self.spec.grid.num_lon)
        column = np.full(shape, np.nan, dtype=np.float32)
        for field in unit:
            column[self.spec.levels_hpa.index(field.level_hpa)] = held[field]
        return column

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
        one_per_chunk = {"time", "number", "prediction_timedelta"}
        if _has_single_map_chunks(self.spec):
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
                # plain checksums in blosc miss flipped bits: design.md section 6
                compressors=[COMPRESSOR, Crc32cCodec()],
                attributes=dict(variable_attributes(variable)),
            )

    def _finished(self) -> list[list[str | int]]:
        return [
            [str(slot.init_time), slot.lead_hours, *([] if slot.member is None else [slot.member])]
            for slot in self.spec.slots
            if slot in self._done
        ]

    def _seal(self) -> None:
        with reported(self.path), _quiet_consolidation():
            self._group.attrs[FINISHED_ATTRIBUTE] = self._finished()
            zarr.consolidate_metadata(self._store)
        self._count()

    def _close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._store.close()

    def _count(self) -> None:
        self.bytes_written = self._store.num_bytes_set + self._num_chunk_bytes


class _CountingStore(LocalStore):
    """A folder that counts the bytes put into it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.num_bytes_set = 0

    async def set(self, key: str, value: Buffer) -> None:
        await super().set(key, value)
        self.num_bytes_set += len(value)


def _has_single_map_chunks(spec: OutputSpec) -> bool:
    return 360.0 / spec.grid.num_lon <= FINEST_WHOLE_COLUMN_DEGREES


def _chunk_path(store: Path, spec: OutputSpec, row: tuple[int, ...], field: Field) -> Path:
    """The file of the chunk that holds a field at a row, as zarr names it."""
    place = [*row]
    if field.level_hpa:
        has_own_chunk = _has_single_map_chunks(spec)
        place.append(spec.levels_hpa.index(field.level_hpa) if has_own_chunk else 0)
    return store / field.variable / "c" / "/".join(map(str, [*place, 0, 0]))


def _write_chunk(path: Path, values: Maps) -> int:
    """Writes a chunk as zarr would, to the last bit, and returns its bytes.

    zarr takes a third longer on one core: its event loop, threads and copies, and a look for
    values that are all fill values (benchmarks/output_pipeline.py). A chunk that is cut off by a
    kill has no valid checksum and belongs to a lead time that is not marked as done.
    """
    packed = blosc.compress(
        np.ascontiguousarray(values), CODEC.encode(), LEVEL, blosc.SHUFFLE, AUTOMATIC, FLOAT_BYTES
    )
    checksum = google_crc32c.value(packed).to_bytes(CHECKSUM_BYTES, "little")
    try:
        file = path.open("wb")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("wb")
    with file:
        file.write(packed)
        file.write(checksum)
    return len(packed) + len(checksum)


def _has_checksum(chunk: Path) -> bool:
    try:
        content = chunk.read_bytes()
    except FileNotFoundError:
        return False
    body, end = content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:]
    return len(end) == CHECKSUM_BYTES and int.from_bytes(end, "little") == google_crc32c.value(body)


@contextmanager
def _quiet_consolidation() -> Iterator[None]:
    # consolidated metadata is an extension of zarr v3 that xarray reads; zarr warns of it
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        yield
