"""`data statistics`: makes a store's statistics again, in parallel, and compares them."""

import logging
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jigsaw_forecast.data.convert_fields import find_fields
from jigsaw_forecast.data.convert_finish import data_digest
from jigsaw_forecast.data.field_moments import FieldMoments, FieldSummary, PointMoments
from jigsaw_forecast.data.shards import map_checksum
from jigsaw_forecast.data.store import Array, Indices, Period, Store, shorten
from jigsaw_forecast.data.stores import open_store
from jigsaw_forecast.data.training_store import TrainingStore
from jigsaw_forecast.data.weather_store import WeatherStore
from jigsaw_forecast.errors import DataError, StoppedError
from jigsaw_forecast.fields import Field
from jigsaw_forecast.grid import area_weights
from jigsaw_forecast.log import Progress
from jigsaw_forecast.parallel.workers import end_with_parent

_log = logging.getLogger(__name__)

READ_BYTES = 1 << 28  # that a worker reads at once of chunks that hold several times
FIELDS_PER_TASK = 4  # of a training set; of other stores all levels of a variable, read together
# Rows are summed in float32 where moments are made, and in float64 here: relative to the field's
# deviation they agree to about 1e-6; a value that differs shows far above this.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class StatisticsRequest:
    """Which statistics to make.

    Attributes:
        store: Training set or WeatherBench-layout store.
        fields: Which; empty for all that it holds.
        num_diagnostics: How many of the last of them are predicted only.
        period: Which times; None for all.
        step_hours: Span of a tendency.
        output: File for the statistics that training normalises with, None for no file.
        num_processes: Workers.
    """

    store: Path
    fields: tuple[Field, ...] = ()
    num_diagnostics: int = 0
    period: Period | None = None
    step_hours: int = 6
    output: Path | None = None
    num_processes: int = 1


@dataclass(frozen=True)
class StatisticsReport:
    """What was found.

    Attributes:
        store: The store.
        digest: Of the data set, made again where it is a training set.
        num_times: Times that it is about.
        fields: Their fields.
        summary: Over times and area.
        minimum: Smallest value of each field.
        maximum: Largest value of each field.
        problems: What differs from what is stored; empty where all agrees.
    """

    store: Path
    digest: str
    num_times: int
    fields: tuple[Field, ...]
    summary: FieldSummary
    minimum: Array
    maximum: Array
    problems: tuple[str, ...]

    def check(self) -> None:
        """Refuses a store whose own statistics or digest differ.

        Raises:
            DataError: Lists what differs.
        """
        if self.problems:
            raise DataError(f"{self.store}: {'; '.join(self.problems)}; convert the data again")

    def to_json(self) -> dict[str, Any]:
        """The report for `--json`."""
        columns = self._columns()
        return {
            "store": str(self.store),
            "digest": self.digest,
            "num_times": self.num_times,
            "fields": {
                str(field): {name: _plain(values[place]) for name, values in columns.items()}
                for place, field in enumerate(self.fields)
            },
            "problems": list(self.problems),
        }

    def to_text(self) -> str:
        """A table, one line a field."""
        columns = self._columns()
        lines = [f"{'field':>8}" + "".join(f"{name:>14}" for name in columns)]
        for place, field in enumerate(self.fields):
            values = "".join(f"{column[place]:14.6g}" for column in columns.values())
            lines.append(f"{field!s:>8}{values}  {field.spec.units}")
        return "\n".join(lines)

    def _columns(self) -> dict[str, Any]:
        summary = self.summary
        return {
            "mean": summary.mean,
            "std": summary.std,
            "tendency_std": summary.tendency_std,
            "min": self.minimum,
            "max": self.maximum,
        }


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


@dataclass(frozen=True)
class _Task:
    """Some fields of a store over all times of a period, read by one worker."""

    store: Path
    fields: tuple[Field, ...]
    indices: tuple[int, ...]
    step_s: int


@dataclass(frozen=True)
class _Part:
    """What a task finds: moments and checksums by time, and the points' means and deviations."""

    fields: tuple[Field, ...]
    moments: FieldMoments
    checksums: npt.NDArray[np.uint32]
    points: PointMoments


def compare_statistics(request: StatisticsRequest) -> StatisticsReport:
    """Reads all values of a period once, and compares with what the store says of them.

    A worker holds three maps in float64 for each of its fields, all levels of a variable or
    `FIELDS_PER_TASK`, and one time of them, or where chunks hold several, `READ_BYTES` of them.

    Raises:
        DataError: The store is wrong, or its values are missing, damaged or implausible.
        StoppedError: A worker was killed.
    """
    store = open_store(request.store, request.fields)
    request = replace(request, fields=request.fields or find_fields(request.store))
    store = open_store(request.store, request.fields)
    whole = np.arange(len(store.times))
    indices = whole if request.period is None else store.indices(request.period)
    parts = _run_tasks(request, store, indices)
    found = {field: (part, part.fields.index(field)) for part in parts for field in part.fields}
    ordered = [found[field] for field in request.fields]
    moments = _in_order(ordered)
    problems = []
    if isinstance(store, TrainingStore):
        problems = _compare_values(store, request, indices, ordered)
        problems += _compare(store, request, indices, moments)
    if request.output is not None and not problems:
        _save(request, store, indices, ordered)
    return StatisticsReport(
        store=request.store,
        digest=store.digest,
        num_times=len(indices),
        fields=request.fields,
        summary=moments.over_time(),
        minimum=moments.minimum.min(axis=0),
        maximum=moments.maximum.max(axis=0),
        problems=tuple(problems),
    )


def _run_tasks(request: StatisticsRequest, store: Store, indices: Indices) -> list[_Part]:
    """The parts in any order."""
    tasks = [
        _Task(request.store, fields, tuple(indices.tolist()), request.step_hours * 3600)
        for fields in _group(request.fields, store)
    ]
    parts: list[_Part] = []
    with Progress("reading for statistics", len(tasks), "groups of fields") as progress:
        if min(request.num_processes, len(tasks)) == 1:
            for task in tasks:
                parts.append(_read_task(task))
                progress.advance()
            return parts
        context = multiprocessing.get_context("spawn")
        stop = context.Event()
        pool = ProcessPoolExecutor(
            min(request.num_processes, len(tasks)), context, _start_worker, (stop,)
        )
        try:
            for done in as_completed([pool.submit(_read_task, task) for task in tasks]):
                parts.append(done.result())
                progress.advance()
        except BrokenProcessPool:
            raise StoppedError(
                "a worker was killed, perhaps for its memory; use fewer --processes"
            ) from None
        finally:
            stop.set()  # what one has found wrong is told now, not when the others have read all
            pool.shutdown(cancel_futures=True)
    return parts


def _group(fields: Sequence[Field], store: Store) -> list[tuple[Field, ...]]:
    """Fields that are read together."""
    if isinstance(store, TrainingStore):
        size = FIELDS_PER_TASK
        return [tuple(fields[start : start + size]) for start in range(0, len(fields), size)]
    variables = dict.fromkeys(field.variable for field in fields)
    return [tuple(field for field in fields if field.variable == name) for name in variables]


_stop: Event | None = None


def _start_worker(stop: Event) -> None:
    """Prepares a process: it ends with its parent, and leaves signals of the terminal to it."""
    global _stop  # a pool hands a worker its state in no other way
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def _read_blocks(store: Store, task: _Task, rows: slice) -> Iterator[tuple[int, Array]]:
    """Places of all times of a task and their values [F, Y, X], each chunk decoded once.

    Where a chunk's times take more than `READ_BYTES` it is decoded for every such part of it.

    Raises:
        StoppedError: Another worker has failed.
    """
    per_chunk = store.times_per_chunk if isinstance(store, WeatherStore) else 1
    sample_bytes = len(task.fields) * (rows.stop - rows.start) * store.grid.num_lon * 4
    most = max(1, min(per_chunk, READ_BYTES // sample_bytes))
    start = 0
    while start < len(task.indices):
        if _stop is not None and _stop.is_set():
            raise StoppedError("stopped between two reads")
        chunk = task.indices[start] // per_chunk
        block = [n for n in task.indices[start : start + most] if n // per_chunk == chunk]
        values = store.read(np.array(block), task.fields, rows)
        yield from enumerate(values, start)
        start += len(block)


def _read_task(task: _Task) -> _Part:
    """Moments of some fields, in float64 throughout; no time is read twice."""
    store = open_store(task.store, task.fields, num_threads=1)
    rows = slice(0, store.grid.num_model_lat)
    weights = area_weights(store.grid.latitudes)[rows]
    weights = weights / weights.mean()
    area = (weights / (len(weights) * store.grid.num_lon))[:, None]
    times = store.times[list(task.indices)]
    step = np.timedelta64(task.step_s, "s")
    moments = FieldMoments.empty(len(times), len(task.fields))
    points = PointMoments((len(task.fields), len(weights), store.grid.num_lon))
    checksums = np.zeros((len(times), len(task.fields)), dtype=np.uint32)
    earlier: dict[np.datetime64, Array] = {}
    for place, values in _read_blocks(store, task, rows):
        points.add(values[None])
        checksums[place] = [map_checksum(found) for found in values]
        exact = values.astype(np.float64)
        mean = (exact * area).sum(axis=(1, 2))
        moments.mean[place] = mean
        moments.variance[place] = (np.square(exact - mean[:, None, None]) * area).sum(axis=(1, 2))
        moments.minimum[place] = values.min(axis=(1, 2))
        moments.maximum[place] = values.max(axis=(1, 2))
        before = earlier.pop(times[place] - step, None)
        if before is not None:
            moments.tendency[place] = (np.square(exact - before) * area).sum(axis=(1, 2))
        earlier = {time: kept for time, kept in earlier.items() if time > times[place] - step}
        earlier[times[place]] = values
    return _Part(task.fields, moments, checksums, points)


def _in_order(parts: Sequence[tuple[_Part, int]]) -> FieldMoments:
    """Moments of all fields, one column each."""
    names = FieldMoments.empty(0, 0).to_arrays()
    return FieldMoments(
        **{
            name: np.stack([part.moments.to_arrays()[name][:, at] for part, at in parts], axis=1)
            for name in names
        }
    )


def _compare_values(
    store: TrainingStore,
    request: StatisticsRequest,
    indices: Indices,
    parts: Sequence[tuple[_Part, int]],
) -> list[str]:
    """Which maps are not those converted, and whether the digest is theirs."""
    columns = [store.header.fields.index(field) for field in request.fields]
    stored = store.checksums()
    found = np.stack([part.checksums[:, at] for part, at in parts], axis=1)
    different = [
        f"{request.fields[field]} at {store.times[indices[time]]}"
        for time, field in np.argwhere(found != stored[indices][:, columns])
    ]
    problems = []
    if different:
        problems.append(f"values differ from those converted: {shorten(different)}")
    digest = data_digest(store.header, store.times, stored)
    if digest != store.digest:
        problems.append(f"checksums of another data set: digest {digest}, expected {store.digest}")
    return problems


def _compare(
    store: TrainingStore, request: StatisticsRequest, indices: Indices, found: FieldMoments
) -> list[str]:
    """How moments made again differ from those stored; differences in units of the deviation."""
    stored = store.moments()
    columns = [store.header.fields.index(field) for field in request.fields]
    scale = np.maximum(found.over_time().std, np.finfo(np.float32).tiny)
    problems = []
    for name, values in found.to_arrays().items():
        is_square = name in ("variance", "tendency")
        other = stored.to_arrays()[name][indices][:, columns]
        if name == "tendency" and request.step_hours != store.header.step_hours:
            continue
        # the first tendency of a period was made with a time before it
        known = np.isfinite(values)
        difference = np.abs(values - other) / (np.square(scale) if is_square else scale)
        worst = np.where(known, difference, 0.0).max(axis=0)
        bad = [
            f"{field} {error:.2g}"
            for field, error in zip(request.fields, worst, strict=True)
            if not error <= TOLERANCE
        ]
        if bad:
            problems.append(f"stored {name} differs, in deviations, by {', '.join(bad)}")
    return problems


def _save(
    request: StatisticsRequest,
    store: Store,
    indices: Indices,
    parts: Sequence[tuple[_Part, int]],
) -> None:
    """Writes what training normalises with, as `StatisticsBuilder` makes it from all times.

    Raises:
        DataError: A field never varies, or no two times are a step apart.
        OutputError: The file cannot be written.
    """
    # torch, which takes seconds, is imported only where a file is written
    from jigsaw_forecast.data.statistics import Statistics, StatisticsOrigin, save_statistics

    weights = area_weights(store.grid.latitudes)[: store.grid.num_model_lat]
    weights = weights / weights.mean()
    area = (weights / (len(weights) * store.grid.num_lon))[:, None]
    split = len(parts) - request.num_diagnostics
    means = np.stack([part.points.mean[at] for part, at in parts])
    squares = [(part.points.squares[at] * area).sum() / part.points.count for part, at in parts]
    summary = _in_order(parts).over_time()
    statistics = Statistics(
        mean=means[:split].astype(np.float32),
        std=np.sqrt(squares[:split]).astype(np.float32),
        tendency_std=summary.tendency_std[:split].astype(np.float32),
        diagnostic_mean=summary.mean[split:].astype(np.float32),
        diagnostic_std=summary.std[split:].astype(np.float32),
    )
    times = store.times[indices]
    if not np.isfinite(summary.tendency_std).all():
        raise DataError(
            f"{store.path}: no two of {len(times)} times are {request.step_hours} h apart: "
            "tendencies cannot be normalised; choose another period or step"
        )
    try:
        statistics.check([str(field) for field in request.fields])
    except DataError as error:
        raise DataError(f"{store.path}: {error}; leave them out with --fields") from None
    origin = StatisticsOrigin(
        digest=store.digest,
        fields=tuple(str(field) for field in request.fields),
        period=f"{times[0]}/{times[-1]}",
        grid=store.grid.name,
        step_hours=request.step_hours,
    )
    assert request.output is not None
    save_statistics(request.output, statistics, origin)
    _log.info("wrote %s", request.output)
