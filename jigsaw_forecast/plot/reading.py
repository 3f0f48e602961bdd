"""Maps of a forecast product, whatever its kind, for drawing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import xarray as xr

from jigsaw_forecast.data.conversions import to_si
from jigsaw_forecast.data.grib import GribSource
from jigsaw_forecast.data.records import FieldRecord
from jigsaw_forecast.data.zarr_store import is_consolidated
from jigsaw_forecast.errors import DataError
from jigsaw_forecast.fields import VARIABLES, Field, LevelType, find_variable
from jigsaw_forecast.plot.origin import recorded_attributes

FloatArray = npt.NDArray[np.float64]
PARTIAL_SUFFIX = ".partial"  # of a product until all of its lead times are written
_DIMS = ("time", "prediction_timedelta", "latitude", "longitude")
_MEMBERS = "number"  # of a forecast store
GRIB_SUFFIXES = (".grib", ".grib2", ".grb", ".grb2")


@dataclass(frozen=True)
class Map:
    """One field at one time.

    Attributes:
        values: SI units of the field table, NaN where absent, shape [Y, X].
        latitudes: Degrees north, descending, shape [Y].
        longitudes: Degrees east, ascending in [0, 360), shape [X].
    """

    values: FloatArray
    latitudes: FloatArray
    longitudes: FloatArray


class ForecastMaps(Protocol):
    """The maps of one forecast product.

    Attributes:
        fields: Fields that it holds.
        init_times: Initial times, datetime64[s].
        lead_times: Lead times, ascending, timedelta64[s].
        attributes: Provenance, where the kind of file can hold it.
        member: Which of an ensemble it reads, None where there are none.
    """

    fields: tuple[Field, ...]
    init_times: tuple[np.datetime64, ...]
    lead_times: tuple[np.timedelta64, ...]
    attributes: Mapping[str, str]
    member: int | None

    def read(self, chosen: Field, init: np.datetime64, lead: np.timedelta64) -> Map | None:
        """One map, or None where the product has no value for this time."""


def open_maps(path: Path, member: int | None = None) -> ForecastMaps:
    """The maps of a forecast in zarr, netCDF or GRIB.

    Args:
        path: The product.
        member: Which of an ensemble, None for the first.

    Raises:
        DataError: There is no forecast under this name, it is not finished, cannot be read or
            holds no such member.
    """
    if not path.exists():
        raise DataError(f"missing forecast {path}")
    if path.suffix == PARTIAL_SUFFIX:
        raise DataError(
            f"{path} is not finished: its run is still writing it or has died; expected "
            f"{path.with_suffix('')}, which is there when the run has ended well"
        )
    if path.suffix in GRIB_SUFFIXES:
        return _GribMaps(path, member)
    return _ArrayMaps(path, member)


class _ArrayMaps:
    """A forecast store or a netCDF file, opened by xarray and read map by map."""

    def __init__(self, path: Path, member: int | None) -> None:
        try:
            data = (
                xr.open_zarr(path, consolidated=is_consolidated(path))
                if path.is_dir()
                else xr.open_dataset(path)
            )
        except (OSError, ValueError, KeyError) as error:
            # xarray's own words are a page on what could be installed
            is_data = path.is_dir() or path.suffix == ".nc"
            hint = "it may be damaged" if is_data else "expected .zarr, .nc, .grib or .grib2"
            raise DataError(
                f"{path} is no forecast: neither a zarr store nor a netCDF file; {hint}"
            ) from error
        lacking = [dim for dim in _DIMS if dim not in data.coords]
        if lacking:
            raise DataError(
                f"{path} is not a forecast: missing dims {', '.join(lacking)}; it has "
                f"{', '.join(map(str, data.dims))}"
            )
        for dim in _DIMS[:2]:  # of one time, which may have no dim
            data = data if dim in data.dims else data.expand_dims(dim)
        numbers = [int(number) for number in np.atleast_1d(data.get(_MEMBERS, []))]
        self.member = _choose_member(path, numbers, member)
        if _MEMBERS in data.dims:
            data = data.sel({_MEMBERS: self.member})
        self._data = data.sortby("latitude", ascending=False).sortby("longitude")
        self.attributes: Mapping[str, str] = {
            str(key): str(value) for key, value in data.attrs.items()
        }
        self.init_times = tuple(np.atleast_1d(data["time"].values).astype("datetime64[s]"))
        leads = np.atleast_1d(data["prediction_timedelta"].values)
        if leads.dtype.kind != "m":
            raise DataError(f"{path}: prediction_timedelta is {leads.dtype}, expected a timedelta")
        self.lead_times = tuple(np.sort(leads.astype("timedelta64[s]")))
        self.fields = tuple(_fields_of(data))
        if not self.fields:
            raise DataError(f"{path} holds no field that can be drawn")

    def read(self, chosen: Field, init: np.datetime64, lead: np.timedelta64) -> Map | None:
        place: dict[str, object] = {"time": init, "prediction_timedelta": lead}
        if chosen.level_hpa:
            place["level"] = chosen.level_hpa
        data = self._data[chosen.variable].sel(place).transpose("latitude", "longitude")
        values = data.values.astype(np.float64)
        if not np.isfinite(values).any():
            return None
        return Map(
            values,
            self._data["latitude"].values.astype(np.float64),
            self._data["longitude"].values.astype(np.float64),
        )


def _fields_of(data: xr.Dataset) -> list[Field]:
    fields = []
    for name, variable in VARIABLES.items():
        if name not in data or set(data[name].dims) - {"level"} != set(_DIMS):
            continue
        if variable.level_type is LevelType.SURFACE:
            fields.append(Field(name))
        elif "level" in data[name].dims:
            fields += [Field(name, int(level)) for level in data["level"].values]
    # all variables share one level axis, so not every level was written for each
    written = str(data.attrs.get("fields", "")).split()
    return [one for one in fields if not written or one.short_name in written]


@dataclass
class _GribMaps:
    """A GRIB file; precipitation, which no forecast starts from, is drawn all the same."""

    path: Path
    member: int | None
    fields: tuple[Field, ...] = ()
    init_times: tuple[np.datetime64, ...] = ()
    lead_times: tuple[np.timedelta64, ...] = ()
    attributes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._source = GribSource(self.path)
        self._records: dict[tuple[Field, np.datetime64, np.timedelta64], FieldRecord] = {}
        drawable = [
            (found, record)
            for record in self._source.records()
            if (found := _field_of(record)) is not None and record.axes is not None
        ]
        numbers = sorted({r.member for _, r in drawable if r.member is not None})
        self.member = _choose_member(self.path, numbers, self.member)
        for found, record in drawable:
            if record.member in (self.member, None):
                key = (found, record.init_time, _seconds(record.lead_time))
                self._records.setdefault(key, record)
        if not self._records:
            raise DataError(f"{self.path} holds no field that can be drawn")
        self.attributes = recorded_attributes(self.path)
        self.fields = tuple(dict.fromkeys(key[0] for key in self._records))
        self.init_times = tuple(sorted({key[1] for key in self._records}))
        self.lead_times = tuple(sorted({key[2] for key in self._records}))

    def read(self, chosen: Field, init: np.datetime64, lead: np.timedelta64) -> Map | None:
        record = self._records.get((chosen, init, _seconds(lead)))
        if record is None:
            return None
        assert record.axes is not None
        conversion = to_si(chosen.variable, record.units)
        if conversion is None:
            raise DataError(f"{self.path}: {record.where} has unknown units {record.units}")
        (values,) = self._source.read([record])
        return Map(
            values.astype(np.float64) * conversion[0] + conversion[1],
            record.axes.latitudes,
            record.axes.longitudes,
        )


def _choose_member(path: Path, numbers: Sequence[int], wanted: int | None) -> int | None:
    """The member to read: the one that is wanted, or the first."""
    if wanted is None:
        return numbers[0] if numbers else None
    if wanted in numbers:
        return wanted
    held = f"members {', '.join(map(str, numbers))}" if numbers else "no members"
    raise DataError(f"{path}: missing member {wanted}; it has {held}")


def _seconds(lead: np.timedelta64) -> np.timedelta64:
    return np.timedelta64(lead, "s")


def _field_of(record: FieldRecord) -> Field | None:
    # by short name for precipitation, which is no input and so has no name from the reader
    variable = find_variable(record.variable)
    if variable is None:
        return None
    if variable.level_type is LevelType.SURFACE:
        return Field(variable.name)
    return Field(variable.name, int(record.level)) if record.level else None
