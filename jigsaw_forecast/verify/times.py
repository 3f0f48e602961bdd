"""Times in words: all of them, in as few as possible."""

from collections.abc import Iterable

import numpy as np

MAX_SINGLE = 100  # more times than this are told as runs of equal steps
_HOUR = np.timedelta64(1, "h")


def list_all(times: Iterable[np.datetime64]) -> str:
    """Every one of some times; very many as runs `START to END every 6 h`."""
    ordered = np.array(sorted(set(times)), dtype="datetime64[s]")
    if ordered.size <= MAX_SINGLE:
        return ", ".join(_minutes(time) for time in ordered)
    parts = []
    start = 0
    while start < ordered.size:
        end = start + 1
        if end < ordered.size:
            step = ordered[end] - ordered[start]
            while end + 1 < ordered.size and ordered[end + 1] - ordered[end] == step:
                end += 1
        last = min(end, ordered.size - 1)
        if last - start >= 2:
            every = (ordered[start + 1] - ordered[start]) / _HOUR
            parts.append(
                f"{_minutes(ordered[start])} to {_minutes(ordered[last])} every {every:g} h"
            )
            start = last + 1
        else:
            parts.append(_minutes(ordered[start]))
            start += 1
    return f"{', '.join(parts)} ({ordered.size} times)"


def describe_period(times: Iterable[np.datetime64]) -> str:
    """`START to END`, or `none`."""
    ordered = sorted(set(times))
    return f"{_minutes(ordered[0])} to {_minutes(ordered[-1])}" if ordered else "none"


def _minutes(time: np.datetime64) -> str:
    return str(time.astype("datetime64[m]"))


def hours_of(span: np.timedelta64) -> float:
    """A time span in hours."""
    return float(span / _HOUR)
