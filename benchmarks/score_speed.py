"""Speed and memory of scoring, against the store's read rate and plain xarray with dask.

    python benchmarks/score_speed.py [--inits 12] [--grid 64x32|1440x721] [--workers 1]

Makes a forecast store of mock weather (one chunk a lead time and variable, as forecasts are
written), analyses and a climatology in a temporary folder, then in the same run and on the same
files: reads every chunk of the forecast once; scores it with `jigsaw_forecast.verify` (mse, mae,
bias, three moments of the ACC, 16 regions); and computes the same means as weatherbench2 writes
them, with xarray and dask. Prints seconds, MB of float32 a second, ratios, largest difference and
peak memory. Page cache is warm for all.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import dask
import numpy as np
import xarray as xr
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from jigsaw_forecast.grid import Grid
from jigsaw_forecast.verify.regions import REGIONS

LEVELS = (100, 200, 300, 400, 500, 700, 850, 925)
ON_LEVELS = ("geopotential", "temperature", "u_component_of_wind", "v_component_of_wind",
             "specific_humidity")  # fmt: skip
SURFACE = ("2m_temperature", "10m_u_component_of_wind", "10m_v_component_of_wind",
           "mean_sea_level_pressure")  # fmt: skip
FINE_FIELDS = ("2m_temperature", "10m_u_component_of_wind", "10m_v_component_of_wind",
               "mean_sea_level_pressure", "2m_dewpoint_temperature")  # fmt: skip
NUM_LEADS = 40
STEP = np.timedelta64(6, "h")
FINEST_COLUMNS = 360


def noise(rng: np.random.Generator, shape: tuple[int, ...], grid: Grid) -> np.ndarray:
    """Smooth maps with 16 significant bits, which compress as weather does."""
    lat, lon = np.deg2rad(grid.latitudes)[:, None], np.deg2rad(grid.longitudes)[None]
    maps = np.zeros((int(np.prod(shape[:-2])), grid.num_lat, grid.num_lon), dtype=np.float32)
    for index in range(maps.shape[0]):
        a, b, c = rng.normal(size=3)
        wave = a * np.sin(3 * lon + b) * np.cos(lat) + c * np.cos(5 * lat)
        maps[index] = 280.0 + 10.0 * wave
    maps += rng.normal(size=(grid.num_lat, grid.num_lon)).astype(np.float32)
    maps = (np.round(maps * 64) / 64).astype(np.float32)
    return maps.reshape(shape)


def make_store(path: Path, grid: Grid, fine: bool, times: dict[str, np.ndarray]) -> None:
    """A store with these leading dims, one chunk for each of their entries."""
    rng = np.random.default_rng(0)
    group = zarr.create_group(path, zarr_format=3)
    axes = {**times, "latitude": grid.latitudes, "longitude": grid.longitudes}
    if not fine:
        axes["level"] = np.array(LEVELS)
    for name, values in axes.items():
        attributes = {}
        if values.dtype.kind == "M":
            attributes = {"units": "hours since 1970-01-01T00:00:00"}
            values = values.astype("datetime64[h]").astype(np.int64)
        if name == "prediction_timedelta":
            attributes = {"units": "hours", "dtype": "timedelta64[ns]"}
        array = group.create_array(name, shape=values.shape, dtype=values.dtype,
                                   dimension_names=(name,), attributes=attributes)  # fmt: skip
        array[:] = values
    leading = tuple(values.size for values in times.values())
    for variable in FINE_FIELDS if fine else (*ON_LEVELS, *SURFACE):
        level = ("level",) if variable in ON_LEVELS else ()
        inner = (*(len(LEVELS) for _ in level), grid.num_lat, grid.num_lon)
        array = group.create_array(
            variable, shape=(*leading, *inner), chunks=(*(1 for _ in leading), *inner),
            dtype=np.float32, fill_value=np.nan,
            dimension_names=(*times, *level, "latitude", "longitude"),
            compressors=[BloscCodec(cname="zstd", clevel=3, shuffle="shuffle", typesize=4),
                         Crc32cCodec()],
        )  # fmt: skip
        for place in np.ndindex(leading):
            array[place] = noise(rng, inner, grid)
    if "time" in times and len(times) == 1:
        land = group.create_array(
            "land_sea_mask", shape=(grid.num_lat, grid.num_lon), dtype=np.float32,
            dimension_names=("latitude", "longitude"),
        )  # fmt: skip
        land[:] = rng.uniform(size=(grid.num_lat, grid.num_lon)).astype(np.float32)


def read_all(path: Path) -> float:
    """Seconds to read every chunk once, one call for each initial time and variable."""
    start = time.perf_counter()
    for name, array in zarr.open_group(path, mode="r").arrays():
        if array.ndim > 2:
            for init in range(array.shape[0]):
                _ = array[init]
        del name
    return time.perf_counter() - start


def score_here(folder: Path, workers: int) -> float:
    """Seconds that the package's scoring takes, files opened and results written."""
    from jigsaw_forecast.verify.request import ScoreRequest
    from jigsaw_forecast.verify.score import score

    start = time.perf_counter()
    score(
        ScoreRequest(
            forecast=(folder / "forecast.zarr",), truth=(folder / "truth.zarr",),
            climatology=folder / "climatology.zarr", output=folder / "out", baselines=(),
            with_spectra=False, with_report=False, workers=workers, overwrite=True,
        )
    )  # fmt: skip
    return time.perf_counter() - start


def spatial_mean(
    values: xr.Dataset, weights: xr.DataArray, land: xr.DataArray, name: str
) -> xr.Dataset:
    """As weatherbench2 writes it: select the box, weigh, average."""
    region = REGIONS[name]
    lat, lon = values["latitude"], values["longitude"]
    rows = np.zeros(lat.size, dtype=bool)
    for low, high in region.latitudes:
        rows |= ((lat >= low) & (lat <= high)).values
    columns = np.zeros(lon.size, dtype=bool)
    for low, high in region.longitudes:
        columns |= ((lon >= low) & (lon <= high)).values
    weights = weights.isel(latitude=rows)
    if region.is_land:
        weights = weights * land.isel(latitude=rows, longitude=columns)
    values = values.isel(latitude=rows, longitude=columns).where(weights > 0, 0)
    return values.weighted(weights).mean(("latitude", "longitude"), skipna=False)


def score_plainly(folder: Path, workers: int) -> tuple[float, xr.Dataset]:
    """Seconds and the mean squares that plain xarray and dask give."""
    start = time.perf_counter()
    forecast = xr.open_zarr(folder / "forecast.zarr", consolidated=False, decode_timedelta=True,
                            chunks={"time": 1, "prediction_timedelta": NUM_LEADS})  # fmt: skip
    truth = xr.open_zarr(folder / "truth.zarr", consolidated=False)
    climate = xr.open_zarr(folder / "climatology.zarr", consolidated=False)
    land = truth["land_sea_mask"].astype(np.float64).load()
    truth = truth.drop_vars("land_sea_mask")
    valid = forecast["time"] + forecast["prediction_timedelta"]
    chunks = {"time": 1, "prediction_timedelta": NUM_LEADS}
    observed = truth.sel(time=valid).chunk(chunks).astype(np.float64)
    mean = climate.sel(dayofyear=valid.dt.dayofyear, hour=valid.dt.hour).chunk(chunks)
    forecast = forecast.astype(np.float64)
    ours, theirs = forecast - mean, observed - mean
    error = forecast - observed
    points = np.deg2rad(np.sort(forecast["latitude"].values))
    bounds = np.concatenate([[-np.pi / 2], (points[1:] + points[:-1]) / 2, [np.pi / 2]])
    area = np.diff(np.sin(bounds))[::-1]
    weights = forecast["latitude"].copy(data=area / area.mean())
    fields = {"mse": error**2, "mae": abs(error), "bias": error, "covariance": ours * theirs,
              "forecast": ours**2, "truth": theirs**2}  # fmt: skip
    found = [
        xr.concat([spatial_mean(one, weights, land, name) for name in REGIONS], "region")
        for one in fields.values()
    ]
    with dask.config.set(scheduler="threads", num_workers=workers):
        squares, *_ = dask.compute(*found)
    return time.perf_counter() - start, squares.mean("time")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inits", type=int, default=12)
    parser.add_argument("--grid", default="64x32")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--score-only", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--without-plain", action="store_true", help="scoring and reading only")
    options = parser.parse_args()
    if options.score_only:
        print(score_here(options.score_only, options.workers))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    grid = Grid.parse(options.grid)
    fine = grid.num_lon >= FINEST_COLUMNS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inits = np.datetime64("2020-03-01T00") + np.arange(options.inits) * STEP * 2
        leads = (np.arange(NUM_LEADS) + 1) * 6
        valid = np.unique(inits[:, None] + leads[None] * np.timedelta64(1, "h"))
        make_store(
            folder / "forecast.zarr", grid, fine, {"time": inits, "prediction_timedelta": leads}
        )
        make_store(folder / "truth.zarr", grid, fine, {"time": valid})
        days = np.unique([(v.astype("datetime64[D]") - np.datetime64("2020-01-01")).astype(int) + 1
                          for v in valid])  # fmt: skip
        make_store(folder / "climatology.zarr", grid, fine,
                   {"hour": np.array([0, 6, 12, 18]), "dayofyear": days})  # fmt: skip
        fields = len(FINE_FIELDS) if fine else len(ON_LEVELS) * len(LEVELS) + len(SURFACE)
        size = options.inits * NUM_LEADS * fields * grid.num_lat * grid.num_lon * 4 / 1e6
        print(f"{options.inits} initial times x {NUM_LEADS} lead times x {fields} fields at "
              f"{grid.name}: {size:.0f} MB, {options.workers} worker(s)")  # fmt: skip
        read_all(folder / "forecast.zarr")  # warms the page cache
        reading = read_all(folder / "forecast.zarr")
        command = [sys.executable, __file__, "--score-only", str(folder), "--workers",
                   str(options.workers)]  # fmt: skip
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        scoring, memory = float(output[-2]), float(output[-1])
        print(f"read every chunk once: {reading:.1f} s, {size / reading:.0f} MB/s")
        print(f"score: {scoring:.1f} s, {size / scoring:.0f} MB/s, {reading / scoring:.2f} of the "
              f"read rate; peak memory of the process {memory:.0f} MB")  # fmt: skip
        if options.without_plain:
            return
        plain, squares = score_plainly(folder, options.workers)
        print(f"plain xarray and dask: {plain:.1f} s, {size / plain:.0f} MB/s; score is "
              f"{plain / scoring:.1f} times as fast")  # fmt: skip
        with xr.open_dataset(folder / "out" / "scores.nc") as scores:
            worst = 0.0
            for variable in squares.data_vars:
                ours = scores[variable].sel(metric="mse")
                theirs = squares[variable].rename(prediction_timedelta="lead_time")
                theirs = theirs.transpose(*ours.dims).values
                worst = max(worst, float(np.abs(ours.values / theirs - 1).max()))
        print(f"largest relative difference of the mean squares: {worst:.1e}")


if __name__ == "__main__":
    main()
