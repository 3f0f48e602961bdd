"""Speed and memory of scoring, against the store's read rate and plain xarray with dask.

    python benchmarks/score_speed.py [--inits 12] [--grid 64x32|1440x721] [--workers 2]
                                     [--plain-inits 4] [--lead-chunk 1] [--everything]

Makes a forecast store of mock weather (one chunk a lead time and variable, as forecasts are
written, or `--lead-chunk` lead times together, as archives often have them), analyses and a
climatology in a temporary folder, then in the same run and on the same files: reads every chunk of
the forecast once, in as many processes as score; scores it with `jigsaw_forecast.verify` (mse, mae,
bias, three moments of the ACC, 16 regions); and computes the same means as weatherbench2 writes
them, with xarray and dask in as many threads, from the first `--plain-inits` initial times. Prints
seconds, MB of float32 a second, ratios of rates, largest difference and the peak memory of all
processes together. `--everything` adds baselines, spectra and maps. Page cache is warm for all: the
files were written just before. Initial times beyond the first few are links to their files, so that
a year takes no more disk than a week.
"""

import argparse
import multiprocessing
import os
import shutil
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
STEP = np.timedelta64(6, "h")  # from one initial time to the next of a year, twice that of less
A_YEAR = 1460
DISTINCT_INITS = {True: 3, False: 12}  # by fine: the others are links to these
MEMORY_PERIOD_S = 0.1
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


def make_store(
    path: Path, grid: Grid, fine: bool, times: dict[str, np.ndarray], lead_chunk: int = 1
) -> None:
    """A store with these leading dims, one chunk for each of their entries or some lead times."""
    rng = np.random.default_rng(sum(path.name.encode()))
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
            variable, shape=(*leading, *inner),
            chunks=(*(1 for _ in leading[1:]), lead_chunk, *inner),
            dtype=np.float32, fill_value=np.nan,
            dimension_names=(*times, *level, "latitude", "longitude"),
            compressors=[BloscCodec(cname="zstd", clevel=3, shuffle="shuffle", typesize=4),
                         Crc32cCodec()],
        )  # fmt: skip
        distinct = DISTINCT_INITS[fine] if len(leading) == 2 and "time" in times else leading[0]
        for *before, last in np.ndindex((*(min(distinct, one) for one in leading[:-1]),
                                         -(-leading[-1] // lead_chunk))):  # fmt: skip
            part = slice(last * lead_chunk, (last + 1) * lead_chunk)
            size = len(range(*part.indices(leading[-1])))
            array[(*before, part)] = noise(rng, (size, *inner), grid)
        folder = path / variable / "c"
        for init in range(distinct, leading[0]):
            shutil.copytree(
                folder / str(init % distinct), folder / str(init), copy_function=os.link
            )
    if "time" in times and len(times) == 1:
        land = group.create_array(
            "land_sea_mask", shape=(grid.num_lat, grid.num_lon), dtype=np.float32,
            dimension_names=("latitude", "longitude"),
        )  # fmt: skip
        land[:] = rng.uniform(size=(grid.num_lat, grid.num_lon)).astype(np.float32)


def read_part(path: Path, first: int, every: int) -> None:
    """Reads the chunks of some initial times, one call for each of them and variable."""
    for _, array in zarr.open_group(path, mode="r").arrays():
        if array.ndim > 2:
            for init in range(first, array.shape[0], every):
                _ = array[init]


def read_all(path: Path, workers: int = 1) -> float:
    """Seconds to read every chunk once."""
    start = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    readers = [context.Process(target=read_part, args=(path, first, workers))
               for first in range(workers)]  # fmt: skip
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert not any(reader.exitcode for reader in readers)
    return time.perf_counter() - start


def memory_mb(root: int) -> float:
    """Memory of a process and its descendants, shared pages counted once: Pss of Linux."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int(
                    (entry / "stat").read_text().split(") ")[1].split()[1]
                )
            except (OSError, IndexError):
                continue  # it has ended
    family = {root}
    for _ in range(4):  # generations
        family |= {one for one, parent in parents.items() if parent in family}
    total = 0
    for one in family:
        try:
            text = Path(f"/proc/{one}/smaps_rollup").read_text()
        except OSError:
            continue
        total += next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total / 1024


def score_apart(folder: Path, options: argparse.Namespace) -> tuple[float, float]:
    """Seconds and peak MB of scoring in a process of its own and its workers."""
    command = [sys.executable, __file__, "--score-only", str(folder), "--workers",
               str(options.workers), *(["--everything"] if options.everything else [])]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, memory_mb(process.pid))
        time.sleep(MEMORY_PERIOD_S)
    assert process.stdout is not None
    output = process.stdout.read()
    assert process.returncode == 0, output
    return float(output.split()[-1]), peak


def score_here(folder: Path, workers: int, everything: bool = False) -> float:
    """Seconds that the package's scoring takes, files opened and results written."""
    from jigsaw_forecast.verify.request import ScoreRequest
    from jigsaw_forecast.verify.score import score

    start = time.perf_counter()
    score(
        ScoreRequest(
            forecast=(folder / "forecast.zarr",), truth=(folder / "truth.zarr",),
            climatology=folder / "climatology.zarr", output=folder / "out",
            baselines=("persistence", "climatology") if everything else (),
            with_spectra=everything, with_report=False, workers=workers, overwrite=True,
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


def score_plainly(folder: Path, workers: int, num_inits: int) -> tuple[float, xr.Dataset]:
    """Seconds and the squares by initial time that plain xarray and dask give."""
    start = time.perf_counter()
    forecast = xr.open_zarr(folder / "forecast.zarr", consolidated=False, decode_timedelta=True,
                            chunks={"time": 1, "prediction_timedelta": NUM_LEADS})  # fmt: skip
    forecast = forecast.isel(time=slice(num_inits))
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
    return time.perf_counter() - start, squares


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inits", type=int, default=12)
    parser.add_argument("--grid", default="64x32")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--plain-inits", type=int, default=4, help="0: none")
    parser.add_argument("--lead-chunk", type=int, default=1, help="lead times a chunk")
    parser.add_argument("--everything", action="store_true", help="baselines, spectra and maps too")
    parser.add_argument("--score-only", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # what is known stays known when it is cut off
    if options.score_only:
        print(score_here(options.score_only, options.workers, options.everything))
        return
    grid = Grid.parse(options.grid)
    fine = grid.num_lon >= FINEST_COLUMNS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inits = np.datetime64("2020-03-01T00") + np.arange(options.inits) * STEP * (
            2 if options.inits < A_YEAR else 1
        )
        leads = (np.arange(NUM_LEADS) + 1) * 6
        valid = np.unique(inits[:, None] + leads[None] * np.timedelta64(1, "h"))
        make_store(
            folder / "forecast.zarr",
            grid,
            fine,
            {"time": inits, "prediction_timedelta": leads},
            options.lead_chunk,
        )
        make_store(folder / "truth.zarr", grid, fine, {"time": valid})
        days = np.unique((valid.astype("datetime64[D]") - valid.astype("datetime64[Y]"))
                         .astype(int)) + 1  # fmt: skip
        make_store(folder / "climatology.zarr", grid, fine,
                   {"hour": np.array([0, 6, 12, 18]), "dayofyear": days})  # fmt: skip
        fields = len(FINE_FIELDS) if fine else len(ON_LEVELS) * len(LEVELS) + len(SURFACE)
        size = options.inits * NUM_LEADS * fields * grid.num_lat * grid.num_lon * 4 / 1e6
        print(
            f"{options.inits} initial times x {NUM_LEADS} lead times ({options.lead_chunk} a "
            f"chunk) x {fields} fields at {grid.name}: {size:.0f} MB, {options.workers} worker(s)"
        )
        reading = read_all(folder / "forecast.zarr", options.workers)
        scoring, memory = score_apart(folder, options)
        print(f"read every chunk once: {reading:.1f} s, {size / reading:.0f} MB/s")
        print(f"score: {scoring:.1f} s, {size / scoring:.0f} MB/s, {reading / scoring:.2f} of the "
              f"read rate; peak memory of all processes {memory:.0f} MB")  # fmt: skip
        few = min(options.plain_inits, options.inits)
        if not few:
            return
        plain, squares = score_plainly(folder, options.workers, few)
        rate = size * few / options.inits / plain
        print(f"plain xarray and dask, {few} initial times: {plain:.1f} s, {rate:.0f} MB/s; score "
              f"is {size / scoring / rate:.1f} times as fast")  # fmt: skip
        with xr.open_dataset(folder / "out" / "statistics" / "forecast.nc") as statistics:
            worst = 0.0
            for variable in squares.data_vars:
                ours = statistics[variable].sel(statistic="mse").isel(init_time=slice(few))
                theirs = squares[variable].rename(time="init_time",
                                                  prediction_timedelta="lead_time")  # fmt: skip
                theirs = theirs.transpose(*ours.dims).values
                worst = max(worst, float(np.nanmax(np.abs(ours.values / theirs - 1))))
        print(f"largest relative difference of the mean squares: {worst:.1e}")


if __name__ == "__main__":
    main()
