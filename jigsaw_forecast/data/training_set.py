"""The training set: normalised anomalies of this rank's piece, in memory or read ahead."""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch

from jigsaw_forecast.data.forcings import ForcingMaps
from jigsaw_forecast.data.loading import Batch, ReadAhead, SampleOrder
from jigsaw_forecast.data.sample_times import Places, SampleTimes
from jigsaw_forecast.data.statistics import (
    Statistics,
    StatisticsBuilder,
    StatisticsLayout,
    row_weights,
)
from jigsaw_forecast.data.store import Period, Store
from jigsaw_forecast.errors import DataError
from jigsaw_forecast.fields import Field
from jigsaw_forecast.model.config import ModelConfig
from jigsaw_forecast.model.sample import Pieces
from jigsaw_forecast.parallel.mesh import Mesh
from jigsaw_forecast.parallel.together import together

__all__ = ["Batch", "ReadAhead", "SampleOrder", "TrainingSet"]

Array = npt.NDArray[np.float32]

TIMES_PER_READ = 120  # one shard of the nature run
BYTES_PER_READ = 1 << 26  # statistics hold several times as much in float64

Advance = Callable[[int], object]  # called with the number of times just read; may raise


class TrainingSet:
    """One period of a store as this rank sees it: its fields, its rows, normalised.

    Its samples are those of `SampleTimes`.

    Attributes:
        times: Valid times of the period, datetime64[s], ascending.
        gaps: Where times are missing, as text.
    """

    def __init__(
        self,
        store: Store,
        config: ModelConfig,
        pieces: Pieces,
        period: Period,
        forcing_maps: ForcingMaps,
        *,
        allow_gaps: bool = False,
    ) -> None:
        """Checks the period; reads nothing yet.

        Args:
            store: Opened with all fields of the model.
            config: The architecture.
            pieces: This rank's piece of the sample.
            period: Which times.
            forcing_maps: Of this rank's forcings and rows.
            allow_gaps: Use the whole sequences between missing times rather than refuse them.

        Raises:
            DataError: The store's grid is not the model's, or times are missing.
        """
        if store.grid != config.grid_object:
            raise DataError(
                f"{store.path}: grid {store.grid.name}, but the recipe's model has {config.grid}"
            )
        self._store = store
        self._samples = SampleTimes(store, period, config.step_hours, allow_gaps=allow_gaps)
        self.times, self._indices = self._samples.times, self._samples.indices
        self.gaps = tuple(self._samples.gaps)
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

    @property
    def disk_bytes_read(self) -> int:
        """Bytes that the store has taken from files so far."""
        return self._store.disk_bytes_read

    def num_samples(self, num_steps: int) -> int:
        """How many starts have `num_steps` steps after them within the period."""
        return len(self._samples.starts(num_steps))

    def load(self, advance: Advance | None = None) -> None:
        """Reads the whole piece into memory, float32, in physical units until `normalise`."""
        self._values = np.empty((len(self.times), *self._map_shape()), dtype=np.float32)
        for part in self._parts():
            self._store.read_into(self._values[part], self._indices[part], self.fields, self._rows)
            if advance is not None:
                advance(part.stop - part.start)

    def build_statistics(
        self,
        config: ModelConfig,
        mesh: Mesh,
        advance: Advance | None = None,
        num_times: int | None = None,
    ) -> Statistics:
        """Statistics over the period, the same on every rank; before `normalise`.

        Each replica reads its share of the times, one stretch of the period.

        Args:
            config: The architecture.
            mesh: This rank's mesh.
            advance: Called with the number of times after each part.
            num_times: How many times to read, in pairs one step apart and evenly spread; all by
                default.

        Communication:
            The ranks agree that all have read, then the all-reduces of `StatisticsBuilder.finish`.
        """
        assert self._scale is None, "values are normalised already"
        weights = row_weights(self._store.grid)[self._rows]
        pairs = self._samples.spread_pairs(num_times)
        builder = StatisticsBuilder(
            len(self._prognostic),
            len(self._diagnostic),
            weights,
            self._store.grid.num_lon,
            self._samples.stride if pairs is None else 1,
        )

        parts = self._contiguous_places() if pairs is None else [(pair, 0) for pair in pairs]
        index, size = mesh.data.index, mesh.data.size
        own = parts[len(parts) * index // size : len(parts) * (index + 1) // size]

        def add_parts() -> None:
            for number, (places, num_before) in enumerate(own):
                if not num_before:
                    builder.start_again()
                elif not number:  # the replica before this one has added these
                    first = places[0] - min(num_before, self._samples.stride)
                    builder.follow(self._physical(np.arange(first, places[0])))
                builder.add(self._physical(places))
                if advance is not None:
                    advance(len(places))

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
        """The samples of these numbers; may be called by any thread.

        Args:
            starts: Numbers of samples, below `num_samples(num_steps)`.
            num_steps: Steps after the start.
        """
        assert self._scale is not None, "values are not normalised"
        places = self._samples.places(starts, num_steps)
        values = torch.from_numpy(self._normalised(places))
        num_fields = len(self._prognostic)
        forcings = np.stack([[self._forcing(place) for place in row[:-1]] for row in places])
        return Batch(
            states=values[:, :, :num_fields],
            diagnostics=values[:, 1:, num_fields:],
            forcings=torch.from_numpy(forcings),
        )

    def valid_times(
        self, starts: npt.NDArray[np.int64], num_steps: int
    ) -> npt.NDArray[np.datetime64]:
        """Valid times of these samples, shape [B, K + 1]; arguments as of `batch`."""
        return self.times[self._samples.places(starts, num_steps)]

    def _normalised(self, places: Places) -> Array:
        """Values at these places [B, K + 1], shape [B, K + 1, F + D, Y, X]."""
        if self._values is not None:
            return self._values[places]
        shift, scale = self._shift, self._scale
        assert shift is not None
        assert scale is not None

        def normalise(field: int, rows: slice, values: Array) -> None:
            values -= shift[field, rows]
            values /= scale[field]

        out = np.empty((places.size, *self._map_shape()), dtype=np.float32)
        indices = self._indices[places.ravel()]
        self._store.read_into(out, indices, self.fields, self._rows, normalise)
        return out.reshape(*places.shape, *self._map_shape())

    def _forcing(self, place: int) -> Array:
        """This rank's forcings at a time, shape [G_j, Y_i, X]."""
        return self._forcing_maps.at(self.times[place])

    def _physical(self, places: Places) -> Array:
        """Values before `normalise`, shape [T, F + D, Y, X]."""
        if self._values is not None:
            return self._values[places]
        return self._store.read(self._indices[places], self.fields, self._rows)

    def _map_shape(self) -> tuple[int, int, int]:
        return len(self.fields), self._rows.stop - self._rows.start, self._store.grid.num_lon

    def _contiguous_places(self) -> list[tuple[Places, int]]:
        """Places of each part, and how many come before it without a gap."""
        size = self._times_per_part()
        return [
            (np.arange(start, min(start + size, sequence.stop)), start - sequence.start)
            for sequence in self._samples.sequences
            for start in range(sequence.start, sequence.stop, size)
        ]

    def _parts(self) -> Iterator[slice]:
        size = self._times_per_part()
        for start in range(0, len(self.times), size):
            yield slice(start, min(start + size, len(self.times)))

    def _times_per_part(self) -> int:
        num_bytes = int(np.prod(self._map_shape())) * 4
        return max(1, min(TIMES_PER_READ, BYTES_PER_READ // max(num_bytes, 1)))
