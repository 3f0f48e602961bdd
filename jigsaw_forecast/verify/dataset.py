"""Opens zarr stores and netCDF files, and what xarray does not tell about them."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from jigsaw_forecast.data.classic_netcdf import why_not_whole
from jigsaw_forecast.data.conventions import Axis, axis_of
from jigsaw_forecast.data.zarr_store import is_consolidated
from jigsaw_forecast.errors import DataError

_SCALING = ("scale_factor", "add_offset", "missing_value", "_Unsigned")


def open_dataset(path: Path) -> xr.Dataset:
    """A zarr store or netCDF file, lazily, its times decoded.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", xr.SerializationWarning)
            if path.is_dir():
                data: xr.Dataset = xr.open_zarr(
                    path, consolidated=is_consolidated(path), chunks=None, decode_timedelta=True
                )
                return data
            if why := why_not_whole(path):
                raise DataError(f"{path} is {why}; fetch it again")
            return xr.open_dataset(path, engine="netcdf4", decode_timedelta=True, cache=False)
    except (OSError, RuntimeError, ValueError, KeyError, AttributeError, TypeError) as fault:
        kind = "zarr" if path.is_dir() else "netCDF"
        raise DataError(
            f"{path} cannot be read as {kind}: {fault}; it may be truncated or damaged"
        ) from None


def with_lead_times(data: xr.Dataset) -> xr.Dataset:
    """Lead times without units of time are hours, as WeatherBench stores are often written."""
    for name in data.coords:
        coordinate = data.coords[name]
        is_number = coordinate.dtype.kind in "iuf"
        if not is_number or axis_of(str(name), coordinate) is not Axis.LEAD_TIME:
            continue
        seconds = np.rint(np.asarray(coordinate.values, dtype=np.float64) * 3600.0)
        spans = seconds.astype("int64").astype("timedelta64[s]").astype("timedelta64[ns]")
        data = data.assign_coords({name: (coordinate.dims, spans)})
    return data


def plain_zarr_arrays(path: Path, data: xr.Dataset) -> dict[str, "zarr.Array[Any]"]:
    """Plain float arrays of a store, in which a chunk that does not exist reads as NaN.

    xarray would return the fill value, often zero, for such a chunk. Scaled or masked arrays are
    left to xarray.
    """
    if not path.is_dir():
        return {}
    group = zarr.open_group(path, mode="r", use_consolidated=False)
    found = {}
    for name in map(str, data.data_vars):
        stored = group[name]
        assert isinstance(stored, zarr.Array)
        masks = stored.attrs.get("_FillValue")
        is_masked = isinstance(masks, (int, float)) and masks == masks
        if stored.dtype.kind != "f" or is_masked or any(key in stored.attrs for key in _SCALING):
            continue
        fill = stored.fill_value
        if stored.metadata.zarr_format == 2 and fill is not None and fill == fill and fill != 0:
            continue  # marks missing points
        metadata = replace(stored.metadata, fill_value=stored.dtype.type(np.nan))
        found[name] = zarr.Array(replace(stored.async_array, metadata=metadata))
    return found
