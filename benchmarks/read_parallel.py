"""Measures reading an initial state from GRIB 2 on P ranks against one, in one run.

Writes the 69 WeatherBench fields at 0.25 degrees (16 bit, CCSDS) to a temporary folder. Then P
ranks (Gloo, one thread each) open the file, plan and read their pieces of the state, from a
barrier to the last rank's end; the ways take turns. The alternative is what tools without an
exchange do: every rank decodes every message and keeps its own piece.

    python benchmarks/read_parallel.py [--grid 1440x721] [--ranks 1,2] [--repeats 5]
"""

import argparse
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
from read_grib import INIT_TIME, write_state

from jigsaw_forecast.data.grib import GribSource
from jigsaw_forecast.data.initial_state import InitialStatePlan, plan_initial_state
from jigsaw_forecast.data.source import open_source
from jigsaw_forecast.fields import WEATHERBENCH_FIELDS, plausible_range
from jigsaw_forecast.forecast.initial import read_initial_state
from jigsaw_forecast.grid import Grid
from jigsaw_forecast.model.config import ModelConfig
from jigsaw_forecast.model.sample import sample_pieces
from jigsaw_forecast.parallel.mesh import Mesh, close_mesh, make_mesh
from jigsaw_forecast.parallel.together import barrier

SHARED, ALONE = "each message once, exchanged", "every rank decodes all"


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grid", default="1440x721")
    parser.add_argument("--ranks", default="1,2")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    numbers = [int(text) for text in arguments.ranks.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.grib2"
        write_state(path, Grid.parse(arguments.grid))
        crews = {number: Crew(number, serve, number, path, arguments.grid) for number in numbers}
        seconds: dict[tuple[int, str], list[float]] = {}
        decoded: dict[tuple[int, str], int] = {}
        for _ in range(arguments.repeats):
            for number, crew in crews.items():
                for way in (SHARED, ALONE):
                    answers = crew.ask(way)
                    seconds.setdefault((number, way), []).append(max(s for s, _ in answers))
                    decoded[number, way] = sum(count for _, count in answers)
        for crew in crews.values():
            crew.close()
    print(
        f"{len(WEATHERBENCH_FIELDS)} fields, {arguments.grid}, best of {arguments.repeats}, "
        f"{os.cpu_count()} cores"
    )
    best = {key: min(values) for key, values in seconds.items()}
    one = best[numbers[0], SHARED] * numbers[0]
    print(f"{'ranks':>5} {'way':30} {'s':>6} {'times T1 / P':>13} {'decoded':>8}")
    for (number, way), value in best.items():
        count = decoded[number, way]
        print(f"{number:5} {way:30} {value:6.2f} {value / (one / number):13.2f} {count:8}")


def serve(orders: Connection, rank: int, port: int, num_ranks: int, path: Path, grid: str) -> None:
    """One rank."""
    environment = {"RANK": rank, "WORLD_SIZE": num_ranks, "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in environment.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    torch.set_num_threads(1)
    mesh = make_mesh({"domain": num_ranks})
    config = small_model(grid)
    ways: dict[str, Callable[[], object]] = {
        SHARED: lambda: read_initial_state(config, mesh, plan(config, path), INIT_TIME),
        ALONE: lambda: read_alone(config, mesh, plan(config, path)),
    }
    decode = GribSource._decode
    num_decoded = 0

    def counted(source: GribSource, *arguments: Any, **options: Any) -> Any:
        nonlocal num_decoded
        num_decoded += 1
        return decode(source, *arguments, **options)

    GribSource._decode = counted  # type: ignore[method-assign]
    orders.send("ready")
    while (way := orders.recv()) is not None:
        num_decoded = 0
        barrier(mesh)
        start_s = time.perf_counter()
        piece = ways[way]()
        orders.send((time.perf_counter() - start_s, num_decoded))
        del piece
    close_mesh()


def small_model(grid: str) -> ModelConfig:
    """The fields and the layout of the full size, with little else."""
    rows, columns = (9, 8) if Grid.parse(grid).num_model_lat % 9 == 0 else (1, 1)
    return ModelConfig(
        grid=grid,
        fields=tuple(field.short_name for field in WEATHERBENCH_FIELDS),
        forcings=("sin_year",),
        patch=(rows, columns),
        overlap=1,
        channels=16,
        token_hidden=16,
        channel_hidden=16,
        num_blocks=1,
    )


def plan(config: ModelConfig, path: Path) -> InitialStatePlan:
    """The headers read and checked, as every rank does."""
    return plan_initial_state(
        open_source(path),
        config.prognostic_fields,
        config.grid_object,
        INIT_TIME,
        regrid=False,
        plausible={field: plausible_range(field) for field in config.prognostic_fields},
    )


def read_alone(config: ModelConfig, mesh: Mesh, plan: InitialStatePlan) -> np.ndarray:
    """This rank's rows of all fields, everything decoded here, map after map."""
    rows = sample_pieces(config, mesh).rows
    fields = config.prognostic_fields
    out = np.empty((len(fields), rows.stop - rows.start, config.grid_object.num_lon), np.float32)
    for index, (_, values, faults) in enumerate(plan.examine(fields)):
        assert not faults
        out[index] = values[rows]
    barrier(mesh)
    return out


if __name__ == "__main__":
    main()
