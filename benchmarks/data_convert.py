"""Measures `data convert` against the disk's sequential rate and the codec's, in one run.

Writes a WeatherBench 2 layout store of 69 fields at 0.25 degrees (red noise with the spectrum of
weather), measures the disk and the codec beside it, and converts in processes of their own.

    python benchmarks/data_convert.py FOLDER [--grid 1440x721] [--times 12] [--processes 2]

Bound: the time that the slower of the two takes alone, reading and writing the same files once
or decoding and encoding the same chunks on as many cores.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from era5_like import write_store
from numcodecs import blosc

from jigsaw_forecast.data.convert import ConvertRequest, convert
from jigsaw_forecast.data.convert_fields import Selection
from jigsaw_forecast.data.shards import LEVELS
from jigsaw_forecast.data.training_store import TrainingStore
from jigsaw_forecast.fields import WEATHERBENCH_FIELDS
from jigsaw_forecast.grid import Grid

BLOCK_BYTES = 1 << 22
CODEC_SECONDS = 2.0


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--grid", default="1440x721")
    parser.add_argument("--times", type=int, default=12)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--codec", default="lz4", choices=sorted(LEVELS))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    source, output = arguments.folder / "source.zarr", arguments.folder / "set.zarr"
    if not source.exists():
        write_store(source, Grid.parse(arguments.grid), arguments.times)
    for path in (output, output.with_name("set.zarr.partial")):
        shutil.rmtree(path, ignore_errors=True)
    os.sync()
    forget(source)
    request = ConvertRequest(
        (source,),
        output,
        Selection(WEATHERBENCH_FIELDS),
        codec=arguments.codec,
        num_processes=arguments.processes,
    )
    with peak_of_children() as peak:
        start = time.perf_counter()
        convert(request)
        os.sync()
        seconds = time.perf_counter() - start
    header = TrainingStore(output).header
    layout = header.layout
    value_bytes = header.num_times * len(header.fields) * layout.num_rows * layout.num_lon * 4
    disk = measure_disk(source, output, arguments.folder)
    codec = measure_codec(source, layout.band_rows, arguments.codec, arguments.processes)
    codec_s = value_bytes * (1 / codec["decode"] + 1 / codec["encode"])
    bound_s = max(disk["read_s"] + disk["write_s"], codec_s)
    figures = {
        "values GB": value_bytes / 1e9,
        "source GB": folder_bytes(source) / 1e9,
        "training set GB": folder_bytes(output) / 1e9,
        "disk read GB/s": folder_bytes(source) / disk["read_s"] / 1e9,
        "disk write GB/s": folder_bytes(output) / disk["write_s"] / 1e9,
        "decode GB/s, all processes": codec["decode"] / 1e9,
        "encode GB/s, all processes": codec["encode"] / 1e9,
        "disk s, read and write": disk["read_s"] + disk["write_s"],
        "codec s, decode and encode": codec_s,
        "convert s": seconds,
        "convert GB/s of values": value_bytes / seconds / 1e9,
        "share of the slower bound": bound_s / seconds,
        "peak GB, all processes": peak["bytes"] / 1e9,
    }
    print(f"{arguments.grid}, {header.num_times} times, {arguments.processes} processes, "
          f"{arguments.codec}, {layout.num_bands} bands")  # fmt: skip
    for name, value in figures.items():
        print(f"{name:28} {value:8.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures))


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def forget(folder: Path) -> None:
    """Drops a folder's files from the page cache, so that they are read from the disk."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure_disk(source: Path, output: Path, folder: Path) -> dict[str, float]:
    """Seconds to read the source's bytes and to write the output's, one after the other."""
    scratch = folder / "sequential"
    block = np.random.default_rng(0).integers(0, 255, BLOCK_BYTES, dtype=np.uint8).tobytes()
    num_bytes = folder_bytes(output)
    start = time.perf_counter()
    with scratch.open("wb") as stream:
        for _ in range(-(-num_bytes // BLOCK_BYTES)):
            stream.write(block)
        stream.flush()
        os.fsync(stream.fileno())
    write_s = time.perf_counter() - start
    with scratch.open("rb", buffering=0) as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        found = 0
        while part := len(stream.read(BLOCK_BYTES)):
            found += part
        read_s = (time.perf_counter() - start) * folder_bytes(source) / found
    scratch.unlink()
    return {"read_s": read_s, "write_s": write_s}


def measure_codec(source: Path, band_rows: int, codec: str, num_processes: int) -> dict[str, float]:
    """Bytes of values a second that the codec decodes and encodes on as many cores."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, context) as pool:
        work = [(source, band_rows, codec)] * num_processes
        rates = list(pool.map(_measure_codec_here, work))
    return {"decode": sum(rate[0] for rate in rates), "encode": sum(rate[1] for rate in rates)}


def _measure_codec_here(work: tuple[Path, int, str]) -> tuple[float, float]:
    source, band_rows, codec = work
    array = zarr.open_array(source / "temperature", mode="r")
    packed = (
        source / "temperature" / array.metadata.encode_chunk_key((0,) * array.ndim)
    ).read_bytes()
    values = np.empty(array.shape[1:], dtype=np.float32)
    decode = _rate(lambda: blosc.decompress(packed, values), values.nbytes)
    bands = [
        np.ascontiguousarray(maps[first : first + band_rows])
        for maps in values
        for first in range(0, values.shape[-2] // band_rows * band_rows, band_rows)
    ]
    num_bytes = sum(band.nbytes for band in bands)
    arguments = codec.encode(), LEVELS[codec], blosc.SHUFFLE, 0, 4
    encode = _rate(lambda: [len(blosc.compress(band, *arguments)) for band in bands], num_bytes)
    return decode, encode


def _rate(action: Callable[[], Any], num_bytes: int) -> float:
    action()
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < CODEC_SECONDS:
        action()
        done += num_bytes
    return done / (time.perf_counter() - start)


@contextmanager
def peak_of_children(period_s: float = 0.05) -> Iterator[dict[str, int]]:
    """The largest sum of this process's and its children's resident memory, within the block."""
    peak = {"bytes": 0}
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(period_s):
            peak["bytes"] = max(peak["bytes"], resident_bytes())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def resident_bytes() -> int:
    """Resident memory of this process and its children."""
    found = subprocess.run(
        ["ps", "-o", "pid=,ppid=,rss="], capture_output=True, text=True, check=False
    )
    own, total = os.getpid(), 0
    for line in found.stdout.splitlines():
        pid, parent, rss_kib = map(int, line.split())
        total += rss_kib * 1024 if own in (pid, parent) else 0
    return total


if __name__ == "__main__":
    main()
