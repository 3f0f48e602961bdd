"""GRIB 2 files: CCSDS packing, one message a field, each read back before it counts."""

from collections.abc import Mapping
from typing import IO

import eccodes
import numpy as np
import numpy.typing as npt

from jigsaw_forecast.errors import OutputError
from jigsaw_forecast.fields import Field, LevelType, Role, plausible_range
from jigsaw_forecast.forecast.product import Maps, OutputSpec, Writer
from jigsaw_forecast.forecast.staging import reported
from jigsaw_forecast.state import State

NO_CENTRE = "255"  # missing value of WMO common code table C-11
ECMWF_CENTRE = 98
MARS_KEYS = ("class", "stream", "type", "expver")
DEFAULT_KEYS = {
    "generatingProcessIdentifier": "255",  # missing: no centre, so no table of processes
    "productionStatusOfProcessedData": "2",  # code table 1.3: research products
    "typeOfProcessedData": "1",  # code table 1.4: forecast products
    "typeOfGeneratingProcess": "2",  # code table 4.3: forecast
    "packingType": "grid_ccsds",
    "bitsPerValue": "16",
}
DEFAULT_MARS_KEYS = {"class": "ml", "stream": "oper", "type": "fc"}
PRECIPITATION = "total_precipitation_6hr"
PRECIPITATION_PARAM_ID = 228228  # total precipitation in kg m-2, the form that GRIB 2 has
PRECIPITATION_HOURS = 6
KG_M2_PER_METRE = 1000.0  # of liquid water
ABSURD_RANGES = 2.0  # a value this many plausible widths outside ruins the packing of its field


class GribWriter(Writer):
    """Appends messages to one file; one process writes all of it.

    The centre is missing (255) and there are no archive keys unless `--grib` gives them. Each
    message is decoded again and compared with what went in. Precipitation is the amount of the
    last 6 hours, in kg m-2, and left out at lead time 0, where there is none. Keys of `--grib`
    that are wrong are refused at opening, all of them in one message.
    """

    _file: IO[bytes] | None = None

    def _open(self) -> None:
        if self._staging is not None:
            check_grib_keys(self.spec)
            with reported(self.path):
                self._file = self._staging.partial.open("wb")

    def _write(self, states: State, maps: Maps) -> None:
        assert self._file is not None, "only the creator writes a GRIB file"
        chosen = [
            (field, _to_grib_units(field, values))
            for field, values in zip(states.fields, maps, strict=True)
            if not _is_absent(field, states, values)
        ]
        problems = [
            problem for pair in chosen if (problem := _find_unpackable(*pair, states)) is not None
        ]
        if problems:
            raise OutputError(f"cannot write {self.path}:\n" + "\n".join(problems))
        for field, values in chosen:
            try:
                message = _encode(self.spec, field, states, values)
                _compare(message, field, states, values)
            except eccodes.CodesInternalError as error:
                raise OutputError(
                    f"cannot write {self.path}: eccodes refuses {field} at +{states.lead_hours} h:"
                    f" {error}"
                ) from error
            with reported(self.path):
                self._file.write(message)
            self.bytes_written += len(message)
        with reported(self.path):
            self._file.flush()

    def _seal(self) -> None:
        assert self._file is not None
        assert self._staging is not None
        with reported(self.path):
            self._file.flush()
            num_bytes = self._staging.partial.stat().st_size
        if num_bytes != self.bytes_written:
            raise OutputError(
                f"cannot write {self.path}: {self.bytes_written} bytes were written but the file "
                f"has {num_bytes}"
            )

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with reported(self.path):
                file.close()


def check_grib_keys(spec: OutputSpec) -> None:
    """Refuses keys of `--grib` that eccodes does not take as given.

    Raises:
        OutputError: Unknown keys, values that are refused, archive keys without centre 98, or
            keys that the forecast itself sets; all of them in one message.
    """
    keys = dict(spec.grib_keys)
    problems: list[str] = []
    handle = eccodes.codes_grib_new_from_samples("regular_ll_pl_grib2")
    try:
        centre = keys.pop("centre", NO_CENTRE)
        if reason := _try_key(handle, "centre", centre):
            raise OutputError(f"--grib: {reason}")
        archive = [key for key in MARS_KEYS if key in keys]
        if archive and eccodes.codes_get(handle, "centre", int) != ECMWF_CENTRE:
            problems.append(
                f"{', '.join(archive)} exist only with centre 98 (ECMWF); missing centre=ecmf"
            )
            keys = {key: value for key, value in keys.items() if key not in archive}
        elif archive:
            _open_local_section(handle)
        problems += [
            reason for key, value in keys.items() if (reason := _try_key(handle, key, value))
        ]
    finally:
        eccodes.codes_release(handle)
    if not problems:
        problems = _find_overridden(spec)
    if problems:
        raise OutputError("--grib: " + "; ".join(problems))


def _try_key(handle: int, key: str, value: str) -> str | None:
    try:
        _set_text(handle, key, value)
    except eccodes.KeyValueNotFoundError:
        return f"unknown key {key}"
    except ValueError:
        return f"{key}={value} is not a number"
    except eccodes.CodesInternalError as error:
        return f"{key}={value} is refused: {error}"
    return None if _reads_as(handle, key, value) else f"{key}={value} does not read back"


def _set_text(handle: int, key: str, value: str) -> None:
    # eccodes writes to stderr, or refuses, where text is to become a number
    native = eccodes.codes_get_native_type(handle, key)
    eccodes.codes_set(handle, key, native(value) if native in (int, float) else value)


def _reads_as(handle: int, key: str, value: str) -> bool:
    if eccodes.codes_get(handle, key, str) == value:
        return True
    try:
        return bool(eccodes.codes_get(handle, key, float) == float(value))
    except (ValueError, eccodes.CodesInternalError):
        return False


def _find_overridden(spec: OutputSpec) -> list[str]:
    # a key that survives alone may still clash with what a message must say of its field
    lead_hours = max(PRECIPITATION_HOURS, *spec.lead_hours)
    try:
        handle = _new_message(spec, spec.fields[0], spec.init_times[0], lead_hours)
    except eccodes.CodesInternalError as error:
        given = ",".join(f"{key}={value}" for key, value in spec.grib_keys.items())
        return [f"{given} cannot be set together: {error}"]
    try:
        return [
            f"{key}={value} contradicts the forecast, which sets {key} by itself"
            for key, value in spec.grib_keys.items()
            if not _reads_as(handle, key, value)
        ]
    finally:
        eccodes.codes_release(handle)


def _open_local_section(handle: int) -> None:
    eccodes.codes_set(handle, "setLocalDefinition", 1)
    eccodes.codes_set(handle, "grib2LocalSectionNumber", 1)


def _new_message(spec: OutputSpec, field: Field, init: np.datetime64, lead_hours: int) -> int:
    """A message with all of its keys but no values; the caller releases it."""
    is_pressure = field.spec.level_type is LevelType.PRESSURE
    sample = "regular_ll_pl_grib2" if is_pressure else "regular_ll_sfc_grib2"
    handle: int = eccodes.codes_grib_new_from_samples(sample)
    user = dict(spec.grib_keys)
    eccodes.codes_set(handle, "centre", user.pop("centre", NO_CENTRE))
    eccodes.codes_set(handle, "subCentre", 0)
    archive: Mapping[str, str] = {}
    if any(key in user for key in MARS_KEYS):
        _open_local_section(handle)
        archive = DEFAULT_MARS_KEYS
    is_precipitation = field.variable == PRECIPITATION
    if is_precipitation:
        # template 4.8: a statistic over an interval of time
        eccodes.codes_set(handle, "productDefinitionTemplateNumber", 8)
    for key, value in {**DEFAULT_KEYS, **archive, **user}.items():
        _set_text(handle, key, value)
    _set_grid(handle, spec)
    param_id = PRECIPITATION_PARAM_ID if is_precipitation else field.spec.param_ids[0]
    eccodes.codes_set(handle, "paramId", param_id)
    if is_pressure:
        eccodes.codes_set(handle, "typeOfLevel", "isobaricInhPa")
        eccodes.codes_set(handle, "level", field.level_hpa)
    date, time = _date_and_time(init)
    eccodes.codes_set(handle, "dataDate", date)
    eccodes.codes_set(handle, "dataTime", time)
    if is_precipitation:
        eccodes.codes_set(handle, "stepRange", f"{lead_hours - PRECIPITATION_HOURS}-{lead_hours}")
    else:
        eccodes.codes_set(handle, "step", lead_hours)
    return handle


def _date_and_time(instant: np.datetime64) -> tuple[int, int]:
    """As GRIB keys hold them: yyyymmdd and hhmm."""
    day, _, clock = str(instant.astype("datetime64[m]")).partition("T")
    return int(day.replace("-", "")), int(clock.replace(":", ""))


def _set_grid(handle: int, spec: OutputSpec) -> None:
    latitudes, longitudes = spec.grid.latitudes, spec.grid.longitudes
    keys: dict[str, int | float] = {
        "Ni": spec.grid.num_lon,
        "Nj": spec.grid.num_lat,
        "latitudeOfFirstGridPointInDegrees": float(latitudes[0]),
        "longitudeOfFirstGridPointInDegrees": float(longitudes[0]),
        "latitudeOfLastGridPointInDegrees": float(latitudes[-1]),
        "longitudeOfLastGridPointInDegrees": float(longitudes[-1]),
        "iDirectionIncrementInDegrees": float(longitudes[1] - longitudes[0]),
        "jDirectionIncrementInDegrees": float(latitudes[0] - latitudes[1]),
        "iScansNegatively": 0,
        "jScansPositively": 0,
    }
    for key, value in keys.items():
        eccodes.codes_set(handle, key, value)


def _encode(
    spec: OutputSpec, field: Field, states: State, values: npt.NDArray[np.float64]
) -> bytes:
    handle = _new_message(spec, field, states.init_time, states.lead_hours)
    try:
        eccodes.codes_set_values(handle, values.ravel())
        message: bytes = eccodes.codes_get_message(handle)
        return message
    finally:
        eccodes.codes_release(handle)


def _compare(message: bytes, field: Field, states: State, values: npt.NDArray[np.float64]) -> None:
    """Refuses a message that does not say what went in, to the packing error."""
    handle = eccodes.codes_new_from_message(message)
    try:
        decoded = eccodes.codes_get_values(handle).reshape(values.shape)
        spacing = 2.0 ** eccodes.codes_get(handle, "binaryScaleFactor") / 10.0 ** eccodes.codes_get(
            handle, "decimalScaleFactor"
        )
        num_bits = eccodes.codes_get(handle, "bitsPerValue")
        end_step = eccodes.codes_get(handle, "endStep", int)
        valid = (
            eccodes.codes_get(handle, "validityDate"),
            eccodes.codes_get(handle, "validityTime"),
        )
    finally:
        eccodes.codes_release(handle)
    # half a step of the packing, and the reference value, which is a 32-bit float
    reference_error = float(np.abs(values).max()) * float(np.finfo(np.float32).eps)
    tolerance = (0.5 * spacing if num_bits else 0.0) + reference_error
    error = float(np.abs(decoded - values).max())
    expected = _date_and_time(states.valid_time)
    if error > tolerance or end_step != states.lead_hours or valid != expected:
        raise OutputError(
            f"GRIB message of {field} at +{states.lead_hours} h reads back with an error of "
            f"{error:g} (packing allows {tolerance:g}), step {end_step}, valid {valid}; expected "
            f"{expected}; write zarr instead and report this"
        )


def _is_absent(field: Field, states: State, values: Maps) -> bool:
    is_diagnostic = field.spec.role is Role.DIAGNOSTIC
    return is_diagnostic and states.lead_hours == 0 and bool(np.isnan(values).all())


def _to_grib_units(field: Field, values: Maps) -> npt.NDArray[np.float64]:
    scale = KG_M2_PER_METRE if field.variable == PRECIPITATION else 1.0
    return values.astype(np.float64) * scale


def _find_unpackable(field: Field, values: npt.NDArray[np.float64], states: State) -> str | None:
    # eccodes packs NaN without an error, and one huge value takes all bits of its field
    where = f"{field} at +{states.lead_hours} h"
    if field.variable == PRECIPITATION and states.lead_hours < PRECIPITATION_HOURS:
        return f"{where}: a sum over {PRECIPITATION_HOURS} h would begin before the forecast"
    num_bad = int(values.size - np.isfinite(values).sum())
    if num_bad:
        return f"{where}: {num_bad} of {values.size} values are not finite"
    scale = KG_M2_PER_METRE if field.variable == PRECIPITATION else 1.0
    low, high = (bound * scale for bound in plausible_range(field))
    margin = ABSURD_RANGES * (high - low)
    if values.min() < low - margin or values.max() > high + margin:
        return (
            f"{where}: values {values.min():g} to {values.max():g} are far outside of what is "
            f"plausible, {low:g} to {high:g}"
        )
    return None
