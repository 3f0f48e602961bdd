"""Statistics that normalise a training set: one pass, area-weighted, mergeable, bounded memory."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jigsaw_forecast.data.field_moments import PointMoments
from jigsaw_forecast.errors import DataError, OutputError
from jigsaw_forecast.grid import Grid
from jigsaw_forecast.parallel.collectives import all_reduce_sum
from jigsaw_forecast.parallel.mesh import Axis, Mesh

Array = npt.NDArray[np.float32]
Array64 = npt.NDArray[np.float64]

MIN_TIMES = 2


@dataclass(frozen=True)
class Statistics:
    """What normalises states, tendencies and diagnostics; all arrays are whole and float32.

    Attributes:
        mean: Mean over the training times at each grid point, shape [F, Y, X].
        std: Standard deviation of the anomaly from `mean`, over time and area, shape [F].
        tendency_std: Root mean square change over one step, over time and area, shape [F].
        diagnostic_mean: Mean over time and area, shape [D].
        diagnostic_std: Standard deviation over time and area, shape [D].
    """

    mean: Array
    std: Array
    tendency_std: Array
    diagnostic_mean: Array
    diagnostic_std: Array

    def to_arrays(self) -> dict[str, Array]:
        """The arrays by name, ready for safetensors."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, npt.NDArray[np.float32]]) -> "Statistics":
        """The statistics whose `to_arrays` gave these arrays.

        Raises:
            DataError: Arrays are missing; all are named.
        """
        names = [field.name for field in fields(cls)]
        missing = [name for name in names if name not in arrays]
        if missing:
            raise DataError(f"statistics: missing arrays {', '.join(missing)}")
        return cls(**{name: np.asarray(arrays[name], dtype=np.float32) for name in names})

    def check(self, names: Sequence[str]) -> None:
        """Refuses fields by whose deviation nothing can be divided.

        Args:
            names: Short names of all prognostic, then all diagnostic fields.

        Raises:
            DataError: Means are not finite, or fields vary by less than float32 resolves; all are
                named.
        """
        largest = np.abs(self.mean).max(axis=(1, 2), initial=0.0)
        scale = np.concatenate([largest, np.abs(self.diagnostic_mean)])
        std = np.concatenate([self.std, self.diagnostic_std])
        tendency = np.concatenate([self.tendency_std, self.diagnostic_std])
        least = np.finfo(np.float32).eps * scale  # rounding alone gives a constant field as much
        is_good = np.isfinite(scale) & np.isfinite(std) & np.isfinite(tendency)
        is_good &= (std > least) & (tendency > least)
        constant = [name for name, good in zip(names, is_good, strict=True) if not good]
        if constant:
            raise DataError(f"fields that never vary cannot be trained on: {', '.join(constant)}")


@dataclass(frozen=True)
class StatisticsOrigin:
    """What statistics were made from.

    Attributes:
        digest: Of the data set, as its store says it.
        fields: Short names of prognostic, then diagnostic fields.
        period: START/END of the times.
        grid: LONxLAT.
        step_hours: Span of a tendency.
        num_diagnostics: How many of the fields, the last, are diagnostic; None: not compared.
    """

    digest: str
    fields: tuple[str, ...]
    period: str
    grid: str
    step_hours: int
    num_diagnostics: int | None = None


_ORIGIN_KEY = "origin"


def save_statistics(path: Path, statistics: Statistics, origin: StatisticsOrigin) -> None:
    """Writes statistics with their origin; the file is there whole or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        save_file(statistics.to_arrays(), partial, {_ORIGIN_KEY: json.dumps(asdict(origin))})
        partial.rename(path)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write {path}: {error}") from None


def load_statistics(path: Path, origin: StatisticsOrigin) -> Statistics:
    """Reads statistics and refuses those of other data; their period may differ.

    Raises:
        DataError: The file is missing, damaged or of another data set, fields, grid or step; all
            that differs is listed. Or a field in it never varies.
    """
    try:
        with safe_open(path, "np") as stored:
            found = json.loads((stored.metadata() or {}).get(_ORIGIN_KEY, "{}"))
            arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise DataError(
            f"missing {path}: make it with `jigsaw-forecast data statistics --output {path}`"
        ) from None
    except (OSError, SafetensorError, ValueError) as error:
        raise DataError(f"{path} cannot be read as statistics: {error}") from None
    expected = asdict(origin)
    expected["fields"] = list(expected["fields"])
    different = [
        f"{key} {found.get(key)}, expected {expected[key]}"
        for key in ("digest", "fields", "grid", "step_hours")
        if found.get(key) != expected[key]
    ]
    if different:
        raise DataError(
            f"{path}: statistics of another data set: {'; '.join(different)}; make them again with "
            "`jigsaw-forecast data statistics`"
        )
    statistics = Statistics.from_arrays(arrays)
    held = len(statistics.diagnostic_mean)
    if origin.num_diagnostics not in (None, held):
        raise DataError(
            f"{path}: statistics with {held} diagnostic fields, expected {origin.num_diagnostics}; "
            "make them again with `jigsaw-forecast data statistics --recipe`"
        )
    try:
        statistics.check(origin.fields)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    return statistics


def row_weights(grid: Grid) -> Array64:
    """Area weights of the rows that a model computes, mean 1, shape [model rows]."""
    weights = grid.area_weights()[: grid.num_model_lat]
    return np.asarray(weights / weights.mean())


class StatisticsBuilder:
    """Gathers the statistics of this rank's fields, rows and times, chunks in time order."""

    def __init__(
        self, num_fields: int, num_diagnostics: int, weights: Array64, num_lon: int, stride: int = 1
    ) -> None:
        """Starts empty.

        Args:
            num_fields: Prognostic fields held here; they come first in every chunk.
            num_diagnostics: Diagnostic fields held here; they follow.
            weights: Area weights of the rows held here, mean 1 over the whole model grid.
            num_lon: Columns.
            stride: Times between the ends of a tendency: step over the store's interval.
        """
        self._num_fields = num_fields
        self._weights = weights
        self._stride = stride
        shape = (num_fields + num_diagnostics, len(weights), num_lon)
        self.moments = PointMoments(shape)
        self._tail: Array = np.empty((0, num_fields, *shape[1:]), dtype=np.float32)
        self.tendency_count = 0
        self.tendency_squares: Array64 = np.zeros(num_fields)

    def add(self, values: Array) -> None:
        """Adds the next times, shape [T, F + D, Y, X]; follows on the last chunk's."""
        self.moments.add(values)
        joined = np.concatenate([self._tail, values[:, : self._num_fields]])
        change = joined[self._stride :].astype(np.float64) - joined[: -self._stride]
        self.tendency_count += len(change)
        self.tendency_squares += np.einsum("tfyx,y->f", np.square(change), self._weights)
        self._tail = joined[max(len(joined) - self._stride, 0) :].copy()

    def start_again(self) -> None:
        """Forgets the last times, so that no tendency spans a gap."""
        self._tail = self._tail[:0]

    def follow(self, values: Array) -> None:
        """Takes the times before the next ones, which another replica adds; shape as of `add`."""
        self._tail = values[:, : self._num_fields].copy()

    def finish(self, mesh: Mesh, layout: "StatisticsLayout") -> Statistics:
        """The statistics of all fields, times and the whole grid, the same on every rank.

        Args:
            mesh: This rank's mesh; each of its replicas has added its share of the times.
            layout: Where this rank's fields and rows lie in the whole.

        Raises:
            DataError: There are too few times, or a field never varies.

        Communication:
            Over data one all-reduce of this rank's mean map and two of sums; then one of the mean
            map and two of sums over domain and tensor.
        """
        num_points = layout.num_rows * self.moments.mean.shape[-1]
        weights = self._weights[None, :, None] / num_points
        split = self._num_fields
        mean, variances, tendencies = self._join_replicas(mesh, weights)
        tendencies /= num_points
        means = (mean * weights).sum(axis=(1, 2))
        second = (np.square(mean) * weights).sum(axis=(1, 2))

        full_map = np.zeros((layout.num_fields, layout.num_rows, mean.shape[-1]))
        full_map[layout.fields, layout.rows] = mean[:split]
        sums = np.zeros((2, layout.num_fields))
        sums[:, layout.fields] = variances[:split], tendencies
        diagnostic = np.zeros((3, layout.num_diagnostics))
        diagnostic[:, layout.diagnostics] = np.stack([means, variances, second])[:, split:]
        for array in (full_map, sums, diagnostic):
            array[...] = _sum_over(mesh, array, (mesh.domain, mesh.tensor))
        diagnostic_variance = diagnostic[1] + diagnostic[2] - np.square(diagnostic[0])
        statistics = Statistics(
            *(
                np.asarray(array, dtype=np.float32)
                for array in (
                    full_map,
                    np.sqrt(sums[0]),
                    np.sqrt(sums[1]),
                    diagnostic[0],
                    np.sqrt(np.maximum(diagnostic_variance, 0.0)),
                )
            )
        )
        statistics.check(layout.names)
        return statistics

    def _join_replicas(self, mesh: Mesh, weights: Array64) -> tuple[Array64, Array64, Array64]:
        """Mean map, variance about it and mean squared tendency of this piece over all times.

        Where one replica has all times this changes no bit.

        Source: Chan, Golub and LeVeque (1979): each part's squares about its own mean, plus its
        count times the square of that mean's distance from the mean of all.
        """
        moments = self.moments
        counts = _sum_over(
            mesh, np.array([moments.count, self.tendency_count], np.float64), (mesh.data,)
        )
        if counts[0] < MIN_TIMES or not counts[1]:
            raise DataError(f"statistics need {MIN_TIMES} times, found {counts[0]:.0f}")
        mean = _sum_over(mesh, moments.mean * (moments.count / counts[0]), (mesh.data,))
        squares = (moments.squares * weights).sum(axis=(1, 2))
        if mesh.data.size > 1:
            distance = (np.square(moments.mean - mean) * weights).sum(axis=(1, 2))
            squares += moments.count * distance
        sums = _sum_over(mesh, np.concatenate([squares, self.tendency_squares]), (mesh.data,))
        return mean, sums[: len(squares)] / counts[0], sums[len(squares) :] / counts[1]


def _sum_over(mesh: Mesh, array: Array64, axes: Sequence[Axis]) -> Array64:
    """The sum over all ranks of some axes of the mesh, the same bits on each."""
    reduced = all_reduce_sum(torch.from_numpy(array).to(mesh.device), axes)
    return np.asarray(reduced.cpu().numpy())


@dataclass(frozen=True)
class StatisticsLayout:
    """Where this rank's piece lies in the whole.

    Attributes:
        names: Short names of all prognostic, then all diagnostic fields.
        num_fields: Prognostic fields in all.
        num_rows: Rows that the model computes.
        fields: This rank's prognostic fields.
        diagnostics: This rank's diagnostic fields.
        rows: This rank's rows.
    """

    names: Sequence[str]
    num_fields: int
    num_rows: int
    fields: slice
    diagnostics: slice
    rows: slice

    @property
    def num_diagnostics(self) -> int:
        """Diagnostic fields in all."""
        return len(self.names) - self.num_fields
