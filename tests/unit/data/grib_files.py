"""Writes small GRIB files with eccodes for the readers' tests."""

from pathlib import Path

import eccodes
import numpy as np
import numpy.typing as npt

NUM_LAT, NUM_LON = 8, 16  # cell centres, 22.5 degrees
LATITUDES = 90.0 - 22.5 * (np.arange(NUM_LAT) + 0.5)
LONGITUDES = 22.5 * np.arange(NUM_LON)


def temperature_map() -> npt.NDArray[np.float64]:
    """Values that differ at every point, 200 to 328 K, [8, 16] north to south."""
    return 200.0 + np.arange(NUM_LAT * NUM_LON, dtype=np.float64).reshape(NUM_LAT, NUM_LON)


def message(values: npt.ArrayLike, edition: int = 2, **keys: object) -> bytes:
    """One GRIB message on the 16 x 8 grid; t500 at 2026-06-24T00 unless `keys` say otherwise.

    Args:
        values: In the order in which the message holds them.
        edition: 1 or 2.
        keys: eccodes keys, set in order after the defaults.
    """
    handle = eccodes.codes_grib_new_from_samples(f"regular_ll_pl_grib{edition}")
    defaults: dict[str, object] = {
        "Ni": NUM_LON,
        "Nj": NUM_LAT,
        "latitudeOfFirstGridPointInDegrees": float(LATITUDES[0]),
        "latitudeOfLastGridPointInDegrees": float(LATITUDES[-1]),
        "longitudeOfFirstGridPointInDegrees": 0.0,
        "longitudeOfLastGridPointInDegrees": float(LONGITUDES[-1]),
        "iDirectionIncrementInDegrees": 22.5,
        "jDirectionIncrementInDegrees": 22.5,
        "dataDate": 20260624,
        "dataTime": 0,
        "paramId": 130,
        "level": 500,
        "bitsPerValue": 16,
    }
    for key, value in (defaults | keys).items():
        eccodes.codes_set(handle, key, value)
    flat = np.asarray(values, dtype=np.float64).ravel()
    if np.isnan(flat).any():
        eccodes.codes_set(handle, "bitmapPresent", 1)
        eccodes.codes_set(handle, "missingValue", 9999.0)
        flat = np.where(np.isnan(flat), 9999.0, flat)
    eccodes.codes_set_values(handle, flat)
    data = eccodes.codes_get_message(handle)
    eccodes.codes_release(handle)
    return bytes(data)


def write(path: Path, *messages: bytes) -> Path:
    """Joins messages to a file."""
    path.write_bytes(b"".join(messages))
    return path
