"""Reads zarr stores, version 2 and 3, so that a missing chunk shows as missing values.

zarr returns the fill value for a chunk that does not exist, without error. Arrays are therefore
opened with another fill value (NaN where the type has one), which also covers the inner chunks
of shards; xarray reads the coordinates and decodes scale, offset and masks.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr
from zarr.storage import LocalStore

from jigsaw_forecast.data.array_source import ArraySource, FieldArray, Selection
from jigsaw_forecast.data.counting_store import CountingStore
from jigsaw_forecast.errors import DataError

AnyArray = zarr.Array[Any]

_SCALING = ("scale_factor", "add_offset", "_FillValue", "missing_value", "_Unsigned")


class ZarrSource(ArraySource):
    """A zarr store on disk; only the chunks of the fields asked for are read."""

    def __init__(self, path: Path) -> None:
        """Opens the store and reads its coordinates.

        Raises:
            DataError: The store is damaged or its times cannot be decoded.
        """
        self._store = CountingStore(LocalStore(path, read_only=True))
        try:
            dataset = xr.open_zarr(
                self._store,
                consolidated=is_consolidated(path),
                chunks=None,
                decode_timedelta=True,
                mask_and_scale=True,
            )
            group = zarr.open_group(self._store, mode="r")
            groups = sorted(name for name, _ in group.groups())
            if groups and not dataset.data_vars:
                raise DataError(
                    f"{path} holds no arrays of its own, only groups: give one of "
                    f"{', '.join(str(path / name) for name in groups)}"
                )
            self._stored = {str(name): group[str(name)] for name in dataset.data_vars}
            super().__init__(path, dataset)
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as fault:
            raise DataError(f"{path} cannot be read as zarr: {fault}") from None

    @property
    def bytes_read(self) -> int:
        """Bytes of chunks and metadata read so far."""
        return self._store.bytes_read

    def _load(self, array: FieldArray, selection: Selection) -> npt.NDArray[np.floating]:
        stored = self._stored[array.name]
        assert isinstance(stored, zarr.Array)
        try:
            raw, is_absent = _read_marking_absent(stored, selection)
        except (OSError, RuntimeError, ValueError) as fault:
            raise DataError(
                f"{self.path}: array {array.name} cannot be read: {fault}; a chunk is damaged"
            ) from None
        attrs = {key: value for key, value in stored.attrs.items() if key in _SCALING}
        mask_value = _mask_value(stored)
        if mask_value is not None:
            attrs.setdefault("_FillValue", mask_value)
        variable = xr.Variable([f"dim_{i}" for i in range(raw.ndim)], raw, attrs)
        decoded = np.asarray(xr.conventions.decode_cf_variable(array.name, variable).values)
        values = decoded if decoded.dtype.kind == "f" else decoded.astype(np.float64)
        if is_absent is not None:
            values = np.where(is_absent, np.nan, values)
        return values


def is_consolidated(path: Path) -> bool:
    """Whether all metadata lies in one file; xarray warns where it is left to find out."""
    if (path / ".zmetadata").exists():
        return True
    try:
        root = json.loads((path / "zarr.json").read_bytes())
    except (OSError, ValueError):
        return False
    return bool(root.get("consolidated_metadata"))


def _read_marking_absent(
    stored: AnyArray, selection: Selection
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | None]:
    """Raw values, and where they stand for chunks that do not exist.

    Floats show absent chunks as NaN by themselves. Integers are read with the type's least value
    for a fill and, only where that value occurs, once more with its greatest: what changes with
    the fill is absent.
    """
    if stored.dtype.kind == "f":
        return _read_filled(stored, selection, np.nan), None
    limits = np.iinfo(stored.dtype)
    raw = _read_filled(stored, selection, limits.min)
    if not (raw == limits.min).any():
        return raw, None
    again = _read_filled(stored, selection, limits.max)
    return raw, raw != again


def _read_filled(stored: AnyArray, selection: Selection, fill: float) -> npt.NDArray[Any]:
    metadata = replace(stored.metadata, fill_value=stored.dtype.type(fill))
    refilled = zarr.Array(replace(stored.async_array, metadata=metadata))
    return np.asarray(refilled.get_orthogonal_selection(cast(Any, selection)))


def _mask_value(stored: AnyArray) -> Any:
    """The fill value where it marks missing points: xarray's convention for zarr version 2.

    A fill value of zero is zarr's default and marks nothing; zarr version 3 has `_FillValue`
    among its attributes instead.
    """
    fill = stored.fill_value
    if stored.metadata.zarr_format != 2 or fill is None or fill == 0 or fill != fill:
        return None
    return fill
