"""Archives seen on a coarser grid: area-weighted means, as WeatherBench 2 regrids."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import sparse

from jigsaw_forecast.data.regrid import latitude_weights, longitude_weights
from jigsaw_forecast.errors import GridError
from jigsaw_forecast.grid import Grid
from jigsaw_forecast.verify.archive import (
    AnyMaps,
    Archive,
    ArchiveGrid,
    ArchiveVariable,
    Mask,
)


class Regridder:
    """First-order conservative means in float64; missing points are left out of a cell's mean.

    Source: Jones (1999), Monthly Weather Review 127, 2204; weatherbench2.regridding skips missing
    points in the same way.
    """

    def __init__(self, source: ArchiveGrid, target: Grid) -> None:
        """Makes the weights.

        Raises:
            GridError: The target is finer than the source.
        """
        self.grid = ArchiveGrid(target.latitudes, target.longitudes)
        rows, columns = source.shape
        if target.num_lat > rows or target.num_lon > columns:
            raise GridError(
                f"resolution {target.name} is finer than {source}: scores are made on the coarser "
                "grid of the two"
            )
        matrix = latitude_weights(source.latitudes, target.latitudes)
        # the two added columns, for interpolation beyond the last row, are zero when coarsening
        self._rows = sparse.csr_matrix(matrix[:, 1:-1]) if matrix is not None else None
        self._columns = longitude_weights(source.longitudes, target.longitudes)

    def __call__(self, values: AnyMaps) -> AnyMaps:
        """Regrids maps of shape [..., Y, X]."""
        if self._rows is None and self._columns is None:
            return values
        maps = values.reshape(-1, *values.shape[-2:])
        found = np.stack([self._regrid(np.asarray(one, dtype=np.float64)) for one in maps])
        return found.reshape(*values.shape[:-2], *self.grid.shape)

    def _regrid(self, field: AnyMaps) -> AnyMaps:
        is_missing = np.isnan(field)
        if not is_missing.any():
            return self._mean(field)
        count = self._mean((~is_missing).astype(np.float64))
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(self._mean(np.where(is_missing, 0.0, field)) / count)

    def _mean(self, field: AnyMaps) -> AnyMaps:
        if self._rows is not None:
            field = self._rows @ field
        if self._columns is not None:
            field = (self._columns @ field.T).T
        return np.ascontiguousarray(field)


class RegriddedArchive:
    """An archive on another grid."""

    def __init__(self, archive: Archive, target: Grid) -> None:
        """Wraps it.

        Raises:
            GridError: The target is finer than the archive's grid.
        """
        self._archive = archive
        self._regrid = Regridder(archive.grid, target)
        self.path: Path = archive.path
        self.grid = self._regrid.grid
        self.members = archive.members
        self.attributes: Mapping[str, str] = archive.attributes
        self.skipped: Mapping[str, str] = archive.skipped
        self.variables: Mapping[str, ArchiveVariable] = archive.variables

    def static(self, name: str) -> AnyMaps | None:
        """A field without time, regridded."""
        found = self._archive.static(name)
        return None if found is None else self._regrid(found)

    def read(self, name: str, init: int, leads: Sequence[int], levels: Sequence[int]) -> AnyMaps:
        """Maps of one variable from one initial time: see `Archive.read`."""
        return self._regrid(self._archive.read(name, init, leads, levels))

    def read_series(
        self, name: str, inits: Sequence[int], lead: int, levels: Sequence[int]
    ) -> AnyMaps:
        """Maps of one lead time: see `Archive.read_series`."""
        return self._regrid(self._archive.read_series(name, inits, lead, levels))

    def preferred_leads(self, name: str) -> int:
        """As the archive."""
        return self._archive.preferred_leads(name)

    def absent(self, name: str) -> Mask | None:
        """As the archive."""
        return self._archive.absent(name)
