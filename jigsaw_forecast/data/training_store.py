"""The training set on disk, made by `data convert`: its format, and reading pieces of it fast."""

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from jigsaw_forecast.data.field_moments import FieldMoments
from jigsaw_forecast.data.shards import (
    EMPTY,
    ShardLayout,
    ShardReader,
    Stretch,
    decode_chunk,
    find_stretches,
    shard_name,
)
from jigsaw_forecast.data.store import Array, Finish, Indices, ReadThreads, Store, shorten
from jigsaw_forecast.errors import DataError
from jigsaw_forecast.fields import Field
from jigsaw_forecast.grid import Grid
from jigsaw_forecast.model.config import field_from_name

FORMAT = "jigsaw-forecast training set"
FORMAT_VERSION = 1  # a reader refuses every other version
VALUES = "values"
MOMENTS = "moments"
CHECKSUM = "checksum"  # among the moments: crc32c of each map
PARTIAL_SUFFIX = ".partial"
PROGRESS_FOLDER = "progress"  # within the partial store: a file for each shard that is done
MAX_STRETCH_BYTES = 1 << 22  # large enough for a disk's full rate, small enough for many threads
MAX_OPEN_SHARDS = 64
TIME_UNITS = "minutes since 1970-01-01"


@dataclass(frozen=True)
class TrainingSetHeader:
    """What the root's attributes say.

    Attributes:
        grid: The grid, with the rows that are left out.
        fields: Fields in the order of the array.
        layout: Of its shards.
        num_times: Times in all.
        step_hours: Span of the tendencies among the moments.
        digest: Of all values, fields and times.
        notice: What must be said wherever something made from this data is shown.
        sources: What it was made from.
    """

    grid: Grid
    fields: tuple[Field, ...]
    layout: ShardLayout
    num_times: int
    step_hours: int
    digest: str
    notice: str
    sources: tuple[str, ...]

    @property
    def num_shards(self) -> int:
        """Shards in all; the last may hold fewer times."""
        return -(-self.num_times // self.layout.num_times)

    def to_attributes(self) -> dict[str, Any]:
        """The attributes of the root."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "grid": self.grid.name,
            "fields": [field.short_name for field in self.fields],
            "num_times": self.num_times,
            "times_per_shard": self.layout.num_times,
            "num_bands": self.layout.num_bands,
            "band_rows": self.layout.band_rows,
            "codec": self.layout.codec,
            "step_hours": self.step_hours,
            "digest": self.digest,
            "notice": self.notice,
            "sources": list(self.sources),
        }

    @classmethod
    def from_attributes(cls, path: Path, attributes: Mapping[str, Any]) -> "TrainingSetHeader":
        """The header whose `to_attributes` gave these.

        Raises:
            DataError: They are another version's or incomplete.
        """
        version = attributes.get("format_version")
        if version != FORMAT_VERSION:
            raise DataError(
                f"{path}: training set of format version {version}, this program reads "
                f"{FORMAT_VERSION}; convert the data again"
            )
        try:
            grid = Grid.parse(attributes["grid"])
            layout = ShardLayout(
                num_times=attributes["times_per_shard"],
                num_fields=len(attributes["fields"]),
                num_bands=attributes["num_bands"],
                band_rows=attributes["band_rows"],
                num_lon=grid.num_lon,
                codec=attributes["codec"],
            )
            return cls(
                grid=grid,
                fields=tuple(field_from_name(name) for name in attributes["fields"]),
                layout=layout,
                num_times=attributes["num_times"],
                step_hours=attributes["step_hours"],
                digest=attributes["digest"],
                notice=attributes["notice"],
                sources=tuple(attributes["sources"]),
            )
        except KeyError as error:
            raise DataError(f"{path}: missing attribute {error}: not a whole header") from None


class TrainingStore(Store):
    """A training set on disk; threads decode the chunks of a read side by side.

    Bands and fields that are not asked for are not read: a rank of P reads 1/P of a sample where
    its rows are whole bands, and the index of each shard (16 bytes a chunk).

    Attributes:
        header: What the store says of itself.
    """

    def __init__(
        self, path: Path, fields: Sequence[Field] = (), num_threads: int | None = None
    ) -> None:
        """Opens a training set and checks that it is whole and holds these fields.

        Args:
            path: The store.
            fields: What must be there.
            num_threads: Threads that read and decode; by default this rank's share of the cores.

        Raises:
            DataError: It is no training set, not finished, lacks shards or fields; all listed.
        """
        self.path = path
        attributes = read_attributes(path)
        if attributes is None or attributes.get("format") != FORMAT:
            raise DataError(f"{path} is no training set of `data convert`")
        self.header = TrainingSetHeader.from_attributes(path, attributes)
        self.grid, self.notice = self.header.grid, self.header.notice
        self._group = zarr.open_group(path, mode="r", use_consolidated=False)
        minutes = np.asarray(self._array("time")[:])
        self.times = minutes.astype("datetime64[m]").astype("datetime64[s]")
        self._places = {field: place for place, field in enumerate(self.header.fields)}
        problems = self._problems(fields)
        if problems:
            raise DataError(f"{path}: {'; '.join(problems)}")
        self._threads = ReadThreads(num_threads)
        self._lock = threading.Lock()
        self._open: OrderedDict[int, ShardReader] = OrderedDict()
        self._disk_bytes_read = 0

    @property
    def num_rows(self) -> int:
        """Rows held: those that a model computes."""
        return self.header.layout.num_rows

    @property
    def digest(self) -> str:
        """Of all values, fields and times, made as they were written."""
        return self.header.digest

    @property
    def disk_bytes_read(self) -> int:
        """Compressed bytes and indexes taken from shards so far."""
        return self._disk_bytes_read

    def static(self, name: str) -> Array:
        """A variable without time, shape [rows held, X], north to south."""
        if name not in self._group:
            raise DataError(f"{self.path}: missing static variable {name}")
        return np.asarray(self._array(name)[:], dtype=np.float32)

    def moments(self) -> FieldMoments:
        """The moments of every field at every time, as stored beside the values.

        Raises:
            DataError: They are of another data set, or not there.
        """
        names = FieldMoments.empty(0, 0).to_arrays()
        return FieldMoments(**{name: self._beside(name) for name in names})

    def checksums(self) -> npt.NDArray[np.uint32]:
        """Checksum of every map as it was converted, shape [T, F]; errors as `moments`."""
        return np.asarray(self._beside(CHECKSUM), dtype=np.uint32)

    def _beside(self, name: str) -> Any:
        """An array of the moments' group, of this data set."""
        group = self._group.get(MOMENTS)
        if not isinstance(group, zarr.Group):
            raise DataError(f"{self.path}: missing {MOMENTS}; convert the data again")
        found = group.attrs.get("digest")
        if found != self.digest:
            raise DataError(
                f"{self.path}/{MOMENTS} are of another data set: digest {found}, expected "
                f"{self.digest}; convert the data again"
            )
        return np.asarray(self._array(f"{MOMENTS}/{name}")[:])

    def read_into(
        self,
        out: Array,
        indices: Indices,
        fields: Sequence[Field],
        rows: slice,
        finish: Finish | None = None,
    ) -> None:
        """Reads values as `Store.read_into` says; they were checked when they were converted.

        Raises:
            DataError: Shards are missing, torn or damaged; lists the maps.
        """
        if not out.size:
            return
        layout = self.header.layout
        first, last, _ = rows.indices(layout.num_rows)
        read = _Read(out, [self._places[field] for field in fields], first, last, layout, finish)
        bands = range(first // layout.band_rows, -(-last // layout.band_rows))
        by_shard: dict[int, dict[int, list[int]]] = {}
        for place, index in enumerate(indices.tolist()):
            shard, time = divmod(index, layout.num_times)
            by_shard.setdefault(shard, {}).setdefault(time, []).append(place)
        jobs = []
        for shard, times in by_shard.items():
            reader = self._reader(shard)
            wanted = [(t, f, b) for t in times for f in read.fields for b in bands]
            self._check_there(reader, shard, wanted)
            for stretch in find_stretches(reader.index, wanted, MAX_STRETCH_BYTES):
                jobs.append(
                    (shard, stretch, self._threads.submit(read.take, reader, stretch, times))
                )
        damaged = []
        for shard, stretch, job in jobs:
            damaged += [self._name(shard, place) for place in job.result()]
            self._disk_bytes_read += stretch.num_bytes
        if damaged:
            raise DataError(
                f"{self.path}: damaged chunks, whose checksums differ: {shorten(damaged)}; restore "
                "them from a copy, or convert the data again"
            )
        self.bytes_read += out.nbytes

    def _problems(self, fields: Sequence[Field]) -> list[str]:
        problems = []
        missing = [str(field) for field in fields if field not in self._places]
        if missing:
            held = ", ".join(map(str, self.header.fields))
            problems.append(f"missing fields: {', '.join(missing)}; it holds {held}")
        if len(self.times) != self.header.num_times:
            problems.append(f"it holds {len(self.times)} times, expected {self.header.num_times}")
        there = set(os.listdir(self.path / VALUES)) if (self.path / VALUES).is_dir() else set()
        shards = [n for n in range(self.header.num_shards) if shard_name(n) not in there]
        if shards:
            per_shard = self.header.layout.num_times
            gone = [f"{self.times[n * per_shard]} ({VALUES}/{shard_name(n)})" for n in shards]
            problems.append(
                f"missing {len(shards)} of {self.header.num_shards} shards, from {shorten(gone)}; "
                "restore them from a copy, or convert the data again"
            )
        return problems

    def _array(self, name: str) -> Any:
        return self._group[name]

    def _reader(self, shard: int) -> ShardReader:
        """The open shard; those used last stay open."""
        with self._lock:
            reader = self._open.pop(shard, None)
            if reader is None:
                path = self.path / VALUES / shard_name(shard)
                reader = ShardReader(path, self.header.layout)
                self._disk_bytes_read += self.header.layout.index_bytes
            self._open[shard] = reader
            if len(self._open) > MAX_OPEN_SHARDS:
                self._open.popitem(last=False)
            return reader

    def _check_there(
        self, reader: ShardReader, shard: int, wanted: Sequence[tuple[int, int, int]]
    ) -> None:
        gone = [self._name(shard, p) for p in wanted if reader.index[p][0] == EMPTY]
        if gone:
            raise DataError(f"{reader.path}: missing chunks: {shorten(gone)}; convert it again")

    def _name(self, shard: int, place: tuple[int, int, int]) -> str:
        """`z500 at 2020-01-01T06:00:00 rows 45 to 89`."""
        time, field, band = place
        rows = self.header.layout.band_rows
        when = self.times[shard * self.header.layout.num_times + time]
        return (
            f"{self.header.fields[field]} at {when} rows {band * rows} to {band * rows + rows - 1}"
        )


class _Read:
    """Where the chunks of one read go; threads share it, each writes its own part."""

    def __init__(
        self,
        out: Array,
        fields: Sequence[int],
        first_row: int,
        last_row: int,
        layout: ShardLayout,
        finish: Finish | None,
    ) -> None:
        self.fields = list(dict.fromkeys(fields))
        self._out = out
        self._targets = {f: [p for p, g in enumerate(fields) if g == f] for f in self.fields}
        self._first, self._last = first_row, last_row
        self._layout = layout
        self._finish = finish

    def take(
        self, reader: ShardReader, stretch: Stretch, times: Mapping[int, Sequence[int]]
    ) -> list[tuple[int, int, int]]:
        """Reads a stretch and puts its chunks where they go; returns those that are damaged."""
        content = reader.read(stretch.offset, stretch.num_bytes)
        damaged = []
        for place, offset, length in stretch.chunks:
            time, field, band = place
            whole = slice(band * self._layout.band_rows, (band + 1) * self._layout.band_rows)
            kept = slice(max(whole.start, self._first), min(whole.stop, self._last))
            rows = slice(kept.start - self._first, kept.stop - self._first)
            targets = [(t, f) for t in times[time] for f in self._targets[field]]
            target = self._out[targets[0]][rows]
            values = target
            if kept != whole or not target.flags.c_contiguous:
                values = np.empty((self._layout.band_rows, self._layout.num_lon), np.float32)
            if not decode_chunk(content[offset : offset + length], values):
                damaged.append(place)
                continue
            if values is not target:
                target[...] = values[kept.start - whole.start : kept.stop - whole.start]
            for other in targets[1:]:
                self._out[other][rows] = target
            if self._finish is not None:
                for t, f in targets:
                    self._finish(f, rows, self._out[t, f, rows])
        return damaged


def read_attributes(path: Path) -> dict[str, Any] | None:
    """Attributes of the root of a zarr version 3 store, None where it is none."""
    try:
        root = json.loads((path / "zarr.json").read_bytes())
    except (OSError, ValueError):
        return None
    attributes = root.get("attributes") if isinstance(root, dict) else None
    return attributes if isinstance(attributes, dict) else None
