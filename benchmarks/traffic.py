"""Bytes that a rank receives in a step against Megatron-style tensor parallelism on the same ranks.

    python benchmarks/traffic.py [--preset wm-3.2b] [--ranks 64] [--blocks N] [--json FILE]

Nothing travels: the project's model runs on meta tensors as a rank of each mesh that divides, and
counts what its collectives would receive; torch's own DTensor column/row plan of the same model in
plain torch runs on meta tensors over torch's fake process group, and every collective that it
calls is counted as a ring receives it. Both in bfloat16, one sample. Statistics of norms count as
activations. Exits 1 where an activation total is not below tensor parallelism's, or where, from 8
ranks up, the best mesh's training total is not.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from contenders import CollectiveBytes, column_row_parallel
from plain_mixer import PlainMixer
from torch.testing._internal.distributed.fake_pg import FakeStore

from jigsaw_forecast.errors import MeshError
from jigsaw_forecast.forecast.rollout import one_step
from jigsaw_forecast.model.config import PRESETS, ModelConfig
from jigsaw_forecast.plan.meshes import all_meshes
from jigsaw_forecast.plan.trace import busiest_rank, make_traced_model
from jigsaw_forecast.train.bench import training_step

DTYPE = torch.bfloat16
FROM_RANKS = 8  # from here on the training total is claimed to be below
GB = 1e9


def tensor_parallel_bytes(config: ModelConfig, num_ranks: int) -> dict[str, int]:
    """What a rank of torch's column/row plan receives in a forward and in a train step."""
    dist.init_process_group("fake", rank=0, world_size=num_ranks, store=FakeStore())
    try:
        with torch.device("meta"):
            model = PlainMixer(config).to(DTYPE)
            column_row_parallel(model)
            area = config.grid_object.num_model_lat, config.grid_object.num_lon
            state = torch.zeros(1, len(config.fields), *area, dtype=DTYPE)
            forcing = torch.zeros(1, len(config.forcings), *area, dtype=DTYPE)
            with CollectiveBytes() as forward:
                output, _ = model(state, forcing)
            with CollectiveBytes() as backward:
                output.square().sum().backward()
    finally:
        dist.destroy_process_group()
    inference = sum(forward.received.values())
    return {"forward": inference, "training": inference + sum(backward.received.values())}


def jigsaw_bytes(config: ModelConfig, degrees: dict[str, int]) -> dict[str, int]:
    """What the busiest rank of a mesh receives, by mode and by what it is for."""
    found = {}
    for mode, step in (("forward", one_step), ("training", training_step(1))):
        is_forward = mode == "forward"
        model = make_traced_model(
            config, busiest_rank(degrees), DTYPE, matrices_in_dtype=is_forward
        )
        model.num_chunks = 1  # bytes do not depend on it
        if is_forward:
            model.requires_grad_(False).make_resident()
        model.mesh.traffic.reset()
        step(model)
        axes = model.mesh.traffic.received().values()
        found[f"{mode} weights"] = sum(kinds["weights"] for kinds in axes)
        everything = sum(sum(kinds.values()) for kinds in axes)
        found[f"{mode} activations"] = everything - found[f"{mode} weights"]
    return found


def compare(config: ModelConfig, most_ranks: int) -> list[dict[str, Any]]:
    """A row for each mesh of 2 to so many ranks that divides the model."""
    rows = []
    for num_ranks in range(2, most_ranks + 1):
        rival: dict[str, int] | None = None
        for degrees in all_meshes(num_ranks, with_data=False):
            try:
                config.check_mesh(degrees["domain"], degrees["tensor"])
            except MeshError:
                continue
            rival = rival or tensor_parallel_bytes(config, num_ranks)
            mesh = {"ranks": num_ranks, "domain": degrees["domain"], "tensor": degrees["tensor"]}
            rows.append(mesh | {"rival": rival, "own": jigsaw_bytes(config, degrees)})
    return rows


def failures(rows: list[dict[str, Any]]) -> list[str]:
    """What is not as claimed."""
    found, best = [], {}
    for row in rows:
        own, rival, mesh = row["own"], row["rival"], f"{row['domain']}x{row['tensor']}"
        for mode in ("forward", "training"):
            if own[f"{mode} activations"] >= rival[mode]:
                found.append(f"{mesh}: {mode} activations are not below tensor parallelism's")
        share = (own["training activations"] + own["training weights"]) / rival["training"]
        best[row["ranks"]] = min(best.get(row["ranks"], share), share)
    return found + [
        f"{ranks} ranks: the best mesh's training total is {share:.3f} of tensor parallelism's"
        for ranks, share in best.items()
        if ranks >= FROM_RANKS and share >= 1.0
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="wm-3.2b", choices=sorted(PRESETS))
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--blocks", type=int, help="default: the preset's")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    options = parser.parse_args()
    config = PRESETS[options.preset]
    if options.blocks:
        config = config.model_copy(update={"num_blocks": options.blocks})
    rows = compare(config, options.ranks)
    print(
        f"{options.preset}, {config.num_blocks} blocks, bfloat16, GB received by a rank and step; "
        f"TP: torch {torch.__version__} DTensor, column and row cuts"
    )
    columns = f"{'TP':>7} {'ours':>6} {'ours/TP':>8} | {'TP':>7} {'activ.':>7} {'/TP':>7} "
    print(f"{'':14} | {'forward, resident':23} | training")
    print(f"{'ranks':>7} {'mesh':>6} | {columns}{'weights':>7} {'total':>7} {'total/TP':>9}")
    for row in rows:
        own, rival = row["own"], row["rival"]
        activations, weights = own["training activations"], own["training weights"]
        total = activations + weights
        mesh = f"{row['domain']}x{row['tensor']}"
        print(
            f"{row['ranks']:7d} {mesh:>6} | {rival['forward'] / GB:7.3f} "
            f"{own['forward activations'] / GB:6.3f} "
            f"{own['forward activations'] / rival['forward']:8.3f} | "
            f"{rival['training'] / GB:7.3f} {activations / GB:7.3f} "
            f"{activations / rival['training']:7.3f} {weights / GB:7.3f} {total / GB:7.3f} "
            f"{total / rival['training']:9.3f}"
        )
    problems = failures(rows)
    print("\n".join(problems or ["every claim holds"]))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
