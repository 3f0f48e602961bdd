"""`data convert`: any weather data to the training set, in parallel, and on after any stop."""

import fcntl
import json
import logging
import multiprocessing
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from jigsaw_forecast.data.convert_fields import Selection
from jigsaw_forecast.data.convert_finish import (
    clear_leftovers,
    find_statics,
    finish,
    plan_digest,
    put_in_place,
)
from jigsaw_forecast.data.convert_input import ConvertInput, open_input
from jigsaw_forecast.data.convert_worker import (
    Work,
    convert_run,
    convert_run_in_worker,
    sample_bytes,
    start_worker,
    worker_bytes,
)
from jigsaw_forecast.data.shards import LEVELS, ShardLayout, shard_name
from jigsaw_forecast.data.store import Period, Times, find_gaps
from jigsaw_forecast.data.stores import PLAN_FILE
from jigsaw_forecast.data.training_store import (
    PARTIAL_SUFFIX,
    PROGRESS_FOLDER,
    VALUES,
    TrainingSetHeader,
    read_attributes,
)
from jigsaw_forecast.errors import DataError, GridError, OutputError, StoppedError
from jigsaw_forecast.grid import Grid
from jigsaw_forecast.log import Progress

_log = logging.getLogger(__name__)

SHARD_BYTES = 1 << 26  # of values: files large enough for a parallel file system, few enough
MIN_SHARDS = 16  # of a small set, so that it too is shared out and taken up again
MAX_BANDS = 16  # the finest domain split that is whole chunks, where the rows allow it
MIN_CHUNK_BYTES = 2048  # smaller chunks are mostly overhead
MAX_RUN_SHARDS = 32  # of a worker at a time; one time more is read for each run
WORKER_BASE_BYTES = 6 * 10**8  # interpreter, libraries and what the reader works in; measured


@dataclass(frozen=True)
class ConvertRequest:
    """What to convert, and how.

    Attributes:
        inputs: Stores and files.
        output: The training set, a name that ends in .zarr.
        selection: Fields, grid and member.
        model_grid: Grid of the model that will train on it, None where it is not known.
        period: Which times; None for all.
        interval_hours: Between times: others of a finer input are left out.
        step_hours: Span of the tendencies: the model's step.
        num_bands: Latitude bands that are chunks of their own; None for the finest of up to 16.
        patch_rows: Rows of a patch of the model, which bands do not cut; 1 where it is not known.
        codec: `lz4` or `zstd`.
        num_processes: Workers.
        allow_gaps: Convert although times are missing.
        overwrite: Replace a training set of that name.
        statics: A file of static maps, None where the inputs hold them.
    """

    inputs: tuple[Path, ...]
    output: Path
    selection: Selection = field(default_factory=Selection)
    model_grid: Grid | None = None
    period: Period | None = None
    interval_hours: int = 6
    step_hours: int = 6
    num_bands: int | None = None
    patch_rows: int = 1
    codec: str = "lz4"
    num_processes: int = 1
    allow_gaps: bool = False
    overwrite: bool = False
    statics: Path | None = None


def convert(request: ConvertRequest) -> TrainingSetHeader:
    """Converts inputs to a training set; where a conversion of the same was stopped, goes on.

    Written as `NAME.partial`, shard by shard, and renamed when it is whole. Each worker holds at
    most `worker_bytes`, which the log states.

    Raises:
        DataError: Inputs are missing, incomplete, implausible or have gaps; all that is wrong.
        GridError: Their grid is no regular global one.
        OutputError: The output exists, is being written, or cannot be.
        StoppedError: A signal or a killed worker stopped it; the same command goes on.
    """
    if request.codec not in LEVELS:
        raise DataError(f"unknown codec {request.codec!r}; use {' or '.join(LEVELS)}")
    source = _open(request)
    work = _make_work(request, source)
    plan = _plan(request, work)
    partial = work.folder
    existing = _existing(request, plan)
    if existing is not None:
        return existing
    for doubt in source.doubts:
        _log.warning("%s", doubt)
    statics = find_statics(source, request.statics)  # now, not after days of converting
    with _locked(partial, plan):
        if (existing := _existing(request, plan)) is not None:
            shutil.rmtree(partial)  # another process has just finished it
            return existing
        todo = _find_todo(work)
        _log_start(request, work, len(todo))
        if todo:
            _convert_all(request, work, todo)
        header = finish(work, plan, statics)
        put_in_place(partial, request.output)
    return header


def _open(request: ConvertRequest) -> ConvertInput:
    given = (*request.inputs, *([request.statics] if request.statics else []))
    missing = [str(path) for path in given if not path.exists()]
    if missing:
        raise DataError(f"missing inputs: {', '.join(missing)}")
    try:
        source = open_input(request.inputs, request.selection)
    except GridError as error:
        raise GridError(f"{error}; regrid with --grid LONxLAT") from None
    if request.model_grid not in (None, source.grid):
        raise GridError(
            f"{request.inputs[0]}: grid {source.grid.name}, but the recipe's model has "
            f"{request.model_grid.name}; regrid with --grid {request.model_grid.name}"
        )
    return source


def _make_work(request: ConvertRequest, source: ConvertInput) -> Work:
    times = _choose_times(request, source)
    rows, num_lon = source.grid.num_model_lat, source.grid.num_lon
    num_bands = _choose_bands(request, source.grid)
    sample = len(source.fields) * rows * num_lon * 4
    layout = ShardLayout(
        num_times=max(1, min(SHARD_BYTES // sample, -(-len(times) // MIN_SHARDS))),
        num_fields=len(source.fields),
        num_bands=num_bands,
        band_rows=rows // num_bands,
        num_lon=num_lon,
        codec=request.codec,
    )
    folder = request.output.with_name(request.output.name + PARTIAL_SUFFIX)
    return Work(source, folder, layout, times, np.timedelta64(request.step_hours, "h"))


def _choose_times(request: ConvertRequest, source: ConvertInput) -> Times:
    """The times to convert, at the interval asked for.

    Raises:
        DataError: There are none, or some are missing and that is not allowed.
    """
    if 24 % request.interval_hours:
        raise DataError(
            f"--interval {request.interval_hours} h does not divide a day, from whose start times "
            "are counted; use 1, 2, 3, 4, 6, 8, 12 or 24 h"
        )
    interval = np.timedelta64(request.interval_hours, "h").astype("timedelta64[s]")
    since_midnight = source.times - source.times.astype("datetime64[D]")
    chosen: Times = source.times[since_midnight % interval == np.timedelta64(0, "s")]
    period = request.period
    if period is not None:
        chosen = chosen[(chosen >= period.start) & (chosen <= period.end)]
    if len(chosen) < 2:
        raise DataError(
            f"missing times: {len(chosen)} at intervals of {request.interval_hours} h"
            f"{f' within {period}' if period else ''}, at least 2 are needed; the inputs hold "
            f"{source.times[0]} to {source.times[-1]}; change --interval or --period"
        )
    gaps = find_gaps(chosen, interval)
    if period is not None and chosen[0] - period.start >= interval:
        gaps.insert(0, f"{period.start} to {chosen[0]}")
    if period is not None and period.end - chosen[-1] >= interval:
        gaps.append(f"{chosen[-1]} to {period.end}")
    if gaps and not request.allow_gaps:
        raise DataError(
            f"times are missing or not {request.interval_hours} h apart: {', '.join(gaps)}; add "
            "--allow-gaps to convert what there is, or give --interval or --period"
        )
    for gap in gaps:
        _log.warning("times missing: %s", gap)
    return chosen


def _choose_bands(request: ConvertRequest, grid: Grid) -> int:
    """Latitude bands: those asked for, or the finest power of two that makes sense.

    Raises:
        DataError: They do not divide the rows.
    """
    rows = grid.num_model_lat
    if request.num_bands is not None:
        if rows % request.num_bands:
            usable = [str(n) for n in range(1, rows + 1) if rows % n == 0 and n <= 64]
            raise DataError(
                f"{request.num_bands} bands do not divide the {rows} rows of grid {grid.name}; use "
                f"{', '.join(usable)}"
            )
        return request.num_bands
    bands = MAX_BANDS
    while bands > 1 and (
        rows % (bands * request.patch_rows) or rows // bands * grid.num_lon * 4 < MIN_CHUNK_BYTES
    ):
        bands //= 2
    return bands


def _plan(request: ConvertRequest, work: Work) -> dict[str, Any]:
    """What fixes every byte of the result: a conversion goes on only with the same."""
    layout = work.layout
    return {
        "inputs": [
            [str(p.resolve()), p.stat().st_size if p.is_file() else 0] for p in request.inputs
        ],
        "statics": str(request.statics.resolve()) if request.statics else "",
        "grid": work.source.grid.name,
        "fields": [field.short_name for field in work.source.fields],
        "member": request.selection.member,
        "step_hours": request.step_hours,
        "times_per_shard": layout.num_times,
        "num_bands": layout.num_bands,
        "codec": layout.codec,
        "times": [str(time) for time in work.times],
    }


def _existing(request: ConvertRequest, plan: dict[str, Any]) -> TrainingSetHeader | None:
    """The header of a whole training set that is there already and is the one asked for.

    Raises:
        OutputError: Something else is there.
    """
    output = request.output
    if not os.path.lexists(output):
        return None
    attributes = read_attributes(output)
    if attributes is not None and attributes.get("plan") == plan_digest(plan):
        if (output / PLAN_FILE).exists():  # stopped after it got its name
            clear_leftovers(output)
        _log.info("%s is whole: nothing to do", output)
        return TrainingSetHeader.from_attributes(output, attributes)
    if attributes is None and not (output / ".zgroup").exists():
        raise OutputError(f"{output} exists and is no zarr store; choose another name")
    if not request.overwrite:
        raise OutputError(
            f"{output} exists and was not made by this command; add --overwrite to replace it, or "
            "choose another name"
        )
    return None


@contextmanager
def _locked(partial: Path, plan: dict[str, Any]) -> Iterator[None]:
    """The partial store, made or taken up again, and nobody else in it.

    Raises:
        OutputError: Another conversion is at work in it, or it is of another plan.
    """
    path = partial / PLAN_FILE
    try:
        for folder in (partial, partial / VALUES, partial / PROGRESS_FOLDER):
            folder.mkdir(parents=True, exist_ok=True)
        stream = path.open("a+")
    except OSError as error:
        raise OutputError(f"cannot write {partial}: {error.strerror}") from None
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(f"{partial} is being written by another conversion") from None
        except OSError:
            _log.warning("%s: its file system has no locks; let no other conversion run", partial)
        if not path.exists() or not os.path.samestat(os.fstat(stream.fileno()), path.stat()):
            raise OutputError(
                f"{partial} has just been finished or deleted by another process; run the same "
                "command again"
            )
        _check_plan(stream, partial, plan)
        yield


def _check_plan(stream: TextIO, partial: Path, plan: dict[str, Any]) -> None:
    """Writes the plan into its file, or compares it with the one that is there.

    Raises:
        OutputError: It is another one, torn after shards were written, or cannot be written.
    """
    stream.seek(0)
    try:
        found = json.loads(stream.read())
    except ValueError:  # just made, or by a process that was killed at once
        if any((partial / PROGRESS_FOLDER).iterdir()):
            raise OutputError(
                f"{partial} is the half of a conversion whose {PLAN_FILE} is damaged; delete the "
                "folder to start afresh"
            ) from None
        found = plan
        try:
            stream.truncate(0)
            stream.write(json.dumps(plan))
            stream.flush()
        except OSError as error:
            raise OutputError(f"cannot write {partial}: {error.strerror}") from None
    if found != plan:
        changed = [key for key in plan if found.get(key) != plan[key]]
        raise OutputError(
            f"{partial} is the half of another conversion: {_differences(found, plan, changed)}"
            "; run that command again, or delete the folder to start afresh"
        )


def _differences(found: dict[str, Any], plan: dict[str, Any], changed: Sequence[str]) -> str:
    def brief(value: Any) -> str:
        text = f"{value[0]} to {value[-1]} ({len(value)})" if isinstance(value, list) else value
        return str(text)

    return ", ".join(f"{key} {brief(found.get(key))}, now {brief(plan[key])}" for key in changed)


def _find_todo(work: Work) -> list[int]:
    """Shards that are not there whole; what a kill left behind is removed."""
    for leftover in work.folder.rglob(f"*{PARTIAL_SUFFIX}"):  # ours, and zarr's own
        leftover.unlink(missing_ok=True)
    num_shards = -(-len(work.times) // work.layout.num_times)
    return [shard for shard in range(num_shards) if not _is_done(work, shard)]


def _is_done(work: Work, shard: int) -> bool:
    path = work.folder / VALUES / shard_name(shard)
    try:
        with np.load(work.progress_file(shard)) as progress:
            return path.stat().st_size == int(progress["num_bytes"])
    except (OSError, ValueError, KeyError, EOFError):  # torn by a loss of power
        return False


def _log_start(request: ConvertRequest, work: Work, num_todo: int) -> None:
    layout = work.layout
    num_shards = -(-len(work.times) // layout.num_times)
    each = worker_bytes(work) + WORKER_BASE_BYTES
    _log.info(
        "converting %d times of %d fields, %s to %s, grid %s, %d bands, %s: %d of %d shards left, "
        "%.3g GB of values; at most %.2g GB in each of %d processes",
        len(work.times),
        layout.num_fields,
        work.times[0],
        work.times[-1],
        work.source.grid.name,
        layout.num_bands,
        layout.codec,
        num_todo,
        num_shards,
        len(work.times) * sample_bytes(layout) / 1e9,
        each / 1e9,
        request.num_processes,
    )


def _convert_all(request: ConvertRequest, work: Work, todo: list[int]) -> None:
    """Converts shards in as many processes as asked for, in this one where that is one."""
    runs = _split_runs(todo, request.num_processes)
    with Progress("converting", len(todo), "shards") as progress:
        if min(request.num_processes, len(runs)) == 1:
            convert_run(work, todo, advance=progress.advance)
            return
        context = multiprocessing.get_context("spawn")
        stop = context.Event()
        pool = ProcessPoolExecutor(
            min(request.num_processes, len(runs)), context, start_worker, (work, stop)
        )
        try:
            for done in as_completed([pool.submit(convert_run_in_worker, run) for run in runs]):
                progress.advance(done.result())
        except BrokenProcessPool:
            raise StoppedError(
                "a worker was killed, perhaps for its memory; run the same command again to go on, "
                "with fewer --processes if it was"
            ) from None
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _split_runs(todo: Sequence[int], num_processes: int) -> list[list[int]]:
    """Shards in runs of neighbours: each run reads one time before its first once more."""
    length = max(1, min(-(-len(todo) // num_processes), MAX_RUN_SHARDS))
    return [list(todo[start : start + length]) for start in range(0, len(todo), length)]
