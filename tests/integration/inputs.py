"""Small checkpoints and input files, made independently of the package's writers."""

from collections.abc import Iterable
from pathlib import Path

import eccodes
import numpy as np
import torch
import xarray as xr

from jigsaw_forecast.checkpoint.save import save_checkpoint
from jigsaw_forecast.data.statistics import Statistics
from jigsaw_forecast.fields import Field
from jigsaw_forecast.model.config import ModelConfig
from jigsaw_forecast.model.weather_mixer import WeatherMixer
from jigsaw_forecast.parallel.mesh import single_rank_mesh

INIT = np.datetime64("2026-06-24T00", "s")
CONFIG = ModelConfig(
    grid="24x12",
    fields=("z500", "z850", "t850", "u850", "v850", "2t", "10u", "10v", "msl"),
    diagnostics=("tp",),
    forcings=("land_sea_mask", "geopotential_at_surface", "insolation", "sin_year"),
    patch=(2, 4),
    overlap=1,
    channels=24,
    token_hidden=24,
    channel_hidden=48,
    num_blocks=2,
)
TYPICAL = {  # mean and deviation, SI
    "geopotential": (0.0, 1500.0),  # about the level's standard value
    "temperature": (280.0, 10.0),
    "u_component_of_wind": (2.0, 8.0),
    "v_component_of_wind": (0.0, 8.0),
    "2m_temperature": (285.0, 12.0),
    "10m_u_component_of_wind": (0.0, 5.0),
    "10m_v_component_of_wind": (0.0, 5.0),
    "mean_sea_level_pressure": (101000.0, 900.0),
}
STANDARD_Z = {500: 54600.0, 850: 14300.0}  # m2 s-2, US Standard Atmosphere 1976, rounded


def typical(field: Field) -> tuple[float, float]:
    """Mean and deviation of a field."""
    mean, std = TYPICAL[field.variable]
    return mean + (STANDARD_Z[field.level_hpa] if field.variable == "geopotential" else 0), std


def maps(
    fields: Iterable[Field], rows: int, columns: int, seed: int = 0
) -> dict[Field, np.ndarray]:
    """Smooth maps, north to south, longitude from 0."""
    rng = np.random.default_rng(seed)
    lat = np.linspace(1, -1, rows)[:, None]
    lon = np.linspace(0, 2 * np.pi, columns, endpoint=False)[None, :]
    result = {}
    for field in fields:
        a, b, c = rng.uniform(-1, 1, 3)
        mean, std = typical(field)
        wave = a * lat + b * np.sin(lon + 3 * c) * (1 - lat**2) + c * np.cos(2 * lon) * lat
        result[field] = (mean + std * wave).astype(np.float32)
    return result


def make_checkpoint(
    folder: Path, config: ModelConfig = CONFIG, *, tendency_factor: float = 0.2
) -> Path:
    """A checkpoint whose every weight counts, with its default input beside it.

    A huge tendency factor makes a model whose forecasts overflow.
    """
    model = WeatherMixer(config, single_rank_mesh(), seed=1)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    grid = config.grid_object
    fields = config.prognostic_fields
    shape = (grid.num_model_lat, grid.num_lon)
    statistics = Statistics(
        mean=np.stack([np.full(shape, typical(f)[0], np.float32) for f in fields]),
        std=np.array([typical(f)[1] for f in fields], np.float32),
        tendency_std=np.array([tendency_factor * typical(f)[1] for f in fields], np.float32),
        diagnostic_mean=np.array([1e-4], np.float32),
        diagnostic_std=np.array([1e-3], np.float32),
    )
    statics = {
        "land_sea_mask": np.eye(*shape, dtype=np.float32),
        "geopotential_at_surface": 1000 * np.eye(*shape, dtype=np.float32),
    }
    notice = "Random weights for a test."
    save_checkpoint(folder, model, statistics, statics, {"made_for": "tests"}, notice=notice)
    write_store(folder / "initial.zarr", maps(fields, grid.num_lat, grid.num_lon))
    return folder


def write_store(path: Path, values: dict[Field, np.ndarray], time: np.datetime64 = INIT) -> None:
    """A WeatherBench-layout store of one time, by xarray."""
    rows, columns = next(iter(values.values())).shape
    has_poles = rows % 2 == 1
    spacing = 180 / (rows - 1) if has_poles else 180 / rows
    latitude = 90 - spacing * (np.arange(rows) + (0 if has_poles else 0.5))
    coords = {
        "time": [time.astype("datetime64[ns]")],
        "latitude": latitude,
        "longitude": np.arange(columns) * 360 / columns,
    }
    variables: dict[str, xr.DataArray] = {}
    for name in dict.fromkeys(field.variable for field in values):
        group = {
            field.level_hpa: array for field, array in values.items() if field.variable == name
        }
        if 0 in group:
            data = xr.DataArray(group[0][None], dims=("time", "latitude", "longitude"))
        else:
            data = xr.DataArray(
                np.stack(list(group.values()))[None],
                dims=("time", "level", "latitude", "longitude"),
                coords={"level": list(group)},
            )
        variables[name] = data
    xr.Dataset(variables, coords=coords).to_zarr(path, zarr_format=3, consolidated=False)


def write_grib(
    path: Path,
    values: dict[Field, np.ndarray],
    *,
    time: np.datetime64 = INIT,
    param_ids: dict[str, int] | None = None,
    south: float = -90.0,
    append: bool = False,
) -> Path:
    """GRIB2 messages with 24 bits, first point at 90 N 0 E, last row at `south`."""
    with path.open("ab" if append else "wb") as file:
        for field, array in values.items():
            rows, columns = array.shape
            has_poles = rows % 2 == 1
            spacing = 180 / (rows - 1) if has_poles else 180 / rows
            edge = 0.0 if has_poles else spacing / 2
            message = eccodes.codes_grib_new_from_samples("regular_ll_pl_grib2")
            keys = {
                "Ni": columns,
                "Nj": rows,
                "latitudeOfFirstGridPointInDegrees": 90.0 - edge,
                "latitudeOfLastGridPointInDegrees": south + edge,
                "longitudeOfFirstGridPointInDegrees": 0.0,
                "longitudeOfLastGridPointInDegrees": 360.0 - 360.0 / columns,
                "iDirectionIncrementInDegrees": 360.0 / columns,
                "jDirectionIncrementInDegrees": spacing,
                "dataDate": int(str(time)[:10].replace("-", "")),
                "dataTime": int(str(time)[11:13]) * 100,
            }
            for key, value in keys.items():
                eccodes.codes_set(message, key, value)
            known = field.spec.param_ids[0]
            eccodes.codes_set(message, "paramId", (param_ids or {}).get(str(field), known))
            if field.level_hpa:
                eccodes.codes_set(message, "typeOfLevel", "isobaricInhPa")
                eccodes.codes_set(message, "level", field.level_hpa)
            if np.isnan(array).any():
                eccodes.codes_set(message, "bitmapPresent", 1)
                array = np.where(np.isnan(array), 9999.0, array)
                eccodes.codes_set(message, "missingValue", 9999.0)
            eccodes.codes_set(message, "bitsPerValue", 24)
            eccodes.codes_set_values(message, array.astype(np.float64).ravel())
            eccodes.codes_write(message, file)
            eccodes.codes_release(message)
    return path
