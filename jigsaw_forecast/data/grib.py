"""Reads GRIB 1 and 2 with eccodes: headers first, then only the fields that are asked for."""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import eccodes
import numpy as np
import numpy.typing as npt

from jigsaw_forecast.data.eccodes_log import silence_eccodes
from jigsaw_forecast.data.grib_grid import GribGrid, read_grid
from jigsaw_forecast.data.grib_messages import GribField, find_fields, read_field
from jigsaw_forecast.data.grib_packing import why_not_timed, why_not_unpackable
from jigsaw_forecast.data.records import (
    DIAGNOSTIC_HOURS,
    DIAGNOSTIC_ONLY,
    GEOPOTENTIAL_HEIGHT,
    NOT_A_TIME,
    PRESSURE_LEVEL,
    RELATIVE_HUMIDITY,
    SURFACE_HEIGHT,
    FieldRecord,
    FieldStatistics,
    Float32Array,
)
from jigsaw_forecast.errors import DataError
from jigsaw_forecast.fields import VARIABLES, LevelType, Role

_PRESSURE_LEVELS = ("isobaricInhPa", "isobaricInPa")
# Level types under which centres file the single-level variables: GRIB 1 says surface where
# GRIB 2 says 2 m or 10 m above ground, or mean sea.
_SURFACE_LEVELS = ("surface", "heightAboveGround", "meanSea")
_CONVERTIBLE = {156: GEOPOTENTIAL_HEIGHT, 157: RELATIVE_HUMIDITY, 228002: SURFACE_HEIGHT}
_SURFACE_PARAMS = {
    param: v.name
    for v in VARIABLES.values()
    if v.level_type is LevelType.SURFACE
    for param in v.param_ids
}
_SURFACE_PARAMS[228228] = "total_precipitation_6hr"  # in kg m-2, the form that GRIB 2 has
_PRESSURE_PARAMS = {
    param: v.name
    for v in VARIABLES.values()
    if v.level_type is LevelType.PRESSURE
    for param in v.param_ids
}
_WINDS = (131, 132, 165, 166)
_GRID_WINDS = "wind along the grid's own axes (uvRelativeToGrid=1), not east and north"
# MARS types that are an atmosphere's state; others are spreads, probabilities, increments, ...
_ANALYSES = ("an", "fi", "3v", "4v", "oi")
_STATE_TYPES = (*_ANALYSES, "fc", "cf", "pf")
# GRIB 2 product templates of a state at a point in time: deterministic, member, hindcast member.
_STATE_TEMPLATES = (0, 1, 60)
_MISSING_VALUE = -1e34  # far outside of any field; eccodes writes it where the bitmap says so
# Level type codes whose value never decides the parameter, with units of the value per unit of
# the record: pressure (GRIB 1 in hPa, GRIB 2 in Pa) and model levels.
_GRIB1_LEVELS = (100, 109)
_GRIB2_LEVELS = {100: 100.0, 105: 1.0}
_SECTION4_BYTES = 34  # of templates 4.0 and, with more, 4.1
# What eccodes 2.50 unpacks to float32: it refuses JPEG 2000 and IEEE, and leaves the logarithm of
# logarithmic preprocessing in place.
_FLOAT32_PACKINGS = (
    "grid_simple",
    "grid_complex",
    "grid_complex_spatial_differencing",
    "grid_ccsds",
    "grid_second_order",
)


@dataclass(frozen=True, eq=False)
class _Locator:
    field: GribField
    grid: GribGrid


class GribSource:
    """A GRIB file, its headers read and every byte accounted for."""

    def __init__(self, path: Path) -> None:
        """Lists the messages.

        Raises:
            DataError: The file is empty, truncated, damaged or holds foreign bytes.
        """
        silence_eccodes()
        self.path = path
        self._fields, self.bytes_read = find_fields(path)
        self._templates: dict[bytes, FieldRecord] = {}
        self._grids: dict[bytes, GribGrid] = {}
        self._records: list[FieldRecord] | None = None

    def records(self) -> list[FieldRecord]:
        """All fields of the file, in its order, multi-field messages included."""
        if self._records is None:
            self._records = [self._record(field) for field in self._fields]
        return self._records

    def records_at(self, valid_time: np.datetime64) -> list[FieldRecord]:
        """The fields valid at one time."""
        return [record for record in self.records() if record.valid_time == valid_time]

    def valid_times(self) -> npt.NDArray[np.datetime64]:
        """All valid times, sorted, datetime64[s]."""
        times = np.array([record.valid_time for record in self.records()], dtype="datetime64[s]")
        return np.unique(times[~np.isnat(times)])

    def read(self, records: Sequence[FieldRecord]) -> Iterator[Float32Array]:
        """Decoded values [Y, X] in file units, missing points NaN; one field at a time."""
        with self.path.open("rb") as stream:
            for record in records:
                locator = _locator(record)
                message = read_field(stream, locator.field)
                self.bytes_read += len(message)
                values = self._decode(message, record)
                try:
                    arranged = locator.grid.arrange(values)
                except DataError as error:
                    raise DataError(
                        f"{self.path}: message {record.message} ({record.short_name}): {error}; "
                        "the file is damaged; fetch it again"
                    ) from None
                yield arranged

    def unit_of(self, record: FieldRecord) -> Hashable:
        """Each field is packed by itself, also in a message of several."""
        return _locator(record).field.spans

    def statistics(self, record: FieldRecord) -> FieldStatistics:
        """Extremes, mean and missing points as decoded; of coefficients where spectral."""
        with self.path.open("rb") as stream:
            message = read_field(stream, _locator(record).field)
        self.bytes_read += len(message)
        return FieldStatistics.of(self._decode(message, record, dtype=np.float64))

    def _decode(
        self,
        message: bytes,
        record: FieldRecord,
        dtype: type[np.float32] | type[np.float64] = np.float32,
    ) -> npt.NDArray[np.floating]:
        """Values in the order of the message, missing points NaN."""
        if why := why_not_unpackable(message):
            raise DataError(
                f"{self.path}: message {record.message} ({record.short_name}) cannot be decoded: "
                f"{why}; the file is damaged; fetch it again"
            )
        try:
            with _opened(message) as handle:
                packing = _optional(handle, "packingType")
                unpacked_as = dtype if packing in _FLOAT32_PACKINGS else np.float64
                has_bitmap = _has_missing(handle)
                if has_bitmap:
                    eccodes.codes_set(handle, "missingValue", _MISSING_VALUE)
                values = eccodes.codes_get_values(handle, ktype=unpacked_as)
        # numpy's errors where eccodes makes a number of values up out of damaged lengths
        except (eccodes.CodesInternalError, ValueError, MemoryError) as fault:
            raise DataError(
                f"{self.path}: message {record.message} ({record.short_name}) cannot be decoded: "
                f"{fault}; the file is damaged or its packing is unknown to eccodes "
                f"{eccodes.codes_get_api_version()}"
            ) from None
        if has_bitmap:
            values[values == unpacked_as(_MISSING_VALUE)] = np.nan
        return np.asarray(values, dtype=dtype)

    def _record(self, field: GribField) -> FieldRecord:
        """The record of one field: read by eccodes once per variable, repeated for its levels."""
        key, level = _split_level(field)
        template = self._templates.get(key)
        if template is None:
            product = field.product if field.edition == 1 else _section4(field.product)
            if why := why_not_timed(field.edition, product):
                raise DataError(
                    f"{self.path}: the headers of message {field.message} cannot be read: {why}; "
                    "the file is damaged; fetch it again"
                )
            try:
                with _opened(field.header, is_partial=field.edition == 2) as handle:
                    template = self._templates[key] = self._read_keys(field, handle)
            except eccodes.CodesInternalError as fault:
                raise DataError(
                    f"{self.path}: the headers of message {field.message} cannot be read: {fault}"
                ) from None
        return replace(
            template,
            level=template.level if level is None else level,
            message=field.message,
            locator=_Locator(field, self._grids[field.grid]),
        )

    def _read_keys(self, field: GribField, handle: int) -> FieldRecord:
        grid = self._grids.get(field.grid)
        if grid is None:
            grid = self._grids[field.grid] = read_grid(handle)
        param_id = int(eccodes.codes_get_long(handle, "paramId"))
        short_name = eccodes.codes_get_string(handle, "shortName")
        level_type = _optional(handle, "typeOfLevel") or "unknown"
        level = _level(handle, level_type)
        if level_type in _PRESSURE_LEVELS:
            level_type = PRESSURE_LEVEL
        valid_time = _time(handle, "validityDate", "validityTime")
        mars_type = _optional(handle, "type")
        member = _optional(handle, "number")
        variable = _variable(param_id, short_name, level_type)
        faults = [
            _why_not_instant(field, handle, mars_type, variable),
            _why_not(param_id, short_name, variable, level_type)
            + _code(handle, param_id, field.edition),
            "no valid time in its headers" if np.isnat(valid_time) else "",
            grid.why,
            _GRID_WINDS if param_id in _WINDS and grid.winds_follow_grid else "",
        ]
        why = "; ".join(fault for fault in faults if fault)
        return FieldRecord(
            variable=variable,
            short_name=short_name,
            level=level,
            level_type=level_type,
            valid_time=valid_time,
            init_time=_time(handle, "dataDate", "dataTime"),
            member=int(member) if member is not None else None,
            grid=grid.name,
            units=eccodes.codes_get_string(handle, "units"),
            usable=not why,
            why=why,
            path=self.path,
            axes=grid.axes,
            is_analysis=mars_type in _ANALYSES,
        )


def _locator(record: FieldRecord) -> _Locator:
    assert isinstance(record.locator, _Locator), "a record of another source"
    return record.locator


@contextmanager
def _opened(message: bytes, is_partial: bool = False) -> Iterator[int]:
    handle = eccodes.codes_new_from_message(message, partial=is_partial)
    try:
        yield handle
    finally:
        eccodes.codes_release(handle)


def _has_missing(handle: int) -> bool:
    """Whether a bitmap or the packing itself marks points as missing."""
    if eccodes.codes_get_long(handle, "bitmapPresent"):
        return True
    return bool(_optional(handle, "missingValueManagementUsed", is_number=True))


def _optional(handle: int, key: str, is_number: bool = False) -> str | None:
    """A key's value as text, None where the message has no such key."""
    try:
        if is_number:
            return str(eccodes.codes_get_long(handle, key) or "")
        return str(eccodes.codes_get_string(handle, key))
    except eccodes.CodesInternalError:
        return None


def _split_level(field: GribField) -> tuple[bytes, int | float | None]:
    """What decides all keys but the level, and the level where it can be told from the octets.

    Octets: GRIB 1 section 1, 10 (level type) to 12; GRIB 2 templates 4.0 and 4.1, 23 (surface
    type), 24 (scale factor) and 25 to 28 (scaled value). eccodes' look-ups take milliseconds a
    message, most messages of a state differ only in level.
    """
    product, grid = field.product, field.grid
    if field.edition == 1:
        if product[9] not in _GRIB1_LEVELS:
            return product + grid, None
        return product[:10] + product[12:] + grid, int.from_bytes(product[10:12], "big")
    section4 = _section4(product)
    if len(section4) < _SECTION4_BYTES:
        return product + grid, None
    template, surface = int.from_bytes(section4[7:9], "big"), section4[22]
    scale, value = section4[23], int.from_bytes(section4[24:28], "big")
    is_plain = scale < 128 and value < 1 << 31  # neither negative nor missing
    if template not in (0, 1) or surface not in _GRIB2_LEVELS or not is_plain:
        return product + grid, None
    level = value / 10**scale / _GRIB2_LEVELS[surface]
    key = product[: len(product) - len(section4)] + section4[:23] + section4[28:] + grid
    return key, _plain_number(level)


def _section4(product: bytes) -> bytes:
    """Section 4 from the discipline octet and sections 1, 2 and 4 joined."""
    position = 1
    while product[position + 4] != 4:
        position += int.from_bytes(product[position : position + 4], "big")
    return product[position:]


_SIGN_BIT = 1 << 31


def _level(handle: int, level_type: str) -> int | float | None:
    try:
        level = float(eccodes.codes_get_double(handle, "level"))
    except eccodes.CodesInternalError:
        return None
    if level >= _SIGN_BIT:  # GRIB 2 has a sign and a size, which eccodes reads as one number
        level = _SIGN_BIT - level
    if level_type == "isobaricInPa":
        level /= 100.0
    return _plain_number(level)


def _plain_number(level: float) -> int | float:
    return int(level) if level == int(level) else level


def _time(handle: int, date_key: str, time_key: str) -> np.datetime64:
    try:
        date = int(eccodes.codes_get_long(handle, date_key))
        clock = int(eccodes.codes_get_long(handle, time_key))
        text = f"{date // 10000:04d}-{date // 100 % 100:02d}-{date % 100:02d}"
        return np.datetime64(f"{text}T{clock // 100:02d}:{clock % 100:02d}:00", "s")
    except (eccodes.CodesInternalError, ValueError):
        return NOT_A_TIME


def _variable(param_id: int, short_name: str, level_type: str) -> str:
    if level_type in _SURFACE_LEVELS and param_id in _SURFACE_PARAMS:
        return _SURFACE_PARAMS[param_id]
    return (
        _PRESSURE_PARAMS.get(param_id)
        or _SURFACE_PARAMS.get(param_id)
        or _CONVERTIBLE.get(param_id)
        or short_name
    )


def _why_not(param_id: int, short_name: str, variable: str, level_type: str) -> str:
    """Why this parameter on this type of level is no model field, otherwise empty."""
    spec = VARIABLES.get(variable)
    if spec is None and variable not in _CONVERTIBLE.values():
        return f"unknown parameter {short_name} (paramId {param_id})"
    if spec is not None and spec.role is Role.DIAGNOSTIC:
        return DIAGNOSTIC_ONLY
    if spec is not None:
        is_pressure = spec.level_type is LevelType.PRESSURE
    else:
        is_pressure = variable != SURFACE_HEIGHT
    if is_pressure and level_type != PRESSURE_LEVEL:
        words = "hybrid (model) levels" if level_type.startswith("hybrid") else level_type
        return f"on {words}; a forecast needs pressure levels"
    if not is_pressure and level_type not in _SURFACE_LEVELS:
        return f"on {level_type}; a forecast needs it at the surface"
    return ""


_GRIB1_CODE = ("table2Version", "indicatorOfParameter")
_GRIB2_CODE = ("discipline", "parameterCategory", "parameterNumber")


def _code(handle: int, param_id: int, edition: int) -> str:
    """What the file says of a parameter that the tables do not have, else empty."""
    if param_id:
        return ""
    keys = _GRIB1_CODE if edition == 1 else _GRIB2_CODE
    said = [f"{key} {value}" for key in keys if (value := _optional(handle, key)) is not None]
    return f": {', '.join(said)}" if said else ""


def _why_not_instant(field: GribField, handle: int, mars_type: str | None, variable: str) -> str:
    """Why this is not the state at a point in time, otherwise empty."""
    step_type = _optional(handle, "stepType") or "instant"
    spec = VARIABLES.get(variable)
    if spec is not None and spec.role is Role.DIAGNOSTIC:
        why = _why_not_six_hours(_optional(handle, "stepRange") or "", step_type)
        return why or _why_no_state(mars_type)
    if step_type != "instant":
        span = _optional(handle, "stepRange")
        return f"{step_type} over steps {span}, not a value at a point in time"
    if why := _why_no_state(mars_type):
        return why
    if field.edition == 2:
        template = int.from_bytes(_section4(field.product)[7:9], "big")
        if template not in _STATE_TEMPLATES:
            return f"product template 4.{template} is not a state of the atmosphere"
    return ""


def _why_no_state(mars_type: str | None) -> str:
    """Why fields of this MARS type are no state, otherwise empty."""
    is_state = mars_type is None or mars_type in _STATE_TYPES
    return "" if is_state else f"type {mars_type} is not a state of the atmosphere"


def _why_not_six_hours(step_range: str, step_type: str) -> str:
    """Why precipitation is not the sum over the 6 hours before its valid time, otherwise empty."""
    first, _, last = step_range.partition("-")
    is_span = first.isdigit() and last.isdigit()
    if step_type == "accum" and is_span and int(last) - int(first) == DIAGNOSTIC_HOURS:
        return ""
    return f"{step_type} over steps {step_range}, not the sum over {DIAGNOSTIC_HOURS} hours"
