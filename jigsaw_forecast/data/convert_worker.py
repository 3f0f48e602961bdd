"""The part of `data convert` that a worker does: shards of one run of times, one after the other.

Imported by processes of their own: nothing here needs torch, whose import takes seconds.
"""

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import numpy.typing as npt

from jigsaw_forecast.data.bad_maps import describe_bad_maps
from jigsaw_forecast.data.convert_input import ConvertInput
from jigsaw_forecast.data.field_moments import FieldMoments, MapMoments
from jigsaw_forecast.data.shards import (
    ShardBuffer,
    ShardLayout,
    map_checksum,
    shard_name,
)
from jigsaw_forecast.data.store import Array, Times
from jigsaw_forecast.data.training_store import CHECKSUM, PROGRESS_FOLDER, VALUES
from jigsaw_forecast.errors import DataError, OutputError, StoppedError
from jigsaw_forecast.grid import area_weights
from jigsaw_forecast.parallel.workers import end_with_parent

READ_BYTES = 1 << 28  # of source values that a worker reads at once, where more than a shard


@dataclass(frozen=True)
class Work:
    """What every worker knows.

    Attributes:
        source: The inputs.
        folder: The partial store.
        layout: Of its shards.
        times: All times of the training set.
        step: Span of a tendency.
    """

    source: ConvertInput
    folder: Path
    layout: ShardLayout
    times: Times
    step: np.timedelta64

    def shard_times(self, shard: int) -> Times:
        """The times of a shard."""
        size = self.layout.num_times
        return self.times[shard * size : (shard + 1) * size]

    def progress_file(self, shard: int) -> Path:
        """The file that says that a shard is done, and what its moments are."""
        return self.folder / PROGRESS_FOLDER / f"{shard}.npz"


def sample_bytes(layout: ShardLayout) -> int:
    """Bytes of one time in float32."""
    return layout.num_fields * layout.num_rows * layout.num_lon * 4


def worker_bytes(work: Work) -> int:
    """The most that a worker holds: the buffers of `_read_shards`, and the chunks of a shard.

    Of a store at 0.25 degrees with 69 fields 1.2 GB; benchmarks/data_convert.py measures.
    """
    sample = sample_bytes(work.layout)
    num_read = work.layout.num_times * _shards_per_read(work)
    # chunks at worst not compressed, and a variable of the source where it is not read in place
    return sample * (num_read * _num_buffers(work) + work.layout.num_times) + sample // 4


def _num_buffers(work: Work) -> int:
    """Buffers filled in turn: one read ahead, one encoded, and those of the step before."""
    interval = np.diff(work.times).min() if len(work.times) > 1 else work.step
    num_earlier = max(int(work.step // interval), 1)
    num_read = work.layout.num_times * _shards_per_read(work)
    return -(-num_earlier // num_read) + 2


def _shards_per_read(work: Work) -> int:
    """Shards whose times are read together: more than one where the source's chunks are longer."""
    shard_bytes = work.layout.num_times * sample_bytes(work.layout)
    wanted = -(-work.source.times_per_chunk // work.layout.num_times)
    return max(1, min(wanted, READ_BYTES // shard_bytes))


_work: Work | None = None
_stop: Event | None = None


def start_worker(work: Work, stop: Event) -> None:
    """Prepares a process: it ends with its parent, and leaves signals of the terminal to it."""
    global _work, _stop  # a pool hands a worker its state in no other way
    _work, _stop = work, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()


def convert_run_in_worker(shards: list[int]) -> int:
    """`convert_run` with what `start_worker` was given."""
    assert _work is not None
    assert _stop is not None
    return convert_run(_work, shards, _stop)


def convert_run(
    work: Work,
    shards: list[int],
    stop: Event | None = None,
    advance: Callable[[int], object] | None = None,
) -> int:
    """Converts some shards, ascending, and returns how many.

    Args:
        work: What every worker knows.
        shards: Their numbers.
        stop: Set where the work is to end after the shard in hand.
        advance: Called with 1 after each shard.

    Raises:
        DataError: Values are missing or implausible; lists the maps.
        OutputError: The store cannot be written.
        StoppedError: The event was set.
    """
    earlier = _Earlier(work)
    buffer = ShardBuffer(work.layout)
    for shard, values in _read_shards(work, shards):
        if stop is not None and stop.is_set():
            raise StoppedError("stopped between two shards")
        times = work.shard_times(shard)
        moments = FieldMoments.empty(len(times), work.layout.num_fields)
        checksums = np.zeros((len(times), work.layout.num_fields), dtype=np.uint32)
        for place, now in enumerate(times):
            # infinite values are refused below, all of a shard's at once
            with np.errstate(invalid="ignore", over="ignore"):
                before = earlier.at(now)
                checksums[place] = _encode_time(work, place, values[place], before, moments, buffer)
            earlier.keep(now, values[place])
        _check(work, times, moments)
        try:
            path = work.folder / VALUES / shard_name(shard)
            num_bytes = buffer.write(path)
            _save_progress(work, shard, moments, checksums, num_bytes)
        except OSError as error:
            raise OutputError(
                f"cannot write {work.folder}: {error.strerror}; free some space, then run the same "
                "command again to go on"
            ) from None
        if advance is not None:
            advance(1)
    return len(shards)


def _read_shards(work: Work, shards: list[int]) -> Iterator[tuple[int, Array]]:
    """Shards and their values [T, F, source rows, X], read while the last ones are encoded.

    As many are read at once as the source's chunks want. Buffers are used again, because fresh
    memory would cost a page fault for each 4 KB of every sample.
    """
    layout, at_once = work.layout, _shards_per_read(work)
    num_rows = work.source.num_rows
    shape = (layout.num_times * at_once, layout.num_fields, num_rows, layout.num_lon)
    buffers = [np.empty(shape, dtype=np.float32) for _ in range(_num_buffers(work))]
    blocks = [shards[start : start + at_once] for start in range(0, len(shards), at_once)]

    def read(number: int) -> Array:
        times = np.concatenate([work.shard_times(shard) for shard in blocks[number]])
        values = buffers[number % len(buffers)][: len(times)]
        work.source.read_into(values, times)
        return values

    with ThreadPoolExecutor(1) as ahead:
        reading = ahead.submit(read, 0)
        for number, block in enumerate(blocks):
            values = reading.result()
            if number + 1 < len(blocks):
                reading = ahead.submit(read, number + 1)
            first = 0
            for shard in block:
                num_times = len(work.shard_times(shard))
                yield shard, values[first : first + num_times]
                first += num_times


class _Earlier:
    """The values one step before, kept from earlier shards or read again."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._kept: dict[np.datetime64, Array] = {}

    def at(self, time: np.datetime64) -> Array | None:
        """Values one step before a time, None where the set has none."""
        wanted = time - self._work.step
        found = self._kept.pop(wanted, None)
        if found is None and wanted in self._work.times:
            layout = self._work.layout
            shape = (1, layout.num_fields, self._work.source.num_rows, layout.num_lon)
            again = np.empty(shape, dtype=np.float32)
            self._work.source.read_into(again, np.array([wanted]))
            found = again[0]
        for old in [held for held in self._kept if held < wanted]:
            del self._kept[old]
        return found

    def keep(self, time: np.datetime64, values: Array) -> None:
        """Keeps values where a later time will want them."""
        if time + self._work.step in self._work.times:
            self._kept[time] = values


def _encode_time(
    work: Work,
    time: int,
    values: Array,
    earlier: Array | None,
    moments: FieldMoments,
    buffer: ShardBuffer,
) -> list[int]:
    """Moments and chunks of one time; each band is taken while it is in the cache.

    Returns the checksum of each field's map.
    """
    layout, grid = work.layout, work.source.grid
    weights = area_weights(grid.latitudes)[: layout.num_rows]
    weights = weights / weights.mean()
    scratch = np.empty((layout.band_rows, layout.num_lon), dtype=np.float32)
    gathered = [MapMoments(weights, scratch) for _ in range(layout.num_fields)]
    checksums = [0] * layout.num_fields
    for band, field in np.ndindex(layout.num_bands, layout.num_fields):
        rows = slice(band * layout.band_rows, (band + 1) * layout.band_rows)
        part = values[field, rows]
        gathered[field].add(part, rows, None if earlier is None else earlier[field, rows])
        buffer.add((time, field, band), part)
        checksums[field] = map_checksum(part, checksums[field])
    for field, found in enumerate(gathered):
        found.store(moments, time, field)
    return checksums


def _check(work: Work, times: Times, moments: FieldMoments) -> None:
    """Refuses maps that are not finite or not plausible."""
    bad = describe_bad_maps(work.source.fields, times, moments.minimum, moments.maximum)
    if bad:
        raise DataError(bad)


def _save_progress(
    work: Work,
    shard: int,
    moments: FieldMoments,
    checksums: npt.NDArray[np.uint32],
    num_bytes: int,
) -> None:
    path = work.progress_file(shard)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    arrays = {**moments.to_arrays(), CHECKSUM: checksums, "num_bytes": np.array(num_bytes)}
    with partial.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)  # type: ignore[arg-type]  # numpy's stub
    partial.rename(path)
