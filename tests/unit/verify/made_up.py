"""Made-up forecasts, truth and climatology on disk, in the layouts that users bring."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

INITS = np.arange("2020-02-27T00", "2020-03-01T12", 12, dtype="datetime64[h]").astype(
    "datetime64[ns]"
)
LEADS_H = (0, 6, 24, 48)
LEVELS = (500, 850)
BASE = {
    "geopotential": (5.0e4, 800.0, "m2 s-2"),
    "u_component_of_wind": (5.0, 9.0, "m s-1"),
    "v_component_of_wind": (0.0, 7.0, "m s-1"),
    "2m_temperature": (280.0, 9.0, "K"),
    "10m_u_component_of_wind": (1.0, 4.0, "m s-1"),
    "10m_v_component_of_wind": (0.0, 4.0, "m s-1"),
}
ON_LEVELS = ("geopotential", "u_component_of_wind", "v_component_of_wind")


@dataclass
class Case:
    """Datasets in one layout: latitudes ascend, dims in the order of WeatherBench 2."""

    forecast: xr.Dataset
    truth: xr.Dataset
    climatology: xr.Dataset


def make_case(
    latitudes: Sequence[float] = tuple(np.linspace(-90, 90, 19)),
    num_lon: int = 24,
    variables: Sequence[str] = ("geopotential", "2m_temperature"),
    num_members: int = 0,
    seed: int = 0,
) -> Case:
    """Noise with a mean and deviation of its own for each variable, float32."""
    rng = np.random.default_rng(seed)
    lat, lon = np.asarray(latitudes, dtype=np.float64), np.arange(num_lon) * (360.0 / num_lon)
    leads = np.array(LEADS_H, dtype="timedelta64[h]").astype("timedelta64[ns]")
    times = np.unique((INITS[:, None] + leads[None]).ravel())
    days = np.arange(55, 70)
    sizes = {"time": times.size, "init": INITS.size, "lead": leads.size, "hour": 4}
    sizes |= {"dayofyear": days.size, "level": len(LEVELS), "number": num_members}

    def draw(name: str, dims: tuple[str, ...], spread: float = 1.0) -> xr.DataArray:
        mean, deviation, units = BASE[name]
        level = ("level",) if name in ON_LEVELS else ()
        shape = (*(sizes[dim] for dim in (*dims, *level)), num_lon, lat.size)
        values = mean + spread * deviation * rng.normal(size=shape)
        every = (*dims, *level, "longitude", "latitude")
        return xr.DataArray(values.astype(np.float32), dims=every, attrs={"units": units})

    members = ("number",) if num_members else ()
    forecast = xr.Dataset({name: draw(name, (*members, "init", "lead")) for name in variables})
    forecast = forecast.rename(init="time", lead="prediction_timedelta")
    forecast = forecast.assign_coords(time=INITS, prediction_timedelta=leads)
    truth = xr.Dataset({name: draw(name, ("time",)) for name in variables})
    land = rng.uniform(size=(num_lon, lat.size)) * (rng.uniform(size=(num_lon, lat.size)) > 0.4)
    truth["land_sea_mask"] = (("longitude", "latitude"), land.astype(np.float32))
    truth = truth.assign_coords(time=times)
    climatology = xr.Dataset({name: draw(name, ("hour", "dayofyear"), 0.2) for name in variables})
    climatology = climatology.assign_coords(hour=[0, 6, 12, 18], dayofyear=days)
    coords = {"latitude": lat, "longitude": lon}
    if "level" in forecast.dims:
        coords["level"] = np.array(LEVELS, dtype=np.int32)
    if num_members:
        forecast = forecast.assign_coords(number=np.arange(num_members))
    return Case(*(one.assign_coords(coords) for one in (forecast, truth, climatology)))


def paired(case: Case, name: str) -> tuple[xr.DataArray, xr.DataArray, xr.DataArray]:
    """Forecast, truth and climatology of a variable over `init` and `lead`."""
    forecast = case.forecast[name].rename(time="init", prediction_timedelta="lead")
    valid = forecast["init"] + forecast["lead"]
    truth = case.truth[name].sel(time=valid).drop_vars("time")
    climatology = case.climatology[name].sel(dayofyear=valid.dt.dayofyear, hour=valid.dt.hour)
    return forecast, truth, climatology.drop_vars(["dayofyear", "hour"])


def write(case: Case, folder: Path) -> list[str]:
    """Writes the case as netCDF and returns the options that name its files."""
    options = []
    for name in ("forecast", "truth", "climatology"):
        getattr(case, name).to_netcdf(folder / f"{name}.nc", engine="netcdf4")
        options += [f"--{name}", str(folder / f"{name}.nc")]
    return options
