"""The keys of GRIB 2 messages: what a forecast sets, what a user may set, and what clashes."""

from collections.abc import Mapping
from dataclasses import replace

import eccodes
import numpy as np
import numpy.typing as npt

from jigsaw_forecast.data.eccodes_log import silence_eccodes
from jigsaw_forecast.errors import OutputError
from jigsaw_forecast.fields import Field, LevelType, plausible_range
from jigsaw_forecast.forecast.product import OutputSpec, Slot

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
DEFAULT_ENSEMBLE_KEYS = {"stream": "enfo"}
MAX_MEMBERS = 255  # templates 4.1 and 4.11 count them in one octet
CONTROL_MEMBER = 0  # as ECMWF numbers it
CONTROL_FORECAST, PERTURBED_FORECAST = 3, 4  # code table 1.4
UNPERTURBED, PERTURBED = 1, 192  # code table 4.6
ALIASES = {"packing": "packingType", "bits": "bitsPerValue"}
PACKINGS = (
    *("grid_ccsds", "grid_simple", "grid_complex", "grid_complex_spatial_differencing"),
    *("grid_ieee", "grid_jpeg", "grid_png"),
)
# What no key of a user's may change: the meaning of the values and their order.
_SAID = (
    *("edition", "paramId", "stepType", "stepRange", "validityDate", "validityTime"),
    *("typeOfLevel", "level", "gridType", "Ni", "Nj", "bitmapPresent"),
    *("latitudeOfFirstGridPointInDegrees", "longitudeOfFirstGridPointInDegrees"),
    *("latitudeOfLastGridPointInDegrees", "longitudeOfLastGridPointInDegrees"),
    *("iScansNegatively", "jScansPositively", "jPointsAreConsecutive", "alternativeRowScanning"),
    "uvRelativeToGrid",
)
# code table 4.0: forecast at a time or over an interval, deterministic or of a member
TEMPLATES = {(False, False): 0, (True, False): 8, (False, True): 1, (True, True): 11}


def spelled_out(keys: Mapping[str, str]) -> dict[str, str]:
    """Keys as eccodes names them: `packing=ccsds` is `packingType=grid_ccsds`, `bits` likewise.

    Raises:
        OutputError: A key is given under both of its names.
    """
    result: dict[str, str] = {}
    for key, value in keys.items():
        name = ALIASES.get(key, key)
        if name in result:
            raise OutputError(f"--grib: {key} and {name} are the same key; give one of them")
        is_bare = name == "packingType" and not value.startswith("grid_")
        result[name] = f"grid_{value}" if is_bare else value
    return result


def check_grib_keys(spec: OutputSpec) -> None:
    """Refuses keys of `--grib` that eccodes does not take as given.

    Raises:
        OutputError: Unknown keys, values that are refused, archive keys without centre 98, or
            keys that the forecast itself sets; all of them in one message.
    """
    silence_eccodes()
    keys = dict(spec.grib_keys)
    problems: list[str] = []
    packing = keys.get("packingType", DEFAULT_KEYS["packingType"])
    if packing not in PACKINGS:
        names = ", ".join(name.removeprefix("grid_") for name in PACKINGS)
        problems.append(f"packingType={packing} is unknown; use {names}")
        del keys["packingType"]  # eccodes would list all of its own on stderr
    handle = eccodes.codes_grib_new_from_samples("regular_ll_pl_grib2")
    try:
        centre = keys.pop("centre", NO_CENTRE)
        if reason := _try_key(handle, "centre", centre):
            problems.append(reason)
        archive = [key for key in MARS_KEYS if key in keys]
        if problems:
            # whether these exist depends on the centre, which is to be mended first
            keys = {key: value for key, value in keys.items() if key not in archive}
        elif archive and eccodes.codes_get(handle, "centre", int) != ECMWF_CENTRE:
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
    if not problems and {"packingType", "bitsPerValue"} & spec.grib_keys.keys():
        problems = _try_packing(spec)
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
    last = list(spec.slots)[-1]
    lead_time = max(np.timedelta64(PRECIPITATION_HOURS, "h"), *spec.lead_times)
    slot = last._replace(lead_time=lead_time)
    given = ",".join(f"{key}={value}" for key, value in spec.grib_keys.items())
    # one field of each kind: on pressure levels, at the surface, accumulated
    kinds = {(f.spec.level_type, f.variable == PRECIPITATION): f for f in reversed(spec.fields)}
    lost: list[str] = []
    changed: dict[str, str] = {}
    for field in kinds.values():
        try:
            found, clashes = _read_back(spec, field, slot)
        except eccodes.CodesInternalError as error:
            return [f"{given} cannot be set together: {error}"]
        expected, _ = _read_back(replace(spec, grib_keys={}), field, slot)
        lost += clashes
        changed |= {
            key: f"{given} makes {key} of {field} {found[key]} where the forecast has {value}"
            for key, value in expected.items()
            if found[key] != value
        }
    return list(dict.fromkeys(lost)) or list(changed.values())


def _read_back(
    spec: OutputSpec, field: Field, slot: Slot
) -> tuple[dict[str, str | None], list[str]]:
    """What a message says of its field, grid and time, and which keys of `--grib` are lost."""
    handle = new_message(spec, field)
    try:
        set_times(handle, field, slot, spec.grib_keys)
        lost = [
            f"{key}={value} contradicts the forecast, which sets {key} by itself"
            for key, value in spec.grib_keys.items()
            if not _reads_as(handle, key, value)
        ]
        says = {
            key: eccodes.codes_get(handle, key, str)
            if eccodes.codes_is_defined(handle, key)
            else None
            for key in _SAID
        }
        return says, lost
    finally:
        eccodes.codes_release(handle)


def _try_packing(spec: OutputSpec) -> list[str]:
    """Packs a map of noise: eccodes tells only then which bits a packing takes.

    Noise, because eccodes has no room for a PNG picture that does not become smaller.
    """
    field = spec.fields[0]
    low, high = plausible_range(field)
    shape = (spec.grid.num_lat, spec.grid.num_lon)
    values = np.random.default_rng(0).uniform(low, high, shape)
    reason = ""
    handle = new_message(spec, field)
    try:
        eccodes.codes_set_values(handle, values.ravel())
        packed = eccodes.codes_new_from_message(eccodes.codes_get_message(handle))
        try:
            error, tolerance = packing_error(packed, values)
        finally:
            eccodes.codes_release(packed)
        if error > tolerance:
            reason = f"it reads back with an error of {error:g} where {tolerance:g} are allowed"
    except eccodes.CodesInternalError as fault:
        reason = f"eccodes {eccodes.codes_get_api_version()}: {fault}"
    except ValueError:
        reason = "it reads back with another number of points"
    finally:
        eccodes.codes_release(handle)
    keys = {**DEFAULT_KEYS, **spec.grib_keys}
    packing = f"packingType={keys['packingType']} with bitsPerValue={keys['bitsPerValue']}"
    return [f"{packing} packs no {field}: {reason}"] if reason else []


def _open_local_section(handle: int) -> None:
    eccodes.codes_set(handle, "setLocalDefinition", 1)
    eccodes.codes_set(handle, "grib2LocalSectionNumber", 1)


def new_message(spec: OutputSpec, field: Field) -> int:
    """A message with all of its keys but times, member and values; the caller releases it."""
    is_pressure = field.spec.level_type is LevelType.PRESSURE
    sample = "regular_ll_pl_grib2" if is_pressure else "regular_ll_sfc_grib2"
    handle: int = eccodes.codes_grib_new_from_samples(sample)
    user = dict(spec.grib_keys)
    eccodes.codes_set(handle, "centre", user.pop("centre", NO_CENTRE))
    eccodes.codes_set(handle, "subCentre", 0)
    archive: Mapping[str, str] = {}
    if any(key in user for key in MARS_KEYS):
        _open_local_section(handle)
        archive = DEFAULT_MARS_KEYS | (DEFAULT_ENSEMBLE_KEYS if spec.members else {})
    is_precipitation = field.variable == PRECIPITATION
    template = TEMPLATES[is_precipitation, bool(spec.members)]
    if template:
        eccodes.codes_set(handle, "productDefinitionTemplateNumber", template)
    for key, value in {**DEFAULT_KEYS, **archive, **user}.items():
        _set_text(handle, key, value)
    if spec.members:
        eccodes.codes_set(handle, "numberOfForecastsInEnsemble", spec.num_members)
    _set_grid(handle, spec)
    param_id = PRECIPITATION_PARAM_ID if is_precipitation else field.spec.param_ids[0]
    eccodes.codes_set(handle, "paramId", param_id)
    if is_pressure:
        eccodes.codes_set(handle, "typeOfLevel", "isobaricInhPa")
        eccodes.codes_set(handle, "level", field.level_hpa)
    return handle


def set_times(handle: int, field: Field, slot: Slot, user: Mapping[str, str]) -> None:
    """Sets initial time, step and, where there is one, member of a message."""
    date, time = date_and_time(slot.init_time)
    eccodes.codes_set(handle, "dataDate", date)
    eccodes.codes_set(handle, "dataTime", time)
    if field.variable == PRECIPITATION:
        start = slot.lead_hours - PRECIPITATION_HOURS
        eccodes.codes_set(handle, "stepRange", f"{start}-{slot.lead_hours}")
    else:
        eccodes.codes_set(handle, "step", slot.lead_hours)
    if slot.member is None:
        return
    eccodes.codes_set(handle, "perturbationNumber", slot.member)
    is_control = slot.member == CONTROL_MEMBER
    member_keys = {
        "typeOfProcessedData": CONTROL_FORECAST if is_control else PERTURBED_FORECAST,
        "typeOfEnsembleForecast": UNPERTURBED if is_control else PERTURBED,
    }
    for key, value in member_keys.items():
        if key not in user:
            eccodes.codes_set(handle, key, value)
    if "type" not in user and any(key in user for key in MARS_KEYS):
        eccodes.codes_set(handle, "type", "cf" if is_control else "pf")


def date_and_time(instant: np.datetime64) -> tuple[int, int]:
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


def packing_error(handle: int, values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The largest error of what a message holds, and what its packing allows."""
    decoded = eccodes.codes_get_values(handle).reshape(values.shape)
    spacing = 0.0
    if eccodes.codes_is_defined(handle, "binaryScaleFactor"):
        binary = eccodes.codes_get(handle, "binaryScaleFactor")
        spacing = 2.0**binary / 10.0 ** eccodes.codes_get(handle, "decimalScaleFactor")
    num_bits = eccodes.codes_get(handle, "bitsPerValue")
    # half a step of the packing, and the reference value, which is a 32-bit float
    reference_error = max(float(values.max()), -float(values.min())) * float(
        np.finfo(np.float32).eps
    )
    tolerance = (0.5 * spacing if num_bits else 0.0) + reference_error
    np.subtract(decoded, values, out=decoded)
    return max(float(decoded.max()), -float(decoded.min())), tolerance
