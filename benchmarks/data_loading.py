"""Measures reading of training samples at 0.25 degrees against what one would write by hand.

On one data set: a store of WeatherBench 2 layout (blosc lz4, a time a chunk, as WeatherBench 2
and ARCO-ERA5 have it) and the training set that `data convert` makes of it, with the same codec.
A sample is two times of 69 fields, normalised, in shuffled order. Contenders: torch's DataLoader
over xarray, zarr's own pipeline, `zarrs` where it is installed, and ours.

Then: bytes of each rank by the kernel's counters; samples per second of model groups of 1, 2 and 4
ranks whose readers are throttled; and the share of a train step that waits for data.

    python benchmarks/data_loading.py FOLDER [--grid 1440x721] [--times 12] [--samples 8]
"""

import argparse
import json
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
import zarr
from era5_like import write_store

from jigsaw_forecast.data.convert import ConvertRequest, convert
from jigsaw_forecast.data.convert_fields import Selection
from jigsaw_forecast.data.forcings import ForcingMaps
from jigsaw_forecast.data.loading import Batch, ReadAhead, SampleOrder
from jigsaw_forecast.data.shards import ShardReader
from jigsaw_forecast.data.statistics import Statistics
from jigsaw_forecast.data.store import Period, Store
from jigsaw_forecast.data.stores import open_store
from jigsaw_forecast.data.training_set import TrainingSet
from jigsaw_forecast.fields import WEATHERBENCH_FIELDS
from jigsaw_forecast.grid import Grid
from jigsaw_forecast.model.config import PRESETS, ModelConfig
from jigsaw_forecast.model.sample import sample_pieces
from jigsaw_forecast.model.weather_mixer import WeatherMixer
from jigsaw_forecast.parallel.mesh import Axis, Mesh, single_rank_mesh

FIELDS = WEATHERBENCH_FIELDS
ONE = single_rank_mesh()


def main() -> None:
    """Prints one table of each part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--grid", default="1440x721")
    parser.add_argument("--times", type=int, default=12)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--throttle", type=float, default=200.0, help="MB/s of each rank's reader")
    parser.add_argument("--parts", nargs="+", default=["read", "bytes", "throttle", "wait"])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    source, data = prepare(arguments.folder, Grid.parse(arguments.grid), arguments.times)
    config = config_for(arguments.grid)
    figures: dict[str, Any] = {}
    parts = {
        "read": lambda: compare_readers(source, data, config, arguments.samples, arguments.rounds),
        "bytes": lambda: count_bytes(data, config),
        "throttle": lambda: throttle(data, config, arguments.throttle, arguments.samples),
        "wait": lambda: measure_wait(data, config, arguments.samples),
    }
    for part in arguments.parts:
        figures[part] = parts[part]()
        print()
    if arguments.json:
        arguments.json.write_text(json.dumps(figures))


def prepare(folder: Path, grid: Grid, num_times: int) -> tuple[Path, Path]:
    """The store and the training set, made where they are not there."""
    folder.mkdir(parents=True, exist_ok=True)
    source, data = folder / "source.zarr", folder / "set.zarr"
    if not source.exists():
        write_store(source, grid, num_times)
    if not data.exists():
        shutil.rmtree(data.with_name("set.zarr.partial"), ignore_errors=True)
        convert(ConvertRequest((source,), data, Selection(FIELDS)))
    return source, data


def config_for(grid: str) -> ModelConfig:
    """The fields and forcings of the preset at 0.25 degrees, with a small body."""
    small = {"grid": grid, "channels": 64, "token_hidden": 64, "channel_hidden": 128}
    if grid != "1440x721":
        small["patch"] = (2, 4)
    return PRESETS["wm-300m-0.25"].model_copy(update={**small, "num_blocks": 2})


def mean_and_std() -> tuple[np.ndarray, np.ndarray]:
    """One number a field: what values are does not matter to how fast they are read."""
    return np.full((len(FIELDS), 1, 1), 250.0, np.float32), np.full(
        (len(FIELDS), 1, 1), 20.0, np.float32
    )


class OverXarray(torch.utils.data.Dataset):
    """What one would write: xarray picks the times, numpy stacks and normalises."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data: xr.Dataset | None = None

    def __len__(self) -> int:
        return xr.open_zarr(self.path, chunks=None, consolidated=False).sizes["time"] - 1

    def __getitem__(self, start: int) -> torch.Tensor:
        if self.data is None:
            self.data = xr.open_zarr(self.path, chunks=None, consolidated=False)
        chosen = self.data.isel(time=slice(start, start + 2), latitude=slice(0, -1))
        maps = []
        for name in dict.fromkeys(field.variable for field in FIELDS):
            values = chosen[name].values
            maps.append(values if values.ndim == 4 else values[:, None])
        mean, std = mean_and_std()
        return torch.from_numpy((np.concatenate(maps, axis=1) - mean) / std)


class OverArray(torch.utils.data.Dataset):
    """The same over the training set's one array, by xarray or by zarr."""

    def __init__(self, path: Path, *, is_xarray: bool) -> None:
        self.path, self.is_xarray = path, is_xarray
        self.data: Any = None

    def __len__(self) -> int:
        return zarr.open_array(self.path / "values", mode="r").shape[0] - 1

    def __getitem__(self, start: int) -> torch.Tensor:
        if self.data is None and self.is_xarray:
            self.data = xr.open_zarr(self.path, chunks=None, consolidated=False)["values"]
        elif self.data is None:
            self.data = zarr.open_array(self.path / "values", mode="r")
        values = np.asarray(self.data[start : start + 2])
        mean, std = mean_and_std()
        return torch.from_numpy((values - mean) / std)


def compare_readers(
    source: Path, data: Path, config: ModelConfig, num_samples: int, num_rounds: int
) -> dict[str, float]:
    """Seconds a sample of every way, best of the rounds, files in memory."""
    ways: dict[str, Callable[[], Iterator[Any]]] = {
        "DataLoader, xarray, store": lambda: by_data_loader(OverXarray(source), 0, num_samples),
        "DataLoader, xarray, store, 2 workers": lambda: by_data_loader(
            OverXarray(source), 2, num_samples
        ),
        "DataLoader, xarray, training set": lambda: by_data_loader(
            OverArray(data, is_xarray=True), 0, num_samples
        ),
        "DataLoader, zarr, training set": lambda: by_data_loader(
            OverArray(data, is_xarray=False), 0, num_samples
        ),
        "ours, store, 1 thread": lambda: by_ours(source, config, 1, num_samples),
        "ours, store, 2 threads": lambda: by_ours(source, config, 2, num_samples),
        "ours, training set, 1 thread": lambda: by_ours(data, config, 1, num_samples),
        "ours, training set, 2 threads": lambda: by_ours(data, config, 2, num_samples),
    }
    try:
        import zarrs  # noqa: F401  optional: a contender where it is installed

        ways["DataLoader, zarrs, training set"] = lambda: by_zarrs(data, num_samples)
    except ImportError:
        print("zarrs is not installed: left out")
    best: dict[str, float] = {}
    for _ in range(num_rounds):
        for name, way in ways.items():
            samples = way()
            next(samples)  # opens files and starts workers
            start = time.perf_counter()
            count = sum(1 for _ in samples)
            seconds = (time.perf_counter() - start) / count
            best[name] = min(best.get(name, np.inf), seconds)
    sample_bytes = (
        2 * len(FIELDS) * config.grid_object.num_model_lat * config.grid_object.num_lon * 4
    )
    base = best["DataLoader, xarray, store"]
    print(f"reading and normalising a sample of {sample_bytes / 1e6:.0f} MB, blosc lz4")
    print(f"{'':38} {'s/sample':>9} {'GB/s':>6} {'times':>6}")
    for name, seconds in best.items():
        print(f"{name:38} {seconds:9.3f} {sample_bytes / seconds / 1e9:6.2f} {base / seconds:6.2f}")
    return best


def by_data_loader(
    samples: torch.utils.data.Dataset, num_workers: int, count: int
) -> Iterator[Any]:
    """Shuffled, one sample a batch."""
    sampler = torch.utils.data.RandomSampler(
        samples, replacement=True, num_samples=count + 1, generator=torch.Generator().manual_seed(0)
    )
    yield from torch.utils.data.DataLoader(samples, 1, sampler=sampler, num_workers=num_workers)


def by_zarrs(data: Path, count: int) -> Iterator[Any]:
    """As `by_data_loader`, zarr with the pipeline of `zarrs`."""
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        yield from by_data_loader(OverArray(data, is_xarray=False), 0, count)


def training_set(
    path: Path, config: ModelConfig, num_threads: int | None, mesh: Mesh = ONE
) -> TrainingSet:
    """A rank's view of a store, normalised; without forcings, as the contenders have none."""
    store = open_store(path, FIELDS, num_threads)
    pieces = sample_pieces(config, mesh)
    maps = ForcingMaps((), config.grid_object, {}, rows=pieces.rows)
    data = TrainingSet(store, config, pieces, whole_period(store), maps)
    data.normalise(made_up_statistics(config))
    return data


def whole_period(store: Store) -> Period:
    """All times of a store."""
    return Period(store.times[0], store.times[-1])


def made_up_statistics(config: ModelConfig) -> Statistics:
    """Statistics of one number a field; the mean as whole maps, as training has it."""
    grid, num_fields = config.grid_object, len(config.fields)
    mean = np.full((num_fields, grid.num_model_lat, grid.num_lon), 250.0, np.float32)
    ones = np.full(num_fields, 20.0, np.float32)
    return Statistics(mean, ones, ones, np.empty(0, np.float32), np.empty(0, np.float32))


def by_ours(path: Path, config: ModelConfig, num_threads: int, count: int) -> Iterator[Batch]:
    """`TrainingSet.batch`, in the order of training."""
    data = training_set(path, config, num_threads)
    order = SampleOrder(data.num_samples(1), (0,))
    for step in range(count + 1):
        yield data.batch(order.starts(step, 1, ONE), 1)


def mesh_of(domain: int, tensor: int, i: int, j: int) -> Mesh:
    """One rank's mesh, no processes behind it."""
    return Mesh(
        Axis("data", 1, 0, None),
        Axis("domain", domain, i, None),
        Axis("tensor", tensor, j, None),
        Axis("model", domain * tensor, i * tensor + j, None),
        torch.device("cpu"),
    )


def count_bytes(data: Path, config: ModelConfig) -> dict[str, list[int]]:
    """Bytes that each rank reads of a sample, by /proc/self/io, in processes of their own."""
    context = multiprocessing.get_context("spawn")
    found: dict[str, list[int]] = {}
    title = "MB of each rank and sample (/proc/self/io)"
    print(f"{'mesh':>6} {title:44} {'sum':>8} {'most x P / all':>15}")
    with ProcessPoolExecutor(1, context) as pool:
        whole = pool.submit(_count_here, data, config, 1, 1, 0, 0).result()
        for domain, tensor in ((1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (2, 2), (1, 3)):
            counts = [
                pool.submit(_count_here, data, config, domain, tensor, i, j).result()
                for i in range(domain)
                for j in range(tensor)
            ]
            found[f"{domain}x{tensor}"] = counts
            shown = " ".join(f"{count / 1e6:.1f}" for count in counts[:6])
            shown += " ..." if len(counts) > 6 else ""
            ratio = max(counts) * len(counts) / whole
            print(f"{domain:3}x{tensor:<2} {shown:44} {sum(counts) / 1e6:8.1f} {ratio:15.3f}")
    return found


def _count_here(data: Path, config: ModelConfig, domain: int, tensor: int, i: int, j: int) -> int:
    mesh = mesh_of(domain, tensor, i, j)
    samples = training_set(data, config, 1, mesh)
    samples.batch(np.array([0]), 1)
    before = _bytes_read()
    samples.batch(np.array([2, 4]), 1)
    return (_bytes_read() - before) // 2


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


class Throttle:
    """Lets so many bytes a second pass, as a file system would for one client."""

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self.free_at = time.perf_counter()
        self.lock = threading.Lock()

    def wait_for(self, num_bytes: int) -> None:
        """Returns when the bytes would have arrived."""
        with self.lock:
            self.free_at = max(self.free_at, time.perf_counter()) + num_bytes / self.bytes_per_s
            wait = self.free_at - time.perf_counter()
        if wait > 0:
            time.sleep(wait)


def throttle(data: Path, config: ModelConfig, rate_mb: float, count: int) -> dict[str, float]:
    """Samples per second of one model group, each rank's reader at the same fixed rate."""
    context = multiprocessing.get_context("spawn")
    found: dict[str, float] = {}
    print(f"one sample for a model group, each rank's reader at {rate_mb:g} MB/s")
    print(f"{'domain':>6} {'samples/s':>10} {'times':>6}")
    for domain in (1, 2, 4):
        barrier = context.Barrier(domain)
        with ProcessPoolExecutor(domain, context, _set_barrier, (barrier,)) as pool:
            ranks = [
                pool.submit(_throttled_here, data, config, domain, i, rate_mb * 1e6, count)
                for i in range(domain)
            ]
            seconds = [rank.result() for rank in ranks]
        found[str(domain)] = count / max(seconds)
        times = found[str(domain)] / found["1"]
        print(f"{domain:6} {found[str(domain)]:10.3f} {times:6.2f}")
    return found


_barrier: Any = None


def _set_barrier(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


def _throttled_here(
    data: Path, config: ModelConfig, domain: int, i: int, rate: float, count: int
) -> float:
    limit = Throttle(rate)
    read = ShardReader.read

    def slow(reader: ShardReader, offset: int, num_bytes: int) -> Any:
        limit.wait_for(num_bytes)
        return read(reader, offset, num_bytes)

    ShardReader.read = slow  # type: ignore[method-assign]
    samples = training_set(data, config, 1, mesh_of(domain, 1, i, 0))
    order = SampleOrder(samples.num_samples(1), (0,))
    _barrier.wait(120)
    start = time.perf_counter()
    for step in range(count):
        samples.batch(order.starts(step, 1, ONE), 1)
    return time.perf_counter() - start


def measure_wait(data: Path, config: ModelConfig, num_steps: int) -> dict[str, float]:
    """Share of a train step of a small model that waits for data, forcings included."""
    torch.manual_seed(0)
    model = WeatherMixer(config, ONE, seed=0)
    model.set_tendency_scale(np.ones(len(FIELDS), np.float32), np.ones(len(FIELDS), np.float32))
    store = open_store(data, FIELDS, 1)
    batches, samples = _read_ahead(store, config, num_steps + 1)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    try:
        batches.take()
        waited, start = batches.wait_seconds, time.perf_counter()
        for _ in range(num_steps):
            batch = batches.take()
            state, _ = model(batch.states[:, 0], batch.forcings[:, 0])
            loss = (state - batch.states[:, 1]).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        seconds = (time.perf_counter() - start) / num_steps
        waited = (batches.wait_seconds - waited) / num_steps
    finally:
        batches.close()
    began = time.perf_counter()
    samples.batch(np.array([1]), 1)
    alone = time.perf_counter() - began
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"train step, {num_parameters / 1e6:.1f} million parameters, one core; reading on the other"
    )
    print(f"{'step s':>8} {'waiting s':>10} {'share':>7} {'a batch alone s':>16}")
    print(f"{seconds:8.3f} {waited:10.4f} {waited / seconds:7.2%} {alone:16.3f}")
    return {"step_s": seconds, "wait_s": waited, "batch_s": alone}


def _read_ahead(store: Store, config: ModelConfig, stop: int) -> tuple[ReadAhead, TrainingSet]:
    rows = config.grid_object.num_model_lat
    statics = {
        name: store.static(name)[:rows] for name in ("land_sea_mask", "geopotential_at_surface")
    }
    maps = ForcingMaps(config.forcings, config.grid_object, statics)
    pieces = sample_pieces(config, ONE)
    samples = TrainingSet(store, config, pieces, whole_period(store), maps)
    samples.normalise(made_up_statistics(config))
    order = SampleOrder(samples.num_samples(1), (0,))
    return ReadAhead(lambda step: samples.batch(order.starts(step, 1, ONE), 1), 0, stop), samples


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
