"""Makes a climatology by hour and day of year, as WeatherBench 2 does, in bounded memory.

Days are visited in order with a ring of daily sums around them, so that a field of any size and any
number of years takes the memory of a window of maps.
"""

import logging
import os
import shutil
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from jigsaw_forecast import __version__, log
from jigsaw_forecast.data.weather_store import Period
from jigsaw_forecast.errors import DataError, OutputError
from jigsaw_forecast.grid import Grid
from jigsaw_forecast.verify.archive import Archive, Times, TimeSeries
from jigsaw_forecast.verify.climatology import (
    DAYS,
    WINDOW_DAYS,
    days_of,
    hour_of_day,
    window_weights,
)
from jigsaw_forecast.verify.field_choice import choose_variables
from jigsaw_forecast.verify.kernels import DRY_THRESHOLDS_M
from jigsaw_forecast.verify.opening import open_archive
from jigsaw_forecast.verify.regridding import RegriddedArchive
from jigsaw_forecast.verify.seeps_climatology import seeps_statistics
from jigsaw_forecast.verify.times import list_all

Array64 = npt.NDArray[np.float64]
_log = logging.getLogger(__name__)

RING_BYTES = 512 << 20
FINEST_WHOLE_COLUMN_DEGREES = 1.0
PARTIAL_SUFFIX = ".partial"


@dataclass(frozen=True)
class ClimatologyRequest:
    """What is to be made.

    Attributes:
        truth: Files or stores of analyses.
        output: Zarr store to write.
        years: Period that is averaged over.
        hours: Hours of the day, all that the truth has by default.
        window_days: Width of the triangular window, odd; its ends weigh nothing.
        variables: Names such as `z500,2t`; all by default.
        levels: hPa, all by default.
        resolution: Grid to regrid to.
        with_seeps: Whether SEEPS thresholds are made for precipitation.
        precision: Of the output, `float64` or `float32`.
        allow_missing: Whether gaps in the truth are averaged over.
        overwrite: Whether an existing store is replaced.
    """

    truth: tuple[Path, ...]
    output: Path
    years: Period | None = None
    hours: tuple[int, ...] | None = None
    window_days: int = WINDOW_DAYS
    variables: str | None = None
    levels: tuple[float, ...] | None = None
    resolution: Grid | None = None
    with_seeps: bool = False
    precision: str = "float64"
    allow_missing: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class _Job:
    """A checked request: what is read for each variable, hour and day."""

    request: ClimatologyRequest
    truth: TimeSeries
    archive: Archive
    levels: dict[str, tuple[float, ...]]
    hours: tuple[int, ...]
    times: dict[str, Times]


def make_climatology(request: ClimatologyRequest) -> Path:
    """Makes the climatology and writes it as a zarr store.

    For each hour and day: the mean over years and the days of the window, weighted by a triangle
    that is 1 in the middle and 0 at both ends, across the new year. The last day of a common year
    stands for its day 366. Missing values are left out of the means.

    Source: Rasp et al. (2024), section 2.5; weatherbench2.utils.compute_hourly_stat.

    Raises:
        ForecastError: What is wrong with the request or the truth; all of it is listed.
    """
    job = _check(request)
    if empty := _days_without(job):
        _log.warning(
            "%s: %d of the %d days of the year have no analysis within the window and become NaN "
            "(%s); a climatology takes whole years",
            job.archive.path,
            len(empty),
            DAYS,
            ", ".join(_runs(empty)),
        )
    partial = request.output.with_name(request.output.name + PARTIAL_SUFFIX)
    shutil.rmtree(partial, ignore_errors=True)
    writer = _Writer(partial, job)
    total = sum(len(_groups(job, name)) * DAYS * len(job.hours) for name in job.levels)
    with log.Progress("climatology", total, "days x hours") as progress:
        for name in job.levels:
            for levels in _groups(job, name):
                for hour in range(len(job.hours)):
                    for day, mean in _daily_means(job, name, hour, levels):
                        writer.write(name, hour, day, levels, mean)
                        progress.advance()
            if request.with_seeps and name in DRY_THRESHOLDS_M:
                _write_seeps(job, name, writer)
    writer.finish()
    if request.output.exists():
        shutil.rmtree(request.output)
    os.replace(partial, request.output)
    _log.info("wrote %s", request.output)
    return request.output


def _check(request: ClimatologyRequest) -> _Job:
    problems: list[str] = []
    if request.output.exists() and not request.overwrite:
        raise OutputError(f"{request.output} exists; add --overwrite to replace it")
    if request.output.exists() and not (request.output / "zarr.json").exists():
        raise OutputError(f"{request.output} exists and is not a zarr store; choose another name")
    if request.output.suffix != ".zarr":
        problems.append(f"{request.output}: the climatology is a zarr store; name it .zarr")
    if request.window_days < 3 or request.window_days % 2 == 0:
        problems.append(f"--window {request.window_days}: expected an odd number of days from 3")
    archive = open_archive(request.truth)
    if request.resolution is not None:
        archive = RegriddedArchive(archive, request.resolution)
    if archive.members:
        problems.append(f"{archive.path} has members; a climatology is made of one analysis")
    truth = TimeSeries(archive)
    offered = {name: one.levels for name, one in archive.variables.items()}
    levels = choose_variables(request.variables, offered) if request.variables else offered
    if request.levels is not None:
        for name, held in levels.items():
            missing = [one for one in request.levels if held and one not in held]
            if missing:
                problems.append(f"missing levels of {name} in {archive.path}: {missing}")
        levels = {n: tuple(v for v in held if v in request.levels) for n, held in levels.items()}
    times = {name: _within(truth.times[name], request.years) for name in levels}
    empty = [name for name, one in times.items() if not one.size]
    if empty:
        problems.append(f"missing times of {', '.join(empty)} in {archive.path} within the years")
    hours = request.hours or _hours_of(times)
    for name, one in times.items():
        lacking = _gaps(one, hours)
        if lacking.size and not request.allow_missing:
            problems.append(
                f"missing times of {name} in {archive.path}: {list_all(lacking)}; add "
                "--allow-missing to average over what there is"
            )
    if problems:
        raise DataError("\n".join(problems))
    return _Job(request, truth, archive, levels, hours, times)


def _within(times: Times, years: Period | None) -> Times:
    if years is None:
        return times
    inside: Times = times[(times >= years.start) & (times <= years.end)]
    return inside


def _hours_of(times: dict[str, Times]) -> tuple[int, ...]:
    found = {int(hour) for one in times.values() for hour in hour_of_day(one)}
    return tuple(sorted(found))


def _gaps(times: Times, hours: Sequence[int]) -> Times:
    """Times at these hours that lie between the first and the last and are not there."""
    if not times.size:
        return times
    first, last = times[0].astype("datetime64[D]"), times[-1].astype("datetime64[D]")
    days = np.arange(first, last + np.timedelta64(1, "D")).astype("datetime64[s]")
    spans = np.array(sorted(hours), dtype="timedelta64[h]").astype("timedelta64[s]")
    wanted = (days[:, None] + spans[None, :]).ravel()
    wanted = wanted[(wanted >= times[0]) & (wanted <= times[-1])]
    lacking: Times = wanted[~np.isin(wanted, times)]
    return lacking


def _groups(job: _Job, name: str) -> list[list[int]]:
    """Levels that are averaged together, by their place: as many as the ring's memory allows."""
    rows, columns = job.archive.grid.shape
    per_level = rows * columns * 8 * job.request.window_days
    count = max(1, RING_BYTES // per_level)
    places = list(range(max(1, len(job.levels[name]))))
    return [places[a : a + count] for a in range(0, len(places), count)]


def _daily_means(
    job: _Job, name: str, hour: int, levels: list[int]
) -> Iterator[tuple[int, Array64]]:
    """Day of the year from 0, and the mean over its window, shape [levels, Y, X]."""
    weights = window_weights(job.request.window_days)
    half = job.request.window_days // 2
    by_day = _times_by_day(job.times[name], job.hours[hour])
    held = job.archive.variables[name].levels
    wanted = job.levels[name]
    places = [held.index(wanted[one]) for one in levels] if wanted else [0]
    ring: deque[tuple[Array64, Array64]] = deque(maxlen=job.request.window_days)
    shape = (len(levels), *job.archive.grid.shape)
    for step in range(-half, DAYS + half):
        maps = (job.truth.read(name, time, places) for time in by_day.get(step % DAYS, ()))
        ring.append(_sum(maps, shape))
        if step < half:
            continue
        total, count = np.zeros(shape), np.zeros((1, 1, 1))
        for weight, (daily, number) in zip(weights, ring, strict=True):
            if weight > 0:
                total += weight * daily
                count = count + weight * number
        with np.errstate(invalid="ignore", divide="ignore"):
            yield step - half, np.where(count > 0, total / count, np.nan)


def _days_without(job: _Job) -> list[int]:
    """Days of the year, from 1, of which no window at any hour holds an analysis."""
    reach = job.request.window_days // 2 - 1  # the window's ends have no weight
    held = {
        day
        for name, hour in product(job.times, job.hours)
        for day in _times_by_day(job.times[name], hour)
    }
    reached = {(day + step) % DAYS for day in held for step in range(-reach, reach + 1)}
    return [day + 1 for day in range(DAYS) if day not in reached]


def _runs(days: Sequence[int]) -> list[str]:
    """Ascending days as `1 to 120`, `200`."""
    runs: list[list[int]] = []
    for day in days:
        if runs and day == runs[-1][-1] + 1:
            runs[-1][-1] = day
        else:
            runs.append([day, day])
    return [f"{first} to {last}" if last > first else str(first) for first, last in runs]


def _times_by_day(times: Times, hour: int) -> dict[int, list[np.datetime64]]:
    found: dict[int, list[np.datetime64]] = {}
    for time in times[hour_of_day(times) == hour]:
        for day in days_of(time):
            found.setdefault(day, []).append(time)
    return found


def _sum(
    maps: Iterator[npt.NDArray[np.floating]], shape: tuple[int, ...]
) -> tuple[Array64, Array64]:
    """Sum over the values that are there, and their number, [1, 1, 1] where it is the same."""
    total, count = np.zeros(shape), np.zeros((1, 1, 1))
    for one in maps:
        present = ~np.isnan(one)
        if present.all():
            total += one
            count = count + 1.0
        else:
            total += np.where(present, one, 0.0)
            count = count + present
    return total, count


def _write_seeps(job: _Job, name: str, writer: "_Writer") -> None:
    """Thresholds and dry fractions of a precipitation, for each hour and day."""
    _, dry_threshold = DRY_THRESHOLDS_M[name]
    rows, columns = job.archive.grid.shape
    per_row = columns * 8 * (job.times[name].size // len(job.hours) + DAYS)
    band = max(1, RING_BYTES // per_row)
    for hour in range(len(job.hours)):
        by_day = _times_by_day(job.times[name], job.hours[hour])
        for first in range(0, rows, band):  # every map is read once for each band
            some = slice(first, min(first + band, rows))
            samples = {
                day: np.stack([job.truth.read(name, time, [0])[0][some] for time in times])
                for day, times in by_day.items()
            }
            shape = (some.stop - first, columns)
            for day, threshold, fraction in seeps_statistics(
                samples, shape, job.request.window_days, dry_threshold
            ):
                writer.write_rows(f"{name}_seeps_threshold", hour, day, some, threshold)
                writer.write_rows(f"{name}_seeps_dry_fraction", hour, day, some, fraction)


class _Writer:
    """The store, filled day by day."""

    def __init__(self, path: Path, job: _Job) -> None:
        grid = job.archive.grid
        self._group = zarr.create_group(
            path,
            zarr_format=3,
            attributes={
                "title": "Climatology by hour and day of year",
                "truth": ", ".join(map(str, job.request.truth)),
                "years": str(job.request.years) if job.request.years is not None else "all",
                "window_days": job.request.window_days,
                "method": "mean over years and days under a triangular window (WeatherBench 2)",
                "notice": job.archive.attributes.get("notice", ""),
                "jigsaw_forecast_version": __version__,
            },
        )
        self._all_levels = sorted({one for held in job.levels.values() for one in held})
        self._levels = job.levels
        axes = {
            "hour": np.array(job.hours, dtype=np.int64),
            "dayofyear": np.arange(1, DAYS + 1, dtype=np.int64),
            "latitude": grid.latitudes,
            "longitude": grid.longitudes,
        }
        if self._all_levels:
            axes["level"] = np.array(self._all_levels, dtype=np.int32)
        units = {"latitude": "degrees_north", "longitude": "degrees_east", "level": "hPa"}
        for axis, values in axes.items():
            array = self._group.create_array(
                axis, shape=values.shape, dtype=values.dtype, dimension_names=(axis,),
                attributes={"units": units[axis]} if axis in units else {},
            )  # fmt: skip
            array[:] = values
        self._arrays: dict[str, zarr.Array[Any]] = {}
        sizes = {axis: values.size for axis, values in axes.items()}
        for name, held in job.levels.items():
            dims = ("hour", "dayofyear", *(("level",) if held else ()), "latitude", "longitude")
            self._create(name, dims, sizes, job, job.archive.variables[name].units)
            if job.request.with_seeps and name in DRY_THRESHOLDS_M:
                self._create(f"{name}_seeps_threshold", dims, sizes, job, "m")
                self._create(f"{name}_seeps_dry_fraction", dims, sizes, job, "1")

    def _create(
        self, name: str, dims: tuple[str, ...], sizes: dict[str, int], job: _Job, units: str
    ) -> None:
        groups = _groups(job, name) if name in job.levels else [[0]]
        one_each = {"hour": 1, "dayofyear": 1, "level": len(groups[0])}
        whole = 360.0 / sizes["longitude"] <= FINEST_WHOLE_COLUMN_DEGREES
        if whole or len(groups[0]) < len(self._all_levels):
            one_each["level"] = 1
        self._arrays[name] = self._group.create_array(
            name,
            shape=tuple(sizes[dim] for dim in dims),
            chunks=tuple(one_each.get(dim, sizes[dim]) for dim in dims),
            dtype=np.dtype(job.request.precision),
            fill_value=np.nan,
            dimension_names=dims,
            compressors=[
                BloscCodec(cname="zstd", clevel=3, shuffle="shuffle"),
                Crc32cCodec(),
            ],
            attributes={"units": units},
        )

    def finish(self) -> None:
        """Puts the metadata of all arrays together, which xarray looks for."""
        with warnings.catch_warnings():
            # an extension of zarr v3, of which zarr warns
            warnings.filterwarnings("ignore", message="Consolidated metadata")
            zarr.consolidate_metadata(self._group.store)

    def write(self, name: str, hour: int, day: int, levels: list[int], mean: Array64) -> None:
        array = self._arrays[name]
        if array.ndim == 4:
            array[hour, day] = mean[0]
            return
        places = [self._all_levels.index(self._levels[name][one]) for one in levels]
        if len(places) == len(self._all_levels):
            array[hour, day] = mean
            return
        for place, one in zip(places, mean, strict=True):
            array[hour, day, place] = one

    def write_rows(self, name: str, hour: int, day: int, rows: slice, values: Array64) -> None:
        self._arrays[name][hour, day, rows] = values
