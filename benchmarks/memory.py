"""Peak activation memory of a rank in a train step, by torch's memory tracker, against its bound.

    python benchmarks/memory.py [--meshes 1x1 2x1 1x2 2x2 4x2] [--chunks N] [--tokens N] ...
    python benchmarks/memory.py --preset wm-3.2b [--meshes ...]

A mesh is DOMAINxTENSOR. The first form runs real ranks on this machine, in float32; the second
looks at meta tensors in bfloat16, one rank of the mesh with two neighbours where there is one. The
bound: the rank's share of the one-rank peak with 15 %, two chunks of the larger gathered activation
and two layers' gathered weights. Exits 1 where a rank is above it.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from activation_memory import allowed_bytes, peak_activation_bytes
from body import add_size_options, body_config

from jigsaw_forecast.model.config import PRESETS, ModelConfig
from jigsaw_forecast.model.weather_mixer import WeatherMixer
from jigsaw_forecast.parallel.mesh import Mesh, close_mesh, make_mesh
from jigsaw_forecast.plan.trace import busiest_rank, make_traced_model
from jigsaw_forecast.train.bench import fill, training_step

MB = 1e6
Degrees = dict[str, int]


def measure_rank(config: ModelConfig, mesh: Mesh, batch_size: int, chunks: int | None) -> int:
    """The peak of this rank."""
    model = WeatherMixer(config, mesh, seed=None)
    fill(model)
    model.num_chunks = chunks
    return peak_activation_bytes(model, training_step(batch_size))


def serve(
    rank: int, store: str, config: ModelConfig, degrees: Degrees, options: Any, results: Any
) -> None:
    """What one process of a mesh does."""
    torch.set_num_threads(1)
    size = degrees["domain"] * degrees["tensor"]
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    try:
        mesh = make_mesh(degrees)
        results.put((rank, measure_rank(config, mesh, options.batch_size, options.chunks)))
        if size > 1:
            dist.barrier()
    finally:
        close_mesh()


def measure_ranks(config: ModelConfig, degrees: Degrees, options: Any) -> list[int]:
    """Peaks of all ranks of a mesh, each a process of this machine."""
    context = multiprocessing.get_context("spawn")
    size = degrees["domain"] * degrees["tensor"]
    with tempfile.TemporaryDirectory() as folder:
        results = context.Queue()
        arguments = (f"{folder}/store", config, degrees, options, results)
        processes = [context.Process(target=serve, args=(r, *arguments)) for r in range(size)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            raise SystemExit(f"ranks of {degrees} failed")
        return [peak for _, peak in sorted(results.get() for _ in processes)]


def look_at_meta(config: ModelConfig, degrees: Degrees, options: Any) -> list[int]:
    """The peak of one rank, on meta tensors."""
    mesh = busiest_rank(degrees)
    model = make_traced_model(config, mesh, torch.bfloat16, matrices_in_dtype=False)
    model.num_chunks = options.chunks
    with torch.device("meta"):
        return [peak_activation_bytes(model, training_step(options.batch_size))]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_size_options(parser)
    parser.add_argument("--preset", choices=sorted(PRESETS), help="on meta tensors instead")
    parser.add_argument("--meshes", nargs="+", default=["1x1", "2x1", "1x2", "2x2", "4x2"])
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--chunks", type=int, help="default: the model's own")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    options = parser.parse_args()
    is_meta = options.preset is not None
    config = PRESETS[options.preset] if is_meta else body_config(options)
    measure = look_at_meta if is_meta else measure_ranks
    (whole,) = measure(config, {"domain": 1, "tensor": 1}, options)
    print(
        f"N={config.num_tokens} C={config.channels} D_n={config.token_hidden} "
        f"D_c={config.channel_hidden}, {config.num_blocks} blocks, "
        f"{'bfloat16 on meta tensors' if is_meta else 'float32'}, torch {torch.__version__}"
    )
    print(f"{'mesh':>6} {'peak MB':>9} {'of 1/P':>7} {'share + 15 %':>13} {'chunks':>7} "
          f"{'weights':>8} {'allowed':>9} {'of it':>6}")  # fmt: skip
    rows = []
    for mesh in options.meshes:
        domain, tensor = (int(n) for n in mesh.split("x"))
        degrees = {"domain": domain, "tensor": tensor}
        peak = whole if mesh == "1x1" else max(measure(config, degrees, options))
        bound = allowed_bytes(
            config, degrees, whole, item_bytes=2 if is_meta else 4,
            batch_size=options.batch_size, num_chunks=options.chunks,
        )  # fmt: skip
        rows.append({"mesh": mesh, "peak": peak} | bound)
        print(
            f"{mesh:>6} {peak / MB:9.1f} {peak * domain * tensor / whole:7.3f} "
            f"{bound['share'] / MB:13.1f} {bound['chunks'] / MB:7.1f} {bound['weights'] / MB:8.1f} "
            f"{bound['allowed'] / MB:9.1f} {peak / bound['allowed']:6.3f}",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return int(any(row["peak"] > row["allowed"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
