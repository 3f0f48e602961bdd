"""Mock weather: seeded, smooth, plausible fields in the WeatherBench layout, for tests and trials.

Not weather: waves that drift eastward on each field's own scale and mean, so that a model can
learn them and every check of real data applies.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xarray as xr

from jigsaw_forecast.fields import Field, LevelType, standard_geopotential
from jigsaw_forecast.grid import Grid

# mean, amplitude: typical of the troposphere, well inside of the plausible ranges
SCALES: dict[str, tuple[float, float]] = {
    "geopotential": (0.0, 1500.0),
    "temperature": (255.0, 12.0),
    "u_component_of_wind": (5.0, 12.0),
    "v_component_of_wind": (0.0, 8.0),
    "specific_humidity": (0.006, 0.002),
    "2m_temperature": (280.0, 10.0),
    "10m_u_component_of_wind": (1.0, 4.0),
    "10m_v_component_of_wind": (0.0, 3.0),
    "mean_sea_level_pressure": (1.01e5, 900.0),
    "total_precipitation_6hr": (0.002, 0.0007),
}
NUM_WAVES = 4


def mock_fields(
    fields: Sequence[Field], grid: Grid, times: npt.NDArray[np.datetime64], seed: int = 0
) -> npt.NDArray[np.float32]:
    """Fields of drifting waves, shape [T, F, Y, X], physical units.

    Args:
        fields: What to make.
        grid: Where.
        times: When; a field at a time does not depend on the other times.
        seed: Of the waves' numbers, speeds and phases.
    """
    hours = (times - np.datetime64("2000-01-01T00", "h")) / np.timedelta64(1, "h")
    latitude, longitude = np.deg2rad(grid.latitudes), np.deg2rad(grid.longitudes)
    values = np.empty((len(times), len(fields), grid.num_lat, grid.num_lon), dtype=np.float32)
    for place, field in enumerate(fields):
        generator = np.random.default_rng([seed, place])
        mean, amplitude = SCALES[field.variable]
        if field.variable == "geopotential":
            mean = standard_geopotential(field.level_hpa)
        total = np.zeros((len(times), grid.num_lat, grid.num_lon))
        for _ in range(NUM_WAVES):
            number, rows = int(generator.integers(1, 6)), int(generator.integers(1, 4))
            period_hours = generator.uniform(40.0, 200.0)
            phase = generator.uniform(0.0, 2.0 * np.pi, size=2)
            drift = 2.0 * np.pi * hours / period_hours
            zonal = np.sin(number * longitude[None, None, :] - drift[:, None, None] + phase[0])
            total += np.cos(latitude)[:, None] * np.cos(rows * latitude + phase[1])[:, None] * zonal
        values[:, place] = mean + amplitude * total / NUM_WAVES
    return values


def write_mock_store(
    path: Path,
    fields: Sequence[Field],
    grid: Grid,
    times: npt.NDArray[np.datetime64],
    seed: int = 0,
) -> None:
    """Writes a WeatherBench-layout zarr store of mock weather with static fields."""
    values = mock_fields(fields, grid, times, seed)
    levels = sorted({field.level_hpa for field in fields if field.level_hpa})
    arrays: dict[str, tuple[tuple[str, ...], npt.NDArray[np.float32]]] = {}
    for field in dict.fromkeys(fields):
        maps = values[:, fields.index(field)]
        if field.spec.level_type is LevelType.SURFACE:
            arrays[field.variable] = (("time", "latitude", "longitude"), maps)
            continue
        if field.variable not in arrays:
            shape = (len(times), len(levels), grid.num_lat, grid.num_lon)
            dims = ("time", "level", "latitude", "longitude")
            arrays[field.variable] = (dims, np.full(shape, np.nan, dtype=np.float32))
        arrays[field.variable][1][:, levels.index(field.level_hpa)] = maps
    land = np.zeros((grid.num_lat, grid.num_lon), dtype=np.float32)
    land[:, : grid.num_lon // 3] = 1.0
    arrays["land_sea_mask"] = (("latitude", "longitude"), land)
    arrays["geopotential_at_surface"] = (("latitude", "longitude"), land * 5000.0)
    coordinates = {"time": times.astype("datetime64[ns]"), "latitude": grid.latitudes}
    coordinates |= {"longitude": grid.longitudes}
    if levels:
        coordinates["level"] = np.array(levels, dtype=np.int32)
    dataset = xr.Dataset(arrays, coords=coordinates)
    encoding = {
        name: {"chunks": (1, *maps.shape[1:]) if dims[0] == "time" else maps.shape}
        for name, (dims, maps) in arrays.items()
    }
    dataset.to_zarr(path, zarr_format=3, consolidated=False, encoding=encoding)
