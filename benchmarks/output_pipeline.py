"""What output costs a forecast at 0.25 degrees: `run`, bare loops and other tools, in one run.

A small model makes 69 fields for 40 lead times. Computing is held to one core and writing to
another. In turn, each in a process of its own: `compute`, the command `run` that writes one field
once; `bare zarr` and `bare eccodes`, plain loops that write the same maps on the writers' core with
the same codecs and nothing else; `run`, with each kind of output and, for the memory, with fewer
lead times; and, computing on the same core and free to write on both, `xarray`, to_zarr(append_dim)
as it comes, and `earth2studio`, its ZarrBackend where it is installed, else the same calls of zarr
written out here. `others %` tells how much of the time threads waited for a core, as they do where
other work disturbs the measurement. Seconds are from the first step to the whole product, without
start and reading.

    python benchmarks/output_pipeline.py [--leads 40] [--kinds zarr grib2] [--folder DIR] [--json F]
"""

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # torch imports it at a model's first step, which takes 2 s
from plain_writers import (
    FIELDS,
    STEP_HOURS,
    write_bare_grib,
    write_bare_zarr,
    write_with_earth2studio,
    write_with_xarray,
)
from read_grib import INIT_TIME, write_state

from jigsaw_forecast.checkpoint.create import create_checkpoint
from jigsaw_forecast.checkpoint.load import load_checkpoint
from jigsaw_forecast.cli.main import main as jigsaw_forecast
from jigsaw_forecast.data.source import open_source, plan_initial_state
from jigsaw_forecast.fields import plausible_range
from jigsaw_forecast.forecast.exchange import exchange_bands
from jigsaw_forecast.forecast.initial import read_initial_state
from jigsaw_forecast.forecast.rollout import make_forcings, rollout
from jigsaw_forecast.grid import Grid
from jigsaw_forecast.model.config import ModelConfig
from jigsaw_forecast.parallel.memory import peak_memory_bytes
from jigsaw_forecast.parallel.mesh import single_rank_mesh
from jigsaw_forecast.state import State

BARE = {"zarr": "bare zarr", "grib2": "bare eccodes"}
OTHERS = ("earth2studio", "xarray")
ALLOWED = 1.15  # of the larger of computing and writing alone
WANTED_SPEED_UP = 2.0
MB = 1e6


@dataclass(frozen=True)
class Setting:
    """What every process needs.

    Attributes:
        folder: For checkpoint, input and output.
        grid: Name of the grid.
        cores: Of computing and of writing.
    """

    folder: Path
    grid: str
    cores: tuple[int, int]

    @property
    def checkpoint(self) -> Path:
        return self.folder / "small"

    @property
    def input(self) -> Path:
        return self.folder / "state.grib2"


def main() -> None:
    """Prints one table."""
    options = parse()
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="output-pipeline-") as name:
        setting = Setting(Path(name), options.grid, (cores[0], cores[-1]))
        prepare(setting, options)
        raw_bytes = len(FIELDS) * np.prod(grid_shape(options.grid)) * 4
        print(
            f"{len(FIELDS)} fields, {options.grid}, {options.leads} lead times of "
            f"{raw_bytes / MB:.0f} MB, cores {setting.cores}, best of {options.repeats}, in {name}"
        )
        print(
            f"{'way':>17} {'lead times':>10} {'s':>7} {'writing s':>9} {'MB written':>10} "
            f"{'peak MB':>8} {'others %':>8}  output_seconds of the report"
        )
        found: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for _ in range(options.repeats):  # in turn: a machine has slow minutes
            for way, num_leads in ways(options):
                row = {"way": way, "leads": num_leads} | measure(setting, way, num_leads)
                found.setdefault((way, num_leads), []).append(row)
                show(row)
    rows = [best_of(repeats) for repeats in found.values()]
    goals = judge(rows, options)
    for text in goals["text"]:
        print(text)
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "goals": goals}, indent=1))


def show(row: dict[str, Any]) -> None:
    print(
        f"{row['way']:>17} {row['leads']:10} {row['seconds']:7.2f} {row['writing']:9.2f} "
        f"{row['bytes'] / MB:10.0f} {row['peak'] / MB:8.0f} {100 * row['stalled']:8.0f}  "
        f"{row['waits'] or ''}",
        flush=True,
    )


def best_of(repeats: list[dict[str, Any]]) -> dict[str, Any]:
    """The quickest repeat of a way, with the least that any of them needed to write."""
    best = min(repeats, key=lambda row: float(row["seconds"]))
    everything = {"all seconds": [row["seconds"] for row in repeats]}
    return best | everything | {"writing": min(row["writing"] for row in repeats)}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--grid", default="1440x721")
    parser.add_argument("--leads", type=int, default=40)
    parser.add_argument("--few-leads", type=int, default=10, help="for the memory; 0 for none")
    parser.add_argument("--kinds", nargs="+", default=["zarr", "grib2"], choices=sorted(BARE))
    parser.add_argument("--others", nargs="*", default=list(OTHERS), choices=OTHERS)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--overlap", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="of the disk to write to")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    return parser.parse_args()


def ways(options: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """What is measured, and over how many lead times."""
    yield "compute", options.leads
    for kind in options.kinds:
        yield BARE[kind], options.leads
        yield f"run {kind}", options.leads
        if options.few_leads:
            yield f"run {kind}", options.few_leads
    for other in options.others if "zarr" in options.kinds else ():
        yield other, options.leads


def judge(rows: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """The goals, and how far they are met."""
    seconds = {(row["way"], row["leads"]): float(row["seconds"]) for row in rows}
    peak = {(row["way"], row["leads"]): row["peak"] for row in rows}
    computing = seconds["compute", options.leads]
    goals: dict[str, Any] = {"text": []}
    for kind in options.kinds:
        own, bare = f"run {kind}", seconds[BARE[kind], options.leads]
        bound = goals[f"{kind} of the larger"] = seconds[own, options.leads] / max(computing, bare)
        goals["text"].append(
            f"{kind}: {bound:.2f} times the larger of computing ({computing:.2f} s) and writing "
            f"({bare:.2f} s) alone, allowed {ALLOWED}"
        )
        if options.few_leads:
            ratio = peak[own, options.leads] / peak[own, options.few_leads]
            goals[f"{kind} memory"] = ratio
            goals["text"].append(
                f"{kind}: peak memory of {options.leads} lead times is {ratio:.3f} times that of "
                f"{options.few_leads}"
            )
    if others := [other for other in options.others if (other, options.leads) in seconds]:
        best = min(others, key=lambda other: seconds[other, options.leads])
        other, own_s = seconds[best, options.leads], seconds["run zarr", options.leads]
        goals["speed-up"], goals["best other"] = other / own_s, best
        writing = {
            row["way"]: float(row["writing"]) for row in rows if row["leads"] == options.leads
        }
        fastest = min(others, key=lambda other: writing[other])
        goals["writing speed-up"] = writing[fastest] / writing["run zarr"]
        goals["text"].append(
            f"zarr: {other / own_s:.2f} times as fast as {best}, wanted {WANTED_SPEED_UP:.0f}; "
            f"output adds {own_s - computing:.2f} s to computing, {best} {other - computing:.2f} s"
        )
        goals["text"].append(
            f"zarr: its thread writes {goals['writing speed-up']:.2f} times as fast as {fastest}"
        )
    return goals


def prepare(setting: Setting, options: argparse.Namespace) -> None:
    """The initial state, and an untrained model, which keeps it: values stay plausible."""
    grid = Grid.parse(setting.grid)
    patch = (9, 8) if grid.num_model_lat % 9 == 0 and grid.num_lon % 8 == 0 else (1, 1)
    size = options.channels
    config = ModelConfig(
        grid=setting.grid,
        fields=tuple(field.short_name for field in FIELDS),
        forcings=("sin_year",),
        patch=patch,
        overlap=options.overlap,
        channels=size,
        token_hidden=size,
        channel_hidden=size,
        num_blocks=1,
    )
    create_checkpoint(setting.checkpoint, config, dtype=torch.float32)
    write_state(setting.input, grid)


def measure(setting: Setting, way: str, num_leads: int) -> dict[str, Any]:
    """Runs one way in a process of its own and removes what it wrote."""
    context = multiprocessing.get_context("forkserver")  # imports once
    output = setting.folder / "output"
    output.mkdir()
    receiving, sending = context.Pipe(duplex=False)
    began, stalled_s = time.perf_counter(), stalled_seconds()
    process = context.Process(target=serve, args=(setting, way, num_leads, output, sending))
    process.start()
    sending.close()
    try:
        found: dict[str, Any] = receiving.recv()
    except EOFError:
        raise SystemExit(f"{way} failed") from None
    finally:
        process.join()
        shutil.rmtree(output)
        os.sync()  # what one way leaves to the disk is not the next one's
    found["stalled"] = (stalled_seconds() - stalled_s) / (time.perf_counter() - began)
    return found


def stalled_seconds() -> float:
    """How long some thread of this machine was ready and had no core: a sign of other work."""
    pressure = Path("/proc/pressure/cpu")  # kernel documentation, accounting/psi
    if not pressure.exists():
        return 0.0
    return int(pressure.read_text().split("total=")[1].split()[0]) / 1e6


def serve(setting: Setting, way: str, num_leads: int, output: Path, results: Any) -> None:
    """One way, in its process."""
    os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # as the command sets it: the others get it too
    torch.set_num_threads(1)
    name, _, kind = way.partition(" ")
    if way == "compute" or name == "run":
        found = forecast(setting, kind, num_leads, output)
    elif name == "bare":
        os.sched_setaffinity(0, {setting.cores[1]})
        maps = next(whole_maps(setting, 1)).data.numpy()
        loop = write_bare_zarr if kind == "zarr" else write_bare_grib
        found = timed(lambda: loop(output, maps, num_leads, setting.grid), output)
    else:
        write = write_with_xarray if way == "xarray" else write_with_earth2studio
        states = Timed(whole_maps(setting, num_leads))
        found = timed(lambda: write(output, states, num_leads, setting.grid), output)
        found["writing"] -= states.seconds
    results.send(found)


class Timed:
    """An iterator that knows how long it made its user wait."""

    def __init__(self, states: Iterator[State]) -> None:
        self.seconds = 0.0
        self._states = states

    def __iter__(self) -> Iterator[State]:
        while True:
            began = time.perf_counter()
            state = next(self._states, None)
            self.seconds += time.perf_counter() - began
            if state is None:
                return
            yield state


def timed(work: Any, output: Path) -> dict[str, Any]:
    """Seconds of a way, and what it left."""
    began = time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    peak = peak_memory_bytes(torch.device("cpu"))
    written = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    figures = {"seconds": seconds, "writing": seconds, "bytes": written, "peak": peak}
    return figures | {"waits": {}}


def forecast(setting: Setting, kind: str, num_leads: int, output: Path) -> dict[str, Any]:
    """The command itself; `kind` is empty for a forecast that writes one field in the end."""
    os.sched_setaffinity(0, {setting.cores[0]})
    threading.Thread(target=hold_writers, args=(setting.cores[1],), daemon=True).start()
    hours, report = f"{num_leads * STEP_HOURS}h", output / "report.json"
    command = ["run", "--quiet", "--init", str(INIT_TIME), "--lead-time", hours]
    command += ["--checkpoint", str(setting.checkpoint), "--input", str(setting.input)]
    command += ["--output", str(output / f"f.{kind or 'zarr'}"), "--report", str(report)]
    if not kind:
        command += ["--variables", "msl", "--output-frequency", hours]
    if jigsaw_forecast(command):
        raise SystemExit("the forecast failed")
    figures = json.loads(report.read_text())
    seconds, rank = figures["seconds"], figures["ranks"][0]
    parts = rank["output_seconds"]
    return {
        "writing": sum(parts[name] for name in ("join", "encode", "append", "mark")),
        "seconds": seconds["total"] - seconds["start"] - seconds["load"] - seconds["read"],
        "bytes": rank["output_bytes_written"],
        "peak": rank["peak_memory_bytes"],
        "waits": {name: round(value, 2) for name, value in parts.items()},
    }


def hold_writers(core: int) -> None:
    """Binds the output thread, and with it those that it starts, to a core."""
    while True:
        for thread in threading.enumerate():
            if thread.name == "output" and thread.native_id is not None:
                os.sched_setaffinity(thread.native_id, {core})
                return
        time.sleep(0.001)


def whole_maps(setting: Setting, num_leads: int) -> Iterator[State]:
    """The states of the same forecast, with the pole row, in memory that is used again."""
    mesh = single_rank_mesh()
    loaded = load_checkpoint(setting.checkpoint, mesh, torch.float32)
    config = loaded.manifest.architecture
    plausible = {field: plausible_range(field) for field in FIELDS}
    plan = plan_initial_state(
        open_source(setting.input), FIELDS, config.grid_object, INIT_TIME,
        regrid=False, plausible=plausible,
    )  # fmt: skip
    initial = read_initial_state(config, mesh, plan, INIT_TIME)
    assert initial is not None
    out = torch.from_numpy(np.empty((len(FIELDS), *grid_shape(setting.grid)), np.float32))
    for state in rollout(loaded, make_forcings(loaded), initial, num_leads):
        yield exchange_bands(config, mesh, state, dict.fromkeys(FIELDS, 0)).join(out)


def grid_shape(name: str) -> tuple[int, int]:
    grid = Grid.parse(name)
    return grid.num_lat, grid.num_lon


if __name__ == "__main__":
    main()
