"""What stores to train on have in common: a time axis with its periods and gaps, and reading."""

import os
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from jigsaw_forecast.errors import DataError
from jigsaw_forecast.fields import Field
from jigsaw_forecast.grid import Grid

Array = npt.NDArray[np.float32]
Times = npt.NDArray[np.datetime64]
Indices = npt.NDArray[np.int64]
# Called with the field's place among those read, the rows among those read and their values
# [rows, X], which it may change; by any thread, as soon as they are there.
Finish = Callable[[int, slice, Array], None]

Result = TypeVar("Result")

MAX_THREADS = 8
MAX_LISTED = 12  # bad maps in one message
# 2019, 2019-12, 2019-12-31 or a time of that day
_TIME = re.compile(r"\d{4}(-\d{2}(-\d{2}([T ]\d{2}(:\d{2}(:\d{2})?)?)?)?)?")


@dataclass(frozen=True)
class Period:
    """A span of time, both ends included.

    Attributes:
        start: First time.
        end: Last time.
    """

    start: np.datetime64
    end: np.datetime64

    @classmethod
    def parse(cls, text: str) -> "Period":
        """The period `START/END`, ISO dates or times; both ends included, to their last moment.

        `1979/2019` ends with 2019, `2020-01/2020-02` with February, `2020-01-01/2020-02-01` with
        that day; an end that says hours is that time.

        Raises:
            ValueError: The text is not two dates in order.
        """
        parts = [part.strip() for part in text.split("/")]
        wrong = f"{text!r} is not START/END, such as 2017-01-01/2024-12-31 or 2017/2024"
        if len(parts) != 2 or not all(_TIME.fullmatch(part) for part in parts):
            raise ValueError(wrong)
        try:
            start, end = np.datetime64(parts[0], "s"), np.datetime64(parts[1], "s")
        except ValueError:
            raise ValueError(wrong) from None
        if len(parts[1]) <= len("2019-12-31"):  # numpy counts in years, months or days
            after: np.datetime64 = np.datetime64(parts[1]) + 1
            end = after.astype("datetime64[s]") - np.timedelta64(1, "s")
        if end < start:
            raise ValueError(f"{text!r} ends before it starts")
        return cls(start, end)

    def __str__(self) -> str:
        """`START/END`."""
        return f"{self.start}/{self.end}"


def find_gaps(times: Times, interval: np.timedelta64) -> list[str]:
    """Where times are missing, doubled or off the interval: `LAST to NEXT (N missing)`."""
    steps = np.diff(times)
    gaps = []
    for place in np.flatnonzero(steps != interval):
        gap = f"{times[place]} to {times[place + 1]}"
        num_missing, remainder = divmod(steps[place], interval)
        if num_missing > 1 and not remainder.astype(int):
            gap += f" ({num_missing - 1} missing)"
        elif num_missing <= 0:
            gap += " (doubled)" if steps[place] == np.timedelta64(0, "s") else " (out of order)"
        gaps.append(gap)
    return gaps


def shorten(entries: Sequence[str], limit: int = MAX_LISTED) -> str:
    """Entries in one line, the first few where there are many."""
    rest = len(entries) - limit
    return ", ".join(entries[:limit]) + (f" and {rest} more" if rest > 0 else "")


class ReadThreads:
    """Threads that read and decode for one store; started with the first job."""

    def __init__(self, num_threads: int | None = None) -> None:
        """Takes the number of threads; by default this rank's share of the cores, at most 8."""
        self._num_threads = num_threads or default_threads()
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def submit(self, action: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Runs an action in one of the threads."""
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._num_threads, "read")
        return self._pool.submit(action, *arguments)


def default_threads() -> int:
    """This rank's share of the cores that this process may use, at most `MAX_THREADS`."""
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    num_local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min((num_cores or 1) // num_local_ranks, MAX_THREADS))


class Store(ABC):
    """Weather of many times on one grid, read as fields of a latitude band.

    Children set the attributes and read.

    Attributes:
        path: The store.
        grid: Its grid.
        times: Valid times, datetime64[s], ascending.
        bytes_read: Bytes of values handed out so far.
        notice: What must be said wherever something made from this data is shown; its attribute.
    """

    path: Path
    grid: Grid
    times: Times
    notice: str
    bytes_read: int = 0

    @property
    @abstractmethod
    def disk_bytes_read(self) -> int:
        """Bytes taken from files so far."""

    @property
    def num_rows(self) -> int:
        """Rows held, from the north: all, or all but the south pole."""
        return self.grid.num_lat

    @property
    @abstractmethod
    def digest(self) -> str:
        """Tells this data set from any other."""

    @abstractmethod
    def static(self, name: str) -> Array:
        """A variable without time, shape [rows held, X], north to south.

        Raises:
            DataError: The store does not hold it.
        """

    @abstractmethod
    def read_into(
        self,
        out: Array,
        indices: Indices,
        fields: Sequence[Field],
        rows: slice,
        finish: Finish | None = None,
    ) -> None:
        """Reads values at some times, float32, physical units, north to south.

        Args:
            out: Where they go, shape [T, F, Y, X].
            indices: Places on the time axis, in any order.
            fields: Fields, in the order wanted.
            rows: Rows of the grid, north to south.
            finish: What to do with each part while it is in the cache.

        Raises:
            DataError: Values cannot be read, are missing or implausible; lists which.
        """

    def read(self, indices: Indices, fields: Sequence[Field], rows: slice) -> Array:
        """Values at some times, shape [T, F, Y, X]; arguments and errors as `read_into`."""
        first, last, _ = rows.indices(self.grid.num_lat)
        shape = (len(indices), len(fields), max(last - first, 0), self.grid.num_lon)
        values = np.empty(shape, dtype=np.float32)
        self.read_into(values, indices, fields, rows)
        return values

    def indices(self, period: Period) -> Indices:
        """Places on the time axis within a period.

        Raises:
            DataError: No time lies in the period.
        """
        inside = np.flatnonzero((self.times >= period.start) & (self.times <= period.end))
        if not inside.size:
            raise DataError(
                f"{self.path}: no time within {period}; it holds {self.times[0]} to "
                f"{self.times[-1]}"
            )
        return inside.astype(np.int64)

    def find_gaps(self, period: Period, interval: np.timedelta64) -> list[str]:
        """Where times are missing, doubled or out of order within a period, its ends included."""
        times = self.times[self.indices(period)]
        gaps = find_gaps(times, interval)
        if times[0] - period.start >= interval:
            gaps.insert(0, f"{period.start} to {times[0]}")
        if period.end - times[-1] >= interval:
            gaps.append(f"{times[-1]} to {period.end}")
        return gaps

    def check_gaps(self, period: Period, interval: np.timedelta64) -> None:
        """Refuses a period in which the time axis is not regular or which it does not fill.

        Raises:
            DataError: Times are missing, doubled or out of order; lists every place.
        """
        gaps = self.find_gaps(period, interval)
        if gaps:
            advice = "set data.allow_gaps = true to train on the whole sequences between them"
            if (np.diff(self.times[self.indices(period)]) <= np.timedelta64(0, "s")).any():
                advice = "sort them and keep each once, as `jigsaw-forecast data convert` does"
            hours = int(interval / np.timedelta64(1, "h"))
            raise DataError(
                f"{self.path}: times missing or not {hours} h apart within {period}: "
                f"{', '.join(gaps)}; {advice}"
            )
