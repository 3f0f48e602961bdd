"""Measures writing forecasts as GRIB 2 (CCSDS, 16 bit) on P ranks against eccodes on one core.

P ranks (Gloo, one thread each) hold the maps of 69 fields at 0.25 degrees, cut over them as a run
cuts them, and write lead times with the output thread's own code: encoded by all, each message in
its place in one file, each lead time marked as done. The alternative is eccodes' own loop over the
same maps in one process: clone, keys, values, write; and in P processes at once, each with its own
file, which is what the machine allows. Crews take turns, in one run.

    python benchmarks/grib_encode.py [--leads 40] [--fields 69] [--ranks 1 2] [--json FILE]
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from crew import Crew
from plain_writers import lead_times, write_bare_grib
from read_grib import INIT_TIME, amplitude_of, mean_of, waves

from jigsaw_forecast.fields import WEATHERBENCH_FIELDS
from jigsaw_forecast.forecast.output import resolve_outputs
from jigsaw_forecast.forecast.product import OutputSpec, Slot
from jigsaw_forecast.forecast.resume import Standing
from jigsaw_forecast.forecast.writing import Job, Products, RunProducts
from jigsaw_forecast.grid import Grid
from jigsaw_forecast.parallel.mesh import close_mesh, make_mesh
from jigsaw_forecast.parallel.side_channel import SideChannel
from jigsaw_forecast.parallel.together import barrier
from jigsaw_forecast.state import State

BARE = 0  # the crew of one process that runs the bare loop; -P: of P that share its lead times
WANTED = 0.9  # of eccodes' rate on one core, for each rank


def main() -> None:
    """Prints one table."""
    options = parse()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="grib-encode-") as name:
        loops = [-number for number in options.ranks if number > 1]
        crews = {
            # a forkserver imports once
            number: Crew(
                max(abs(number), 1), serve, number, Path(name), options, method="forkserver"
            )
            for number in (BARE, *loops, *options.ranks)
        }
        seconds: dict[int, list[float]] = {}
        for _ in range(options.repeats):
            for number, crew in crews.items():
                seconds.setdefault(number, []).append(max(crew.ask("write")))
        for crew in crews.values():
            crew.close()
    num_messages = options.leads * options.fields
    print(
        f"{options.fields} fields x {options.leads} lead times, {options.grid}, best of "
        f"{options.repeats}, {os.cpu_count()} cores"
    )
    print(f"{'ranks':>17} {'s':>7} {'messages/s':>11} {'times eccodes':>14} {'a rank':>7}")
    rows = []
    for number, all_s in seconds.items():
        best, bare = min(all_s), min(seconds[BARE])
        name = str(number) if number > 0 else f"{max(-number, 1)} eccodes' loops"
        efficiency = bare / best / max(abs(number), 1)
        rows.append({"ranks": number, "seconds": all_s, "efficiency": efficiency})
        print(
            f"{name:>17} {best:7.2f} {num_messages / best:11.1f} {bare / best:14.2f} "
            f"{efficiency:7.2f}"
        )
    print(f"wanted: {WANTED} a rank, up to the cores at hand")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--grid", default="1440x721")
    parser.add_argument("--leads", type=int, default=40)
    parser.add_argument("--fields", type=int, default=len(WEATHERBENCH_FIELDS))
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="of the disk to write to")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    return parser.parse_args()


def serve(
    orders: Connection,
    rank: int,
    port: int,
    num_ranks: int,
    folder: Path,
    options: argparse.Namespace,
) -> None:
    """One rank."""
    environment = {"RANK": rank, "WORLD_SIZE": num_ranks, "MASTER_PORT": port}
    environment |= {"LOCAL_WORLD_SIZE": num_ranks, "MASTER_ADDR": "127.0.0.1"}
    if num_ranks > 1:
        os.environ.update({key: str(value) for key, value in environment.items()})
    torch.set_num_threads(1)
    grid = Grid.parse(options.grid)
    fields = WEATHERBENCH_FIELDS[: options.fields]
    if num_ranks <= BARE:
        own_leads = options.leads // max(-num_ranks, 1)
        work = prepare_loop(folder / f"loop{num_ranks}-{rank}", grid, fields, own_leads)
    else:
        work = prepare_rank(num_ranks, folder, grid, fields, options.leads)
    orders.send("ready")
    while orders.recv() is not None:
        orders.send(work())
    if num_ranks > 1:
        close_mesh()


def make_maps(fields: tuple[Any, ...], grid: Grid) -> np.ndarray:
    """Weather-like maps, [F, Y, X]."""
    shape = waves(grid)
    return np.stack([mean_of(f) + amplitude_of(f) * shape for f in fields]).astype(np.float32)


def prepare_loop(
    folder: Path, grid: Grid, fields: tuple[Any, ...], num_leads: int
) -> Callable[[], float]:
    """The bare loop over its own maps, into a file of its own."""
    maps = make_maps(fields, grid)
    folder.mkdir()

    def work() -> float:
        began = time.perf_counter()
        write_bare_grib(folder, maps, num_leads, grid.name)
        seconds = time.perf_counter() - began
        (folder / "bare.grib2").unlink()
        return seconds

    return work


def prepare_rank(
    num_ranks: int, folder: Path, grid: Grid, fields: tuple[Any, ...], num_leads: int
) -> Callable[[], float]:
    """Everything but the timed part."""
    mesh = make_mesh({"domain": num_ranks})
    leads = tuple(lead.astype("timedelta64[s]") for lead in lead_times(num_leads))
    spec = OutputSpec(fields, grid, (INIT_TIME,), leads, {"title": "benchmark"}, {})
    channel = SideChannel(mesh)
    (product,) = resolve_outputs([str(folder / f"{num_ranks}.grib2")], (INIT_TIME,), leads)

    def new_run() -> RunProducts:
        return RunProducts((product,), spec, {product.path: Standing()}, {product.path: 0})

    owners = new_run().owners(product, num_ranks)
    own = tuple(field for field, owner in owners if owner == mesh.rank)
    maps = torch.from_numpy(make_maps(own, grid))

    def work() -> float:
        barrier(mesh)
        began = time.perf_counter()
        products = Products(mesh, new_run(), channel, lambda _: {})
        for lead in leads:
            state = State(maps, own, grid, INIT_TIME, lead)
            slot = Slot.of(INIT_TIME, lead)
            products.write(Job((slot,), {owners: state}, int(lead / leads[0])))
        seconds = time.perf_counter() - began
        barrier(mesh)
        if mesh.rank == 0:
            for path in folder.glob(f"{num_ranks}.grib2*"):
                path.unlink()
        barrier(mesh)
        return seconds

    return work


if __name__ == "__main__":
    main()
