"""The rollout of a checkpoint against the same arithmetic as bare torch calls in a loop.

    python benchmarks/rollout.py [CHECKPOINT] [--steps 40] [--repeats 7] [--threads 2]

Both step the same weights from the same state. The bare loop is what one would write by hand for
one process: no mesh, no module, no State, the forcings computed before. Prints one table.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from jigsaw_forecast.checkpoint.format import find_checkpoint
from jigsaw_forecast.checkpoint.load import LoadedModel, load_checkpoint
from jigsaw_forecast.forecast.rollout import make_forcings, rollout
from jigsaw_forecast.parallel.mesh import single_rank_mesh
from jigsaw_forecast.state import State

INIT = np.datetime64("2026-06-24T00", "s")
Tensor = torch.Tensor


def bare_rollout(loaded: LoadedModel, forcings: list[Tensor], initial: Tensor) -> Tensor:
    """The model's arithmetic and nothing else."""
    config, norm, w = (
        loaded.manifest.architecture,
        loaded.normalisation,
        dict(loaded.model.named_parameters()),
    )
    rows, columns = config.patch
    o, (height, width) = config.overlap, config.window
    num_lat, num_lon = config.grid_object.num_model_lat, config.grid_object.num_lon
    embed = torch.cat([w["embed.state"], w["embed.forcing"]], 1).flatten(1)
    embed_bias = w["embed.bias"] + w["embed.position"]
    head = torch.cat([w["head.state"], w["head.diagnostic"]]).flatten(0, 1)
    head_bias = torch.cat([w["head.bias"], w["head.diagnostic_bias"]])[:, None, None]
    keep = (1 - w["head.blend"])[:, None, None]
    scale = loaded.model.tendency_scale[:, None, None]
    num_fields, channels = len(config.fields), config.channels
    state = ((initial - norm.mean) / norm.std)[None]
    physical = initial
    for forcing in forcings:
        maps = torch.cat([state, forcing], 1)
        maps = torch.cat([maps[..., :o, :].flip(-2), maps, maps[..., -o:, :].flip(-2)], -2)
        maps = torch.cat([maps[..., -o:], maps, maps[..., :o]], -1)
        patches = maps.unfold(2, height, rows).unfold(3, width, columns)
        patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(1, config.num_tokens, -1)
        x = F.linear(patches, embed) + embed_bias
        for k in range(config.num_blocks):
            b = f"blocks.{k}."
            y = F.layer_norm(x, (channels,), w[b + "norm1_scale"], w[b + "norm1_shift"])
            hidden = F.gelu(torch.matmul(w[b + "token_w1"], y) + w[b + "token_b1"][:, None])
            x = x + torch.matmul(w[b + "token_w2"], hidden)
            y = F.layer_norm(x, (channels,), w[b + "norm2_scale"], w[b + "norm2_shift"])
            hidden = F.gelu(F.linear(y, w[b + "channel_w1"], w[b + "channel_b1"]))
            x = x + F.linear(hidden, w[b + "channel_w2"], w[b + "channel_b2"])
        y = F.layer_norm(x, (channels,), w["head.norm_scale"], w["head.norm_shift"])
        windows = F.linear(y, head)
        size = (num_lat + 2 * o, num_lon + 2 * o)
        maps = F.fold(windows.mT, size, (height, width), stride=(rows, columns))
        maps[..., -2 * o : -o] += maps[..., :o]
        maps[..., o : 2 * o] += maps[..., -o:]
        maps = maps[..., o:-o, o:-o] / loaded.model.head.count + head_bias
        state = state * keep + maps[:, :num_fields] * scale
        physical = state[0] * norm.std + norm.mean
    return physical


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", nargs="?", default="nature-run")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    loaded = load_checkpoint(find_checkpoint(Path(options.checkpoint)), single_rank_mesh())
    loaded.model.make_resident()
    maps = make_forcings(loaded)
    norm = loaded.normalisation
    generator = torch.Generator().manual_seed(0)
    data = norm.mean + norm.std * torch.randn(norm.mean.shape, generator=generator)
    config = loaded.manifest.architecture
    lead = np.timedelta64(0, "s")
    fields = (*config.prognostic_fields, *config.diagnostic_fields)
    full = torch.cat([data, data.new_zeros((len(config.diagnostics), *data.shape[1:]))])
    initial = State(full, fields, config.grid_object, INIT, lead)
    step = np.timedelta64(config.step_hours, "h")
    forcings = [torch.from_numpy(maps.at(INIT + k * step))[None] for k in range(options.steps)]

    def ours() -> Tensor:
        for state in rollout(loaded, maps, initial, options.steps):
            last = state
        return last.data[: data.shape[0]]

    def bare() -> Tensor:
        return bare_rollout(loaded, forcings, data)

    difference = float(((ours() - bare()).abs().amax((1, 2)) / norm.std[:, 0, 0]).max())
    pairs = [(seconds(ours), seconds(bare)) for _ in range(options.repeats)]
    per_step = [1e3 * statistics.median(side) / options.steps for side in zip(*pairs, strict=True)]
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"{options.steps} steps, {options.threads} threads, median of {options.repeats}")
    print(f"{'':20} ms per step")
    print(f"{'rollout':20} {per_step[0]:10.2f}")
    print(f"{'bare torch':20} {per_step[1]:10.2f}")
    print(f"{'ratio':20} {ratio:10.3f}")
    print(f"largest difference {difference:.1e} standard deviations")


if __name__ == "__main__":
    main()
