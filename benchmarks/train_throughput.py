"""Training against the loop that one would write by hand, on one rank: samples per second.

The plain loop is torch: a Dataset that reads each sample with xarray from the zarr store, a
DataLoader with a worker process, `benchmarks/plain_mixer.py` (the same arithmetic and the same
initial weights; both losses are compared before anything is timed), autocast for bfloat16, gradient
clipping, fused AdamW, averaged weights. Ours is `train` itself, with all that it logs, reading
ahead from the store (`data.in_memory = false`), and with the data in memory. The model is that of
the shipped checkpoint, the data made-up weather of its grid and fields. The contenders take turns.

    python benchmarks/train_throughput.py [--precision bfloat16] [--steps 16] [--rounds 3]
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from safetensors.numpy import load_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.plain_mixer import PlainMixer
from jigsaw_forecast.data.mock import write_mock_store
from jigsaw_forecast.data.statistics import Statistics
from jigsaw_forecast.grid import Grid
from jigsaw_forecast.model.sample import sample_pieces
from jigsaw_forecast.parallel.mesh import single_rank_mesh
from jigsaw_forecast.recipe import load_recipe, to_toml
from jigsaw_forecast.train.loss import loss_weights
from jigsaw_forecast.train.output import TrainOutput
from jigsaw_forecast.train.prepare import Run, prepare
from jigsaw_forecast.train.run import train_recipe
from jigsaw_forecast.train.schema import TrainRecipe
from jigsaw_forecast.train.stopping import Stop

ROOT = Path(__file__).resolve().parents[1]
BATCH, RATE, WEIGHT_DECAY, DIAGNOSTIC_WEIGHT, DECAY = 8, 1e-4, 0.05, 0.05, 0.995
NUM_WARM_UP = 5  # train steps that count for nobody
TRAIN, VALIDATION = "2020-01-01/2020-01-31", "2020-02-01/2020-02-15"

Sample = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


class Weather(Dataset[Sample]):
    """State, forcings, next state and its diagnostics, normalised; each sample read by itself."""

    def __init__(self, store: Path, recipe: TrainRecipe, statistics: Statistics, run: Run) -> None:
        config = recipe.model
        self.store = store
        self.prognostic, self.diagnostic = config.prognostic_fields, config.diagnostic_fields
        self.mean, self.std = statistics.mean, statistics.std[:, None, None]
        self.diagnostic_mean = statistics.diagnostic_mean[:, None, None]
        self.diagnostic_std = statistics.diagnostic_std[:, None, None]
        places = range(run.data.num_samples(1))
        self.forcings = torch.cat([run.data.batch(np.array([k]), 1).forcings[0] for k in places])
        self.data: xr.Dataset | None = None

    def __len__(self) -> int:
        return len(self.forcings)

    def __getitem__(self, index: int) -> Sample:
        if self.data is None:  # by the worker that reads
            self.data = xr.open_zarr(self.store, chunks=None, consolidated=False)
        pair = self.data.isel(time=slice(index, index + 2))
        held = {name: pair[name].values for name in {f.variable for f in self.prognostic}}
        levels = {int(level): place for place, level in enumerate(pair["level"].values)}
        states = np.stack(
            [
                held[f.variable][:, levels[f.level_hpa]] if f.level_hpa else held[f.variable]
                for f in self.prognostic
            ],
            axis=1,
        )
        rain = np.stack([pair[f.variable].values[1] for f in self.diagnostic])
        states = (states - self.mean) / self.std
        rain = (rain - self.diagnostic_mean) / self.diagnostic_std
        first, second = torch.from_numpy(states)
        return first, self.forcings[index], second, torch.from_numpy(rain)


def plain_loss(model: PlainMixer, sample: Sample, area: torch.Tensor) -> torch.Tensor:
    """The loss of `train`: mean over the fields of the area's mean of the squared error."""
    state, forcing, target, target_rain = sample
    found, rain = model(state, forcing)
    error = ((found - target) / model.scale[:, None, None]).square() * area
    rain_error = (rain - target_rain).square() * area
    return error.mean((0, 1)).sum() + DIAGNOSTIC_WEIGHT * rain_error.mean((0, 1)).sum()


def plain_loop(
    model: PlainMixer, loader: DataLoader[Sample], area: torch.Tensor, precision: str, steps: int
) -> float:
    """Samples per second of the steps after the first few."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, weight_decay=0.0, betas=(0.9, 0.95), fused=True)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    start_s = 0.0
    for step, sample in enumerate(islice(_endless(loader), NUM_WARM_UP + steps)):
        if step == NUM_WARM_UP:
            start_s = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = plain_loss(model, sample, area)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update_parameters(model)
        loss.item()  # who trains looks at the loss
    return steps * BATCH / (time.perf_counter() - start_s)


def _endless(loader: DataLoader[Sample]) -> Iterator[Sample]:
    while True:
        yield from loader


def our_loop(folder: Path, steps: int, *, in_memory: bool) -> float:
    """Samples per second by the metrics of `train`, of the steps after the first few."""
    output = folder / "ours"
    settings = [f"data.in_memory={str(in_memory).lower()}"]
    total = NUM_WARM_UP + steps
    train_recipe(folder / "recipe.toml", settings, {}, output, False, total, "cpu")
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    seconds = sum(line["seconds"] for line in lines if line["train_step"] > NUM_WARM_UP)
    shutil.rmtree(output)
    return steps * BATCH / seconds


def write_inputs(folder: Path, precision: str) -> TrainRecipe:
    """A store and a recipe like those of the shipped checkpoint."""
    recipe = load_recipe(ROOT / "recipes" / "nature-run_train_cpu.toml", TrainRecipe)
    config = recipe.model
    times = np.arange(
        np.datetime64("2020-01-01T00", "h"),
        np.datetime64("2020-02-16T00", "h"),
        np.timedelta64(6, "h"),
    )
    fields = (*config.prognostic_fields, *config.diagnostic_fields)
    write_mock_store(folder / "mock.zarr", fields, Grid.parse(config.grid), times)
    tree = recipe.model_dump(mode="json", exclude_none=True)
    tree["data"] = {
        "path": str(folder / "mock.zarr"), "train": TRAIN, "validation": VALIDATION,
        "in_memory": False,
    }  # fmt: skip
    phase = {"rollout_steps": 1, "num_steps": 100000, "learning_rate": RATE}
    tree["train"] |= {
        "precision": precision, "global_batch_size": BATCH, "log_every": 1,
        "validate_every": 100000, "checkpoint_every": 100000, "num_validation_inits": 1,
        "field_weights": {}, "warmup_steps": 0, "phases": [phase],
    }  # fmt: skip
    (folder / "recipe.toml").write_text(to_toml(tree))
    return load_recipe(folder / "recipe.toml", TrainRecipe)


def check_same(run: Run, plain: PlainMixer, sample: Sample, area: torch.Tensor) -> None:
    """Both lose the same on the same samples."""
    with torch.no_grad():
        ours = float(run.loss(run.data.batch(np.arange(BATCH), 1)))
        theirs = float(plain_loss(plain, sample, area))
    assert abs(ours - theirs) < 0.01 * theirs, (ours, theirs)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints samples per second of each contender."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precision", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="processes of the DataLoader")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        rates = compare(Path(name), options)
    base = statistics.median(rates["plain loop"])
    print(f"{options.precision}, {options.threads} threads, median of {options.rounds}:")
    for name, found in rates.items():
        rate = statistics.median(found)
        spread = f"{min(found):.2f} to {max(found):.2f}"
        print(f"{name:16} {rate:6.2f} samples/s ({spread}), {rate / base:.2f} times the plain loop")
    if options.json:
        options.json.write_text(json.dumps(rates))


def compare(folder: Path, options: argparse.Namespace) -> dict[str, list[float]]:
    """Samples per second of each contender in each round."""
    recipe = write_inputs(folder, options.precision)
    config = recipe.model
    output = TrainOutput(folder / "prepared")
    output.start(recipe)
    mesh = single_rank_mesh()
    run = prepare(recipe, output, mesh, Stop())
    weather = Weather(
        folder / "mock.zarr", recipe, Statistics.from_arrays(load_file(output.statistics)), run
    )
    weighting = recipe.train.loss_weighting()
    weights = loss_weights(config, sample_pieces(config, mesh), weighting, mesh.device)
    area = weights.state.sum(0)  # of a cell, over the fields
    plain = PlainMixer(config)
    plain.copy_from(run.state.model)
    samples = [weather[place] for place in range(BATCH)]
    check_same(run, plain, tuple(map(torch.stack, zip(*samples, strict=True))), area)
    weather.data = None  # workers open it by themselves
    loader = DataLoader(
        weather, BATCH, shuffle=True, num_workers=options.workers, drop_last=True,
        persistent_workers=options.workers > 0,
        multiprocessing_context="fork" if options.workers else None,
    )  # fmt: skip
    steps = options.steps
    contenders = {
        "plain loop": lambda: plain_loop(plain, loader, area, options.precision, steps),
        "ours": lambda: our_loop(folder, steps, in_memory=False),
        "ours, in memory": lambda: our_loop(folder, steps, in_memory=True),
    }
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(options.rounds):
        for name, rate in contenders.items():
            rates[name].append(rate())
    return rates


if __name__ == "__main__":
    main()
