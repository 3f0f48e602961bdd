"""The times of one period of a store, and which of them are starts of samples."""

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from jigsaw_forecast.data.store import Period, Store
from jigsaw_forecast.errors import DataError

Places = npt.NDArray[np.int64]


class SampleTimes:
    """The valid times of a period and the samples that they make.

    A sample is a start and the times that follow it at the model's step. Where times are missing
    and that is allowed, the samples are those whose times are all there.

    Attributes:
        times: Valid times of the period, datetime64[s], ascending.
        indices: Their places on the store's time axis.
        gaps: Where times are missing, as text; empty unless gaps are allowed.
        stride: Times of the store to a step of the model.
        sequences: Slices of `times` without a gap.
    """

    def __init__(
        self, store: Store, period: Period, step_hours: int, *, allow_gaps: bool = False
    ) -> None:
        """Checks the period; reads nothing of the store's values.

        Args:
            store: Its time axis.
            period: Which times.
            step_hours: Step of the model.
            allow_gaps: Use the whole sequences between missing times rather than refuse them.

        Raises:
            DataError: No time lies in the period, times are missing or do not divide the step.
        """
        self.indices = store.indices(period)
        self.times = store.times[self.indices]
        steps = np.diff(self.times)
        ahead = steps[steps > np.timedelta64(0, "s")]
        interval = ahead.min() if ahead.size else np.timedelta64(6, "h")
        self.gaps: list[str] = []
        if not allow_gaps or len(ahead) < len(steps):  # times that go back are never right
            store.check_gaps(period, interval)
        else:
            self.gaps = store.find_gaps(period, interval)
        step = np.timedelta64(step_hours, "h")
        if step % interval:
            hours = interval / np.timedelta64(1, "h")
            raise DataError(
                f"{store.path}: times are {hours:g} h apart within {period}, the model steps "
                f"{step_hours} h; give data at the model's step, or set model.step_hours"
            )
        self.stride = int(step // interval)
        self.sequences = _split(self.times, interval)
        self._next = _find_next(self.times, step.astype("timedelta64[s]"))
        self._starts: dict[int, Places] = {}

    def starts(self, num_steps: int) -> Places:
        """Places in `times` that have so many steps of the model after them."""
        if num_steps not in self._starts:
            at = np.arange(len(self.times))
            for _ in range(num_steps):
                at = np.where(at < 0, -1, self._next[at])
            self._starts[num_steps] = np.flatnonzero(at >= 0).astype(np.int64)
        return self._starts[num_steps]

    def places(self, samples: Places, num_steps: int) -> Places:
        """Places in `times` of samples and of their steps, shape [B, K + 1].

        Args:
            samples: Numbers of samples, each a place in `starts(num_steps)`.
            num_steps: Steps after the start, K.
        """
        chain = [self.starts(num_steps)[np.asarray(samples)]]
        for _ in range(num_steps):
            chain.append(self._next[chain[-1]])
        return np.stack(chain, axis=1)

    def spread_pairs(self, num_times: int | None) -> list[Places] | None:
        """Pairs of places one step apart, evenly spread; None where all times are wanted."""
        num_starts = len(self.starts(1))
        if num_times is None or num_times >= len(self.times) or not num_starts:
            return None
        chosen = np.linspace(0, num_starts - 1, max(num_times // 2, 1)).round().astype(np.int64)
        return list(self.places(np.unique(chosen), 1))


def _split(times: npt.NDArray[np.datetime64], interval: np.timedelta64) -> list[slice]:
    """Sequences without a gap."""
    breaks = (np.flatnonzero(np.diff(times) != interval) + 1).tolist()
    return [slice(a, b) for a, b in pairwise([0, *breaks, len(times)])]


def _find_next(times: npt.NDArray[np.datetime64], step: np.timedelta64) -> Places:
    """The place of the time one step after each, -1 where it is missing."""
    at = np.searchsorted(times, times + step)
    is_there = times[np.minimum(at, len(times) - 1)] == times + step
    return np.where(is_there, at, -1).astype(np.int64)
