"""A store of the layout, size and roughness of ERA5, for the benchmarks of data.

Each field is red noise with the spectrum of weather (amplitude falling as wavenumber to the -2)
about a plausible mean, so that codecs shrink it about as they shrink ERA5; the flow drifts.
"""

from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, BloscShuffle

from jigsaw_forecast.data.mock import SCALES
from jigsaw_forecast.fields import WEATHERBENCH_FIELDS, Field, LevelType, standard_geopotential
from jigsaw_forecast.grid import Grid

LEVELS = sorted({field.level_hpa for field in WEATHERBENCH_FIELDS if field.level_hpa})
START = np.datetime64("2020-01-01T00", "h")
DRIFT_COLUMNS = 7  # a step


def write_store(path: Path, grid: Grid, num_times: int) -> int:
    """Writes a store of WeatherBench 2 layout, blosc lz4 as theirs; returns its values' bytes."""
    group = zarr.open_group(path, mode="w", zarr_format=3)
    times = START + np.arange(num_times) * np.timedelta64(6, "h")
    hours = (times - np.datetime64("1970-01-01T00", "h")).astype(np.int64)
    time = _array(group, "time", ("time",), (num_times,), np.int64, (num_times,))
    time[:] = hours
    time.attrs.update({"units": "hours since 1970-01-01", "calendar": "proleptic_gregorian"})
    for name, axis in (("latitude", grid.latitudes), ("longitude", grid.longitudes)):
        _array(group, name, (name,), axis.shape, np.float64, axis.shape)[:] = axis
    _array(group, "level", ("level",), (len(LEVELS),), np.int32, (len(LEVELS),))[:] = LEVELS
    shape = (grid.num_lat, grid.num_lon)
    num_bytes = 0
    noise = _red_noise(np.random.default_rng(0), 8, shape)
    for number, name in enumerate(dict.fromkeys(field.variable for field in WEATHERBENCH_FIELDS)):
        levels = [field for field in WEATHERBENCH_FIELDS if field.variable == name]
        is_surface = levels[0].spec.level_type is LevelType.SURFACE
        dims = ("time", "latitude", "longitude") if is_surface else (
            "time", "level", "latitude", "longitude"
        )  # fmt: skip
        size = shape if is_surface else (len(levels), *shape)
        array = _array(group, name, dims, (num_times, *size), np.float32, (1, *size))
        for place in range(num_times):
            maps = np.stack(
                [_map(field, noise, number * 17 + at, place) for at, field in enumerate(levels)]
            )
            array[place] = maps[0] if is_surface else maps
            num_bytes += maps.nbytes
    land = (noise[0] > 0).astype(np.float32)
    for name, values in (("land_sea_mask", land), ("geopotential_at_surface", land * 5000)):
        _array(group, name, ("latitude", "longitude"), shape, np.float32, shape)[:] = values
    return num_bytes


def _red_noise(generator: np.random.Generator, count: int, shape: tuple[int, int]) -> np.ndarray:
    """Maps of deviation 1."""
    rows = np.fft.fftfreq(shape[0])[:, None] * shape[0]
    columns = np.fft.rfftfreq(shape[1])[None] * shape[1]
    wavenumber = np.maximum(np.hypot(rows, columns), 1.0)
    maps = []
    for _ in range(count):
        phase = generator.normal(size=wavenumber.shape) + 1j * generator.normal(
            size=wavenumber.shape
        )
        values = np.fft.irfft2(phase * wavenumber**-2.0, shape)
        maps.append(values / values.std())
    return np.array(maps, dtype=np.float32)


def _map(field: Field, noise: np.ndarray, number: int, time: int) -> np.ndarray:
    """A field at a time: two of the noise maps, turned and mixed."""
    mean, amplitude = SCALES[field.variable]
    if field.variable == "geopotential":
        mean = standard_geopotential(field.level_hpa)
    one, other = noise[number % 8], noise[(number // 8 + 3) % 8]
    shift = DRIFT_COLUMNS * time + 31 * number
    mixed = 0.8 * np.roll(one, shift, axis=1) + 0.6 * np.roll(other, -2 * shift, axis=1)
    return np.asarray(mean + 0.4 * amplitude * np.clip(mixed, -4.0, 4.0), dtype=np.float32)


def _array(
    group: zarr.Group,
    name: str,
    dims: tuple[str, ...],
    shape: tuple[int, ...],
    dtype: type,
    chunks: tuple[int, ...],
) -> Any:
    return group.create_array(
        name,
        shape=shape,
        chunks=chunks,
        dtype=dtype,
        dimension_names=dims,
        compressors=BloscCodec(cname="lz4", clevel=5, shuffle=BloscShuffle.shuffle),
        fill_value=np.nan if np.issubdtype(dtype, np.floating) else 0,
    )
