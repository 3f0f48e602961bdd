"""Measures reading an initial state from GRIB 2 against a bare eccodes loop, in one run.

Writes the 69 WeatherBench fields at 0.25 degrees (16 bit, CCSDS) to a temporary folder, then
times both ways in turn and measures their peak memory, each in a process of its own.

    python benchmarks/read_grib.py [--grid 1440x721] [--repeats 3]
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import eccodes
import numpy as np

from jigsaw_forecast.data.source import open_source, plan_initial_state
from jigsaw_forecast.fields import WEATHERBENCH_FIELDS, Field, plausible_range
from jigsaw_forecast.grid import Grid

INIT_TIME = np.datetime64("2026-06-24T00:00:00", "s")
# A mean and an amplitude inside of each variable's plausible range.
TYPICAL = {
    "temperature": (250.0, 25.0),
    "2m_temperature": (280.0, 20.0),
    "specific_humidity": (0.01, 0.009),
    "mean_sea_level_pressure": (101000.0, 2000.0),
}


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grid", default="1440x721")
    parser.add_argument("--repeats", type=int, default=8)
    arguments = parser.parse_args()
    grid = Grid.parse(arguments.grid)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.grib2"
        write_state(path, grid)
        state_bytes = len(WEATHERBENCH_FIELDS) * grid.num_lat * grid.num_lon * 4
        print(f"{len(WEATHERBENCH_FIELDS)} fields, {grid.name}, best of {arguments.repeats}")
        print(
            f"file {path.stat().st_size / 1e6:.0f} MB, state {state_bytes / 1e6:.0f} MB in float32"
        )
        ways = {
            "bare eccodes loop": read_bare,
            "bare loop that keeps float64": read_bare_and_keep,
            "plan and read": read_state,
        }
        seconds = measure_seconds(ways, path, grid, arguments.repeats)
        print(f"{'':29} {'CPU s':>6} {'ratio':>6} {'memory / state':>15}")
        for name, read in ways.items():
            ratio = seconds[name] / seconds["bare eccodes loop"]
            memory = measure_memory(read, path, grid) / state_bytes
            print(f"{name:29} {seconds[name]:6.2f} {ratio:6.2f} {memory:15.2f}")


def write_state(path: Path, grid: Grid) -> None:
    """Writes every field with weather-like noise, so that packing is not trivial."""
    shape = waves(grid)
    template = eccodes.codes_grib_new_from_samples("regular_ll_pl_grib2")
    for key, value in header(grid).items():
        eccodes.codes_set(template, key, value)
    with path.open("wb") as stream:
        for field in WEATHERBENCH_FIELDS:
            handle = eccodes.codes_clone(template)
            eccodes.codes_set(handle, "paramId", field.spec.param_ids[0])
            if field.level_hpa:
                eccodes.codes_set(handle, "level", field.level_hpa)
            eccodes.codes_set_values(handle, (mean_of(field) + amplitude_of(field) * shape).ravel())
            eccodes.codes_write(handle, stream)
            eccodes.codes_release(handle)
    eccodes.codes_release(template)


def waves(grid: Grid) -> np.ndarray:
    """Smooth waves with noise of 2 %, between about -1 and 1."""
    rng = np.random.default_rng(0)
    lat, lon = np.deg2rad(grid.latitudes)[:, None], np.deg2rad(grid.longitudes)[None, :]
    smooth = np.cos(lat) * np.sin(5 * lon) + 0.3 * np.sin(3 * lat) * np.cos(23 * lon)
    noisy: np.ndarray = smooth / np.abs(smooth).max() + 0.02 * rng.standard_normal(smooth.shape)
    return noisy


def header(grid: Grid) -> dict[str, str | int | float]:
    """Keys of grid, time and packing."""
    spacing = 360.0 / grid.num_lon
    return {
        "Ni": grid.num_lon,
        "Nj": grid.num_lat,
        "latitudeOfFirstGridPointInDegrees": float(grid.latitudes[0]),
        "latitudeOfLastGridPointInDegrees": float(grid.latitudes[-1]),
        "longitudeOfFirstGridPointInDegrees": 0.0,
        "longitudeOfLastGridPointInDegrees": 360.0 - spacing,
        "iDirectionIncrementInDegrees": spacing,
        "jDirectionIncrementInDegrees": abs(float(grid.latitudes[0] - grid.latitudes[1])),
        "dataDate": 20260624,
        "dataTime": 0,
        "packingType": "grid_ccsds",
        "bitsPerValue": 16,
    }


def mean_of(field: Field) -> float:
    """A plausible mean."""
    if field.variable in TYPICAL:
        return TYPICAL[field.variable][0]
    low, high = plausible_range(field)
    return (low + high) / 2


def amplitude_of(field: Field) -> float:
    """A plausible amplitude."""
    if field.variable in TYPICAL:
        return TYPICAL[field.variable][1] * 0.8
    low, high = plausible_range(field)
    return (high - low) / 4


def read_bare(path: Path, grid: Grid) -> int:
    """Decodes every message as eccodes' own example does, and keeps nothing."""
    num_fields = 0
    with path.open("rb") as stream:
        while (handle := eccodes.codes_grib_new_from_file(stream)) is not None:
            eccodes.codes_get_values(handle)
            eccodes.codes_release(handle)
            num_fields += 1
    return num_fields


def read_state(path: Path, grid: Grid) -> int:
    """Opens, plans, decodes, checks and keeps the state."""
    plausible = {field: plausible_range(field) for field in WEATHERBENCH_FIELDS}
    plan = plan_initial_state(
        open_source(path), WEATHERBENCH_FIELDS, grid, INIT_TIME, regrid=False, plausible=plausible
    )
    return len(plan.read(WEATHERBENCH_FIELDS))


def read_bare_and_keep(path: Path, grid: Grid) -> int:
    """The same loop, its maps kept."""
    maps = []
    with path.open("rb") as stream:
        while (handle := eccodes.codes_grib_new_from_file(stream)) is not None:
            maps.append(eccodes.codes_get_values(handle))
            eccodes.codes_release(handle)
    return len(maps)


def measure_seconds(
    ways: Mapping[str, Callable[[Path, Grid], int]], path: Path, grid: Grid, repeats: int
) -> dict[str, float]:
    """Processor seconds of each way's best repeat, the ways taking turns."""
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(repeats):
        for name, read in ways.items():
            start = time.process_time()
            num_fields = read(path, grid)
            best[name] = min(best[name], time.process_time() - start)
            assert num_fields == len(WEATHERBENCH_FIELDS)
    return best


def measure_memory(read: Callable[[Path, Grid], int], path: Path, grid: Grid) -> int:
    """Peak memory of one reading above that before it, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_measure_memory_here, (read, path, grid))


def _measure_memory_here(read: Callable[[Path, Grid], int], path: Path, grid: Grid) -> int:
    before = peak_memory_bytes()
    read(path, grid)
    return peak_memory_bytes() - before


def peak_memory_bytes() -> int:
    """VmHWM of this process; getrusage would carry over the parent's peak through exec."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
