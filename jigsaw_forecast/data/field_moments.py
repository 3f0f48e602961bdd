"""Moments made in one pass and merged: of each field at each time, and of each point over time.

Kept in float64; a band of a map is summed in float32 row by row about a value of its own, so that
no digit is lost to a large mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Array64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FieldMoments:
    """Moments of every field at every time; arrays are float64 [T, F].

    Attributes:
        mean: Mean over the area, the field's units.
        variance: Mean squared deviation from it over the area.
        tendency: Mean squared change since one model step before; NaN where that time is missing.
        minimum: Smallest value.
        maximum: Largest value.
    """

    mean: Array64
    variance: Array64
    tendency: Array64
    minimum: Array64
    maximum: Array64

    @classmethod
    def empty(cls, num_times: int, num_fields: int) -> "FieldMoments":
        """All NaN, to be filled in."""
        return cls(*(np.full((num_times, num_fields), np.nan) for _ in fields(cls)))

    @classmethod
    def join(cls, parts: Sequence["FieldMoments"]) -> "FieldMoments":
        """Parts one after the other in time."""
        names = [field.name for field in fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def to_arrays(self) -> dict[str, Array64]:
        """The arrays by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def at(self, times: npt.NDArray[np.integer] | npt.NDArray[np.bool_]) -> "FieldMoments":
        """Some of the times."""
        return FieldMoments(*(array[times] for array in self.to_arrays().values()))

    def over_time(self) -> "FieldSummary":
        """Mean, deviation and tendency of each field over all times and the area.

        Source: Chan, Golub and LeVeque (1979): the variance of equal parts is the mean of theirs
        plus the variance of their means.
        """
        mean = self.mean.mean(axis=0)
        variance = self.variance.mean(axis=0) + np.square(self.mean - mean).mean(axis=0)
        known = np.isfinite(self.tendency)
        num_known = known.sum(axis=0)
        total = np.where(known, self.tendency, 0.0).sum(axis=0)
        tendency = np.full(mean.shape, np.nan)
        np.divide(total, num_known, out=tendency, where=num_known > 0)
        return FieldSummary(mean, np.sqrt(variance), np.sqrt(tendency))


@dataclass(frozen=True)
class FieldSummary:
    """Of each field over times and area, float64 [F], the field's units.

    Attributes:
        mean: Mean.
        std: Standard deviation about that one mean.
        tendency_std: Root mean square change over a model step, NaN where there is none.
    """

    mean: Array64
    std: Array64
    tendency_std: Array64


class MapMoments:
    """Gathers the moments of one map from its bands, which come in any order."""

    def __init__(self, weights: Array64, scratch: Array) -> None:
        """Starts empty.

        Args:
            weights: Area weight of each row, mean 1 over the map, shape [Y].
            scratch: Memory to compute in, shape [rows, X], rows at least those of a band.
        """
        self._weights = weights
        self._scratch = scratch
        self._total = 0.0  # weight so far
        self._mean = 0.0
        self._square = 0.0  # weighted sum of squared deviations
        self._tendency: float | None = None
        self.minimum, self.maximum = np.inf, -np.inf

    def add(self, values: Array, rows: slice, earlier: Array | None = None) -> None:
        """Adds a band.

        Args:
            values: The band, shape [rows, X].
            rows: Where it lies.
            earlier: The same band one model step before, None where it is not known.
        """
        self.minimum = float(np.minimum(self.minimum, values.min()))  # NaN passes into both
        self.maximum = float(np.maximum(self.maximum, values.max()))
        num_lon = values.shape[1]
        weights = self._weights[rows]
        about = values[0, 0]
        scratch = self._scratch[: len(values)]
        deviation = np.subtract(values, about, out=scratch)
        row_mean = deviation.sum(axis=1) / np.float64(num_lon)
        row_square = np.einsum("yx,yx->y", deviation, deviation).astype(np.float64)
        row_square -= num_lon * np.square(row_mean)
        total = weights.sum()
        mean = weights @ row_mean / total
        square = weights @ (row_square / num_lon + np.square(row_mean - mean))
        self._merge(total, float(about) + mean, square)
        if earlier is not None:
            change = np.subtract(values, earlier, out=scratch)
            squares = np.einsum("yx,yx->y", change, change).astype(np.float64)
            self._tendency = (self._tendency or 0.0) + float(weights @ squares) / num_lon

    def store(self, moments: FieldMoments, time: int, field: int) -> None:
        """Writes what was gathered to its place."""
        num_rows = self._weights.sum()
        moments.mean[time, field] = self._mean
        moments.variance[time, field] = self._square / num_rows
        if self._tendency is not None:
            moments.tendency[time, field] = self._tendency / num_rows
        moments.minimum[time, field] = self.minimum
        moments.maximum[time, field] = self.maximum

    def _merge(self, total: float, mean: float, square: float) -> None:
        joined = self._total + total
        difference = mean - self._mean
        self._square += square + difference**2 * self._total * total / joined
        self._mean += difference * total / joined
        self._total = joined


class PointMoments:
    """Count, mean and sum of squared deviations over time at each point; chunks merge exactly.

    Source: Chan, Golub and LeVeque (1979), the pairwise update.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        """Starts empty for maps of this shape."""
        self.count = 0
        self.mean: Array64 = np.zeros(shape)
        self.squares: Array64 = np.zeros(shape)

    def add(self, values: npt.NDArray[np.floating]) -> None:
        """Adds maps, shape [T, ...]."""
        if not len(values):
            return
        chunk = PointMoments(self.mean.shape)
        chunk.count = len(values)
        chunk.mean = values.mean(axis=0, dtype=np.float64)
        chunk.squares = np.square(values - chunk.mean).sum(axis=0)
        self.merge(chunk)

    def merge(self, other: "PointMoments") -> None:
        """Adds another part of the times."""
        if not other.count:
            return
        total = self.count + other.count
        difference = other.mean - self.mean
        self.mean += difference * (other.count / total)
        self.squares += other.squares
        self.squares += np.square(difference) * (self.count * other.count / total)
        self.count = total
