"""Reads netCDF (classic and netCDF-4) through xarray."""

import warnings
from pathlib import Path

import netCDF4
import numpy as np
import numpy.typing as npt
import xarray as xr

from jigsaw_forecast.data.array_source import ArraySource, FieldArray, Selection
from jigsaw_forecast.data.classic_netcdf import why_not_whole
from jigsaw_forecast.errors import DataError


class NetcdfSource(ArraySource):
    """A netCDF file; values are read only where asked for."""

    def __init__(self, path: Path) -> None:
        """Opens the file and reads its coordinates.

        Raises:
            DataError: The file is damaged or truncated or its times cannot be decoded.
        """
        if why := why_not_whole(path):
            raise DataError(f"{path} is {why}; fetch it again")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", xr.SerializationWarning)
                self._dataset = xr.open_dataset(
                    path, engine="netcdf4", decode_timedelta=True, cache=False
                )
        except (OSError, RuntimeError, ValueError, AttributeError) as fault:
            raise DataError(
                f"{path} cannot be read as netCDF: {fault}; it may be truncated or damaged"
            ) from None
        if not self._dataset.data_vars and (groups := _groups(path)):
            raise DataError(
                f"{path} holds no arrays of its own, only groups: {', '.join(groups)}; make a file "
                f"of one of them (ncks -G : -g {groups[0]} {path.name} state.nc)"
            )
        self.bytes_read = 0
        super().__init__(path, self._dataset)

    def _load(self, array: FieldArray, selection: Selection) -> npt.NDArray[np.floating]:
        part = self._dataset[array.name].isel(dict(zip(array.dims, selection, strict=True)))
        try:
            values = np.asarray(part.values)
        except (OSError, RuntimeError) as fault:
            raise DataError(
                f"{self.path}: array {array.name} cannot be read: {fault}; the file is damaged"
            ) from None
        on_disk = part.encoding.get("dtype") or part.dtype
        self.bytes_read += values.size * np.dtype(on_disk).itemsize
        return values if values.dtype.kind == "f" else values.astype(np.float64)


def _groups(path: Path) -> list[str]:
    """Names of the groups of a netCDF-4 file."""
    with netCDF4.Dataset(path) as data:
        return sorted(data.groups)
