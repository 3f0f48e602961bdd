"""How long an asynchronous save of a training checkpoint stalls training, beside its own duration.

Trains a model with 1 GB of state or more (weights, moments, average: 16 bytes a parameter) on
made-up weather, and saves now and then as `train` does. The stall of a save is the copy that it
takes while training stands still, and what the train steps until its end take longer than the
median step without a save. Compared with the save's own duration in the same run: copy, writing,
fsync, digests, rename.

    python benchmarks/async_save.py [--gigabytes 1.1] [--saves 3] [--threads 1]
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from jigsaw_forecast.data.mock import write_mock_store
from jigsaw_forecast.fields import Field
from jigsaw_forecast.grid import Grid
from jigsaw_forecast.parallel.mesh import single_rank_mesh
from jigsaw_forecast.recipe import load_recipe
from jigsaw_forecast.train.output import TrainOutput
from jigsaw_forecast.train.precision import micro_batches
from jigsaw_forecast.train.prepare import Run, prepare
from jigsaw_forecast.train.schema import TrainRecipe
from jigsaw_forecast.train.stopping import Stop

FIELDS = (Field("geopotential", 500), Field("temperature", 500), Field("2m_temperature"))
BYTES_A_PARAMETER = 16  # weight, two moments, average, float32 each
NUM_TOKENS = 128
RECIPE = """
seed = 0
[data]
path = "{store}"
train = "2020-01-01/2020-01-20"
validation = "2020-01-21/2020-01-31"
[model]
grid = "64x32"
fields = ["z500", "t500", "2t"]
forcings = ["land_sea_mask", "insolation"]
patch = [4, 4]
overlap = 1
channels = {channels}
token_hidden = {token_hidden}
channel_hidden = {channel_hidden}
num_blocks = {num_blocks}
[train]
global_batch_size = 2
precision = "auto"
warmup_steps = 0
log_every = 1
num_validation_inits = 1
validation_hours = [6]
[[train.phases]]
rollout_steps = 1
num_steps = 100000
learning_rate = 1e-5
"""


def make_run(folder: Path, gigabytes: float, channels: int) -> Run:
    times = np.arange(np.datetime64("2020-01-01T00", "h"), np.datetime64("2020-02-01T00", "h"), 6)
    write_mock_store(folder / "mock.zarr", FIELDS, Grid.parse("64x32"), times)
    token_hidden, channel_hidden = 2 * channels, 4 * channels
    block = 2 * channels * channel_hidden + 2 * token_hidden * NUM_TOKENS
    text = RECIPE.format(
        store=folder / "mock.zarr",
        channels=channels,
        token_hidden=token_hidden,
        channel_hidden=channel_hidden,
        num_blocks=-(-int(gigabytes * 1e9 / BYTES_A_PARAMETER) // block),
    )
    (folder / "recipe.toml").write_text(text)
    recipe = load_recipe(folder / "recipe.toml", TrainRecipe)
    output = TrainOutput(folder / "out")
    output.start(recipe)
    return prepare(recipe, output, single_rank_mesh(), Stop())


def train_step(run: Run, step: int) -> float:
    """Seconds of a train step without its logging."""
    start_s = time.perf_counter()
    batch = run.data.batch(np.array([step % 70, step % 70 + 1]), 1)
    run.loss.backward(micro_batches(batch, 1))
    run.state.optimizer.step()
    run.state.optimizer.zero_grad(set_to_none=True)
    run.state.step += 1
    run.state.num_updates += 1
    run.state.average.update(run.state.num_updates)
    return time.perf_counter() - start_s


def measure(run: Run, num_plain: int) -> dict[str, float]:
    """One save among train steps."""
    saver = run.checkpoints._saver
    plain = [train_step(run, step) for step in range(num_plain)]
    start_s = time.perf_counter()
    run.checkpoints.save({}, None)
    copy_s = time.perf_counter() - start_s
    during = []
    while saver.is_busy:
        during.append(train_step(run, len(during)))
    save_s = time.perf_counter() - start_s
    run.checkpoints.settle()
    median_s = statistics.median(plain)
    return {
        "copy_seconds": copy_s,
        "slower_seconds": sum(during) - len(during) * median_s,
        "save_seconds": save_s,  # the last step began before its end: at most one step too long
        "step_seconds": median_s,
        "steps_during": len(during),
    }


def save_alone(run: Run) -> float:
    """Seconds of a save while nothing else runs."""
    start_s = time.perf_counter()
    run.state.step += 1
    run.checkpoints.save({}, None)
    run.checkpoints.settle()
    return time.perf_counter() - start_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.1)
    parser.add_argument("--channels", type=int, default=1024)
    parser.add_argument("--saves", type=int, default=3)
    parser.add_argument("--plain-steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to be measured")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        run = make_run(Path(name), options.gigabytes, options.channels)
        num_bytes = BYTES_A_PARAMETER * sum(p.numel() for p in run.state.model.parameters())
        print(f"state {num_bytes / 1e9:.2f} GB, {options.threads} threads")
        train_step(run, 0)
        alone_s = save_alone(run)
        rounds = [measure(run, options.plain_steps) for _ in range(options.saves)]
    shares = []
    for found in rounds:
        stall_s = found["copy_seconds"] + found["slower_seconds"]
        shares.append(stall_s / found["save_seconds"])
        print(
            f"copy {found['copy_seconds']:.3f} s, {found['steps_during']:.0f} steps of "
            f"{found['step_seconds']:.2f} s slower by {found['slower_seconds']:.3f} s in all, "
            f"save {found['save_seconds']:.2f} s: stall {100 * shares[-1]:.1f} %"
        )
    median = statistics.median(shares)
    copy = statistics.median(f["copy_seconds"] / f["save_seconds"] for f in rounds)
    print(
        f"median stall {100 * median:.1f} % of the save (the copy alone {100 * copy:.1f} %); a "
        f"save without training beside it takes {alone_s:.2f} s"
    )
    if options.json:
        figures = {"state_bytes": num_bytes, "alone_seconds": alone_s, "rounds": rounds}
        options.json.write_text(json.dumps(figures | {"median_stall_share": median}))


if __name__ == "__main__":
    main()
