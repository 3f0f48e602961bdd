"""The training set: normalised anomalies of this rank's piece, in memory or read ahead."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from jigsaw_forecast.data.forcings import ForcingMaps
from jigsaw_forecast.data.statistics import (
    Statistics,
    StatisticsBuilder,
    StatisticsLayout,
    row_weights,
)
from jigsaw_forecast.data.weather_store import Indices, Period, WeatherStore
from jigsaw_forecast.errors import DataError
from jigsaw_forecast.fields import Field
from jigsaw_forecast.model.config import ModelConfig
from jigsaw_forecast.model.weather_mixer import Pieces
from jigsaw_forecast.parallel.collectives import together
from jigsaw_forecast.parallel.mesh import Mesh

Array = npt.NDArray[np.float32]

TIMES_PER_READ = 120  # one shard of the nature run; 44 MB of 45 maps at 64x32
READS_AHEAD = 2

Advance = Callable[[int], object]  # called with the number of times just read; may raise


@dataclass(frozen=True)
class Batch:
    """Samples of one train step, normalised: a start and the times that follow it.

    Attributes:
        states: Prognostic fields at steps 0..K, shape [B, K + 1, F_j, Y_i, X].
        diagnostics: Diagnostics at steps 1..K, shape [B, K, D_j, Y_i, X].
        forcings: Forcings at steps 0..K-1, shape [B, K, G_j, Y_i, X].
    """

    states: torch.Tensor
    diagnostics: torch.Tensor
    forcings: torch.Tensor

    def pinned(self) -> "Batch":
        """A copy in page-locked memory, from which a GPU takes it while the CPU goes on."""
        return Batch(*(part.pin_memory() for part in self._parts()))

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device."""
        return Batch(*(part.to(device, non_blocking=True) for part in self._parts()))

    def _parts(self) -> tuple[torch.Tensor, ...]:
        return self.states, self.diagnostics, self.forcings


class TrainingSet:
    """One period of a store as this rank sees it: its fields, its rows, normalised.

    Attributes:
        times: Valid times of the period, datetime64[s], regular.
        stride: Times of the store between two steps of the model.
        num_bytes_read: Bytes of values taken from the store.
    """

    def __init__(
        self,
        store: WeatherStore,
        config: ModelConfig,
        pieces: Pieces,
        period: Period,
        forcing_maps: ForcingMaps,
    ) -> None:
        """Checks the period; reads nothing yet.

        Args:
            store: Opened with all fields of the model.
            config: The architecture.
            pieces: This rank's piece of the sample.
            period: Which times.
            forcing_maps: Of this rank's forcings and rows.

        Raises:
            DataError: The store's grid is not the model's, or times are missing.
        """
        if store.grid != config.grid_object:
            raise DataError(
                f"{store.path}: grid {store.grid.name}, but the recipe's model has {config.grid}"
            )
        self._store = store
        self._indices = store.indices(period)
        self.times = store.times[self._indices]
        interval = np.diff(self.times[:2])[0] if self.times.size > 1 else np.timedelta64(6, "h")
        store.check_gaps(period, interval)
        step = np.timedelta64(config.step_hours, "h")
        if step % interval:
            raise DataError(f"{store.path}: times are {interval} apart, the model steps {step}")
        self.stride = int(step // interval)
        self._rows = pieces.rows
        self._prognostic = config.prognostic_fields[pieces.fields]
        self._diagnostic = config.diagnostic_fields[pieces.diagnostics]
        self._pieces = pieces
        self._forcing_maps = forcing_maps
        self._shift: Array | None = None
        self._scale: Array | None = None
        self._values: Array | None = None

    @property
    def fields(self) -> tuple[Field, ...]:
        """This rank's prognostic, then diagnostic fields, as they lie in memory."""
        return self._prognostic + self._diagnostic

    @property
    def num_bytes_read(self) -> int:
        """Bytes of values taken from the store so far."""
        return self._store.bytes_read

    def num_samples(self, num_steps: int) -> int:
        """How many starts have `num_steps` steps after them within the period."""
        return max(len(self.times) - num_steps * self.stride, 0)

    def load(self, advance: Advance | None = None) -> None:
        """Reads the whole piece into memory, float32, in physical units until `normalise`."""
        shape = (len(self.times), len(self.fields), self._rows.stop - self._rows.start)
        self._values = np.empty((*shape, self._store.grid.num_lon), dtype=np.float32)
        for part in self._parts():
            self._values[part] = self._read(self._indices[part])
            if advance is not None:
                advance(part.stop - part.start)

    def build_statistics(
        self, config: ModelConfig, mesh: Mesh, advance: Advance | None = None
    ) -> Statistics:
        """Statistics over the whole period, the same on every rank; before `normalise`.

        Communication:
            The ranks agree that all have read, then the all-reduces of `StatisticsBuilder.finish`.
        """
        assert self._scale is None, "values are normalised already"
        weights = row_weights(self._store.grid)[self._rows]
        builder = StatisticsBuilder(
            len(self._prognostic),
            len(self._diagnostic),
            weights,
            self._store.grid.num_lon,
            self.stride,
        )

        def add_parts() -> None:
            loaded = self._values
            for part in self._parts():
                builder.add(self._read(self._indices[part]) if loaded is None else loaded[part])
                if advance is not None:
                    advance(part.stop - part.start)

        together(mesh, add_parts)
        layout = StatisticsLayout(
            names=(*config.fields, *config.diagnostics),
            num_fields=len(config.fields),
            num_rows=self._store.grid.num_model_lat,
            fields=self._pieces.fields,
            diagnostics=self._pieces.diagnostics,
            rows=self._pieces.rows,
        )
        return builder.finish(mesh, layout)

    def normalise(self, statistics: Statistics) -> None:
        """From here on values are anomalies over their deviation; those in memory in place."""
        pieces = self._pieces
        mean = statistics.mean[pieces.fields, pieces.rows]
        diagnostic_mean = statistics.diagnostic_mean[pieces.diagnostics, None, None]
        shape = (len(self._diagnostic), *mean.shape[1:])
        self._shift = np.concatenate([mean, np.broadcast_to(diagnostic_mean, shape)])
        std = (statistics.std[pieces.fields], statistics.diagnostic_std[pieces.diagnostics])
        self._scale = np.concatenate(std)[:, None, None]
        if self._values is not None:
            for part in self._parts():
                self._values[part] -= self._shift
                self._values[part] /= self._scale

    def batch(self, starts: npt.NDArray[np.int64], num_steps: int) -> Batch:
        """The samples that start at these places of `times`.

        Args:
            starts: Places, below `num_samples(num_steps)`.
            num_steps: Steps after the start.
        """
        assert self._scale is not None, "values are not normalised"
        offsets = np.arange(num_steps + 1) * self.stride
        places = np.asarray(starts)[:, None] + offsets
        values = torch.from_numpy(np.stack([self._normalised(row) for row in places]))
        num_fields = len(self._prognostic)
        forcings = np.stack([[self._forcing(place) for place in row[:-1]] for row in places])
        return Batch(
            states=values[:, :, :num_fields],
            diagnostics=values[:, 1:, num_fields:],
            forcings=torch.from_numpy(forcings),
        )

    def _normalised(self, places: npt.NDArray[np.int64]) -> Array:
        if self._values is not None:
            return self._values[places]
        assert self._shift is not None
        assert self._scale is not None
        values: Array = (self._read(self._indices[places]) - self._shift) / self._scale
        return values

    def _forcing(self, place: int) -> Array:
        """This rank's forcings at a time, shape [G_j, Y_i, X]."""
        return self._forcing_maps.at(self.times[place])

    def _read(self, indices: Indices) -> Array:
        return self._store.read(indices, self.fields, self._rows)

    def _parts(self) -> Iterator[slice]:
        for start in range(0, len(self.times), TIMES_PER_READ):
            yield slice(start, min(start + TIMES_PER_READ, len(self.times)))


class SampleOrder:
    """A seeded order of samples, cut over data replicas; a pure function of the position.

    The order does not depend on the mesh: replica r of R takes the r-th part of each global batch.
    """

    def __init__(self, num_samples: int, seed: tuple[int, ...]) -> None:
        """Takes the number of samples and what the order depends on.

        Raises:
            DataError: There is no sample.
        """
        if num_samples < 1:
            raise DataError("the training period is shorter than one rollout of the recipe")
        self._num_samples = num_samples
        self._seed = seed
        self._epoch = -1
        self._permutation: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def starts(self, step: int, global_batch: int, mesh: Mesh) -> npt.NDArray[np.int64]:
        """This replica's samples of train step `step`, counted from 0 within the phase."""
        local = global_batch // mesh.data.size
        first = step * global_batch + mesh.data.index * local
        return np.array([self._sample(first + place) for place in range(local)], dtype=np.int64)

    def _sample(self, position: int) -> int:
        epoch, place = divmod(position, self._num_samples)
        if epoch != self._epoch:
            generator = np.random.default_rng([*self._seed, epoch])
            self._permutation = generator.permutation(self._num_samples)
            self._epoch = epoch
        return int(self._permutation[place])


class ReadAhead:
    """Batches in order, made by a thread while the last one is computed with."""

    def __init__(self, make: Callable[[int], Batch], start: int, stop: int) -> None:
        """Begins with the batch of step `start`; `make` runs in one thread only."""
        self._make = make
        self._next, self._stop = start, stop
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead")
        self._waiting: list[Future[Batch]] = []
        self._fill()

    def take(self) -> Batch:
        """The next batch.

        Raises:
            DataError: What reading it raised.
        """
        future = self._waiting.pop(0)
        self._fill()
        return future.result()

    def close(self) -> None:
        """Ends the thread."""
        self._pool.shutdown(cancel_futures=True)

    def _fill(self) -> None:
        while len(self._waiting) < READS_AHEAD and self._next < self._stop:
            self._waiting.append(self._pool.submit(self._make, self._next))
            self._next += 1
