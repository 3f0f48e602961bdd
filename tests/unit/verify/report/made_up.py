"""A folder as `score` leaves it, made of closed forms and seeded noise."""

import json
from pathlib import Path

import numpy as np
import xarray as xr

HOURS = np.array([0, 6, 24, 72, 120, 168, 240])
LEVELS = np.array([500, 700, 850], dtype=np.int32)
REGIONS = ["global", "northern-hemisphere", "tropics_land"]
METRICS = ["mse", "rmse", "mae", "bias", "acc", "acc_pooled"]
MEMBER_METRICS = [
    "crps",
    "crps_skill",
    "crps_spread",
    "ensemble_variance",
    "ensemble_mean_mse",
    "debiased_ensemble_mean_mse",
    "unbiased_spread_skill_ratio",
]
NUM_INITS = 40
SIZES = {  # error growth to this, in SI units
    "geopotential": 800.0,
    "temperature": 4.0,
    "specific_humidity": 1.5e-3,
    "u_component_of_wind": 7.0,
    "v_component_of_wind": 7.0,
    "2m_temperature": 3.0,
    "10m_u_component_of_wind": 4.0,
    "10m_v_component_of_wind": 4.0,
    "mean_sea_level_pressure": 700.0,
}
SURFACE = tuple(SIZES)[-4:]
UNITS = {"geopotential": "m2 s-2", "specific_humidity": "kg kg-1", "mean_sea_level_pressure": "Pa"}
VECTORS = {
    "wind_vector": ("u_component_of_wind", "v_component_of_wind"),
    "10m_wind_vector": ("10m_u_component_of_wind", "10m_v_component_of_wind"),
}
# how fast errors grow, in hours; the smaller the worse
MODELS = {"forecast": 120.0, "persistence": 40.0, "climatology": 0.01, "hres": 130.0}


def dims_of(variable: str) -> tuple[str, ...]:
    is_surface = variable in SURFACE or variable == "10m_wind_vector"
    return ("region", "lead_time") if is_surface else ("region", "lead_time", "level")


def init_times(count: int = NUM_INITS) -> np.ndarray:
    return np.datetime64("2026-01-01", "ns") + np.arange(count) * np.timedelta64(12, "h")


def statistics(growth: float, seed: int, count: int = NUM_INITS) -> xr.Dataset:
    """Mean square errors of each initial time."""
    noise = np.random.default_rng(seed)
    data = {}
    for variable, size in SIZES.items():
        dims = dims_of(variable)
        shape = [count, len(REGIONS), HOURS.size] + ([LEVELS.size] if "level" in dims else [])
        error = size * np.sqrt(1.0 - np.exp(-HOURS / growth))
        error = error.reshape((-1, 1) if "level" in dims else (-1,))
        mse = (error * np.ones(shape)) ** 2 * noise.uniform(0.7, 1.3, shape)
        data[variable] = (("statistic", "init_time", *dims), mse[None])
    return xr.Dataset(
        data,
        {
            "statistic": ["mse"],
            "init_time": init_times(count),
            "region": REGIONS,
            "lead_time": HOURS,
            "level": LEVELS,
        },
    )


def scores(per_init: xr.Dataset, growth: float, num_members: int = 1) -> xr.Dataset:
    """Metrics whose rmse is that of the statistics."""
    metrics = METRICS + (MEMBER_METRICS if num_members > 1 else [])
    mse = per_init.sel(statistic="mse", drop=True).mean("init_time")
    for name, (u, v) in VECTORS.items():
        mse[name] = mse[u] + mse[v]
    acc = xr.DataArray(np.exp(-HOURS / (1.5 * growth)), dims="lead_time")
    parts = []
    for metric in metrics:
        if metric == "rmse":
            part = np.sqrt(mse)
        elif metric.startswith("acc") or metric == "unbiased_spread_skill_ratio":
            part = xr.zeros_like(mse) + acc
        elif metric == "bias":
            part = 0.1 * np.sqrt(mse) - 0.05
        elif metric in ("mae", "crps", "crps_skill", "crps_spread"):
            part = 0.7 * np.sqrt(mse)
        else:
            part = 0.9 * mse if "variance" in metric else mse.copy()
        for name in VECTORS:
            if metric not in ("mse", "rmse"):
                part[name] = part[name] * np.nan
        parts.append(part)
    data = xr.concat(parts, xr.DataArray(metrics, dims="metric", name="metric"))
    for name in data.data_vars:
        data[name].attrs["units"] = UNITS.get(str(name), "K" if "temp" in str(name) else "m s-1")
    return data


def maps(seed: int) -> xr.Dataset:
    latitude = np.linspace(87.1875, -87.1875, 32)
    longitude = np.arange(64) * 5.625
    wave = np.cos(np.deg2rad(latitude))[:, None] * np.sin(np.deg2rad(longitude + 40.0 * seed))
    hours = np.array([24, 120])
    data = {}
    for variable, level in (("geopotential", 500), ("temperature", 850), ("2m_temperature", 0)):
        values = 0.2 * SIZES[variable] * wave * (hours / 240.0)[:, None, None]
        if level:
            full = np.full((2, LEVELS.size, 32, 64), np.nan)
            full[:, list(LEVELS).index(level)] = values
            dims: tuple[str, ...] = ("lead_time", "level", "latitude", "longitude")
            data[variable] = (dims, full.astype(np.float32))
        else:
            dims = ("lead_time", "latitude", "longitude")
            data[variable] = (dims, values.astype(np.float32))
    coordinates = {"lead_time": hours, "level": LEVELS, "latitude": latitude}
    return xr.Dataset(data, coordinates | {"longitude": longitude})


def spectra(names: list[str]) -> xr.Dataset:
    waves, latitude = np.arange(33), np.linspace(87.1875, -87.1875, 32)
    shape = (len(names), 2, LEVELS.size, 32, 33)
    steepness = np.linspace(3.0, 3.5, len(names)).reshape(-1, 1, 1, 1, 1)
    energy = 1e9 * np.maximum(waves, 0.5) ** -steepness * np.ones(shape)
    dims = ("model", "lead_time", "level", "latitude", "zonal_wavenumber")
    return xr.Dataset(
        {"geopotential": (dims, energy)},
        {
            "model": names,
            "lead_time": [24, 120],
            "level": LEVELS,
            "latitude": latitude,
            "zonal_wavenumber": waves,
        },
    )


def ranks(num_members: int) -> xr.Dataset:
    shares = np.linspace(2.0, 1.0, num_members + 1)
    shares = shares / shares.sum() * np.ones((2, LEVELS.size, num_members + 1))
    return xr.Dataset(
        {"geopotential": (("lead_time", "level", "bins"), shares)},
        {"lead_time": [24, 120], "level": LEVELS, "bins": np.arange(num_members + 1)},
    )


def protocol(names: list[str], num_members: int = 1) -> dict[str, object]:
    kinds = {"forecast": "forecast", "persistence": "baseline", "climatology": "baseline"}
    models = []
    for name in names:
        models.append(
            {
                "name": name,
                "label": f"{name}.zarr",
                "kind": kinds.get(name, "compare"),
                "path": f"/data/{name}.zarr",
                "truth": "/data/truth.zarr",
                "resolution": "64x32",
                "regridded_from": None,
                "members": num_members,
                "init_times": [str(one)[:19] for one in init_times()],
                "num_init_times": NUM_INITS,
                "missing": [],
                "num_missing": 0,
                "lead_times": HOURS.tolist(),
                "comparable": True,
                "comparison": "",
                "scores": "scores.nc" if name == "forecast" else f"scores_{name}.nc",
                "statistics": f"statistics/{name}.nc",
                "maps": f"maps_{name}.nc",
                "notes": [],
                "attributes": {},
            }
        )
    return {
        "format": 1,
        "versions": {"jigsaw_forecast": "0.1.0"},
        "created": "2026-11-25T10:00:00Z",
        "command": ["score"],
        "models": models,
        "truth": "/data/truth.zarr",
        "climatology": "/data/climatology.zarr",
        "resolution": "64x32",
        "regions": REGIONS,
        "lead_times": HOURS.tolist(),
        "variables": {},
        "init_hours": [0, 12],
        "acc": "mean over initial times",
        "acc_pooled": "pooled",
        "land_sea_mask": "fraction of the truth's land_sea_mask",
        "nan_policy": "NaN stays",
        "members": f"{num_members} members" if num_members > 1 else "",
        "warnings": [],
        "notice": "",
    }


def write_folder(
    folder: Path, names: tuple[str, ...] = tuple(MODELS), num_members: int = 1
) -> Path:
    """The whole folder; `forecast` first."""
    (folder / "statistics").mkdir(parents=True)
    for seed, name in enumerate(names):
        growth = MODELS.get(name, 90.0)
        per_init = statistics(growth, seed)
        per_init.to_netcdf(folder / "statistics" / f"{name}.nc")
        stem = "scores" if name == "forecast" else f"scores_{name}"
        scores(per_init, growth, num_members).to_netcdf(folder / f"{stem}.nc")
        if name not in ("persistence", "climatology"):
            maps(seed).to_netcdf(folder / f"maps_{name}.nc")
    real = [name for name in names if name not in ("persistence", "climatology")]
    spectra([*real, "truth"]).to_netcdf(folder / "spectra.nc")
    if num_members > 1:
        ranks(num_members).to_netcdf(folder / "rank_histogram.nc")
    text = json.dumps(protocol(list(names), num_members))
    (folder / "protocol.json").write_text(text, encoding="utf-8")
    return folder
