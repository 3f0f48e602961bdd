"""Steps of a model on made-up input, to be timed or traced: a forecast's and a training's."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from jigsaw_forecast.data.training_set import Batch
from jigsaw_forecast.forecast.rollout import advance, blank_inputs, num_in
from jigsaw_forecast.model.weather_mixer import WeatherMixer
from jigsaw_forecast.parallel.collectives import all_reduce_sum
from jigsaw_forecast.parallel.memory import peak_memory_bytes
from jigsaw_forecast.parallel.together import barrier
from jigsaw_forecast.train.loss import loss_weights, rollout_loss
from jigsaw_forecast.train.optimizer import AveragedWeights
from jigsaw_forecast.train.weighting import LossWeighting

FRESH_STD = 0.02  # of a bench's weights: what they are does not change how long a step takes


@dataclass(frozen=True)
class Timing:
    """What a kind of step took.

    Attributes:
        seconds: Median of the timed steps, of the slowest rank.
        fastest, slowest: The extremes.
        flops: Of one step of the whole group.
        peak_memory_bytes: This rank's, since it was last restarted.
    """

    seconds: float
    fastest: float
    slowest: float
    flops: int
    peak_memory_bytes: int


def training_step(
    batch_size: int, rollout_steps: int = 1, *, recompute: bool = False
) -> Callable[[WeatherMixer], None]:
    """Forward and backward of the loss; the optimizer's step is not in it."""

    def step(model: WeatherMixer) -> None:
        batch = blank_batch(model, batch_size, rollout_steps)
        weights = loss_weights(model.config, model.pieces, LossWeighting(), model.mesh.device)
        loss = rollout_loss(model, batch, weights, recompute=recompute)
        loss.backward()  # type: ignore[no-untyped-call]

    return step


def blank_batch(model: WeatherMixer, batch_size: int, rollout_steps: int) -> Batch:
    """Samples of zeros of this rank's shapes, float32, on the model's device."""
    pieces, device = model.pieces, model.mesh.device
    area = num_in(pieces.rows), model.config.grid_object.num_lon

    def blank(num_times: int, maps: slice) -> torch.Tensor:
        return torch.zeros(batch_size, num_times, num_in(maps), *area, device=device)

    return Batch(
        blank(rollout_steps + 1, pieces.fields),
        blank(rollout_steps, pieces.diagnostics),
        blank(rollout_steps, pieces.forcings),
    )


def training_tensors(model: WeatherMixer) -> dict[str, Sequence[torch.Tensor]]:
    """What a training holds beside weights and gradients: AdamW's state and the averaged weights.

    Takes one step of the optimizer with the gradients that are there.
    """
    optimizer = make_adamw(model)
    optimizer.step()
    states = [list(state.values()) for state in optimizer.state.values()]
    average = AveragedWeights(model, decay=0.0)
    return {"moment": [tensor for state in states for tensor in state], "average": average.values}


def make_adamw(model: WeatherMixer) -> torch.optim.AdamW:
    """AdamW with a rate of zero, in one kernel for all weights where torch has it."""
    is_fused = model.mesh.device.type in ("cpu", "cuda")
    return torch.optim.AdamW(model.parameters(), lr=0.0, fused=is_fused)


def fill(model: WeatherMixer) -> None:
    """Gives a model that was made without a seed weights that are quickly made."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, FRESH_STD)


def time_forecast(model: WeatherMixer, num_steps: int) -> Timing:
    """Times steps of a rollout, fed back, on all ranks of a mesh."""
    norm, physical, forcing = blank_inputs(model)
    state = (physical - norm.mean) / norm.std

    def step() -> None:
        nonlocal state
        state, _ = advance(model, norm, state, forcing)

    with torch.inference_mode():
        return _time(model, step, num_steps)


def time_training(model: WeatherMixer, batch_size: int, num_steps: int) -> Timing:
    """Times forward, backward, AdamW's step and the average of the weights on all ranks."""
    optimizer = make_adamw(model)
    average = AveragedWeights(model, decay=0.0)
    backward = training_step(batch_size)

    def step() -> None:
        backward(model)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(1)

    return _time(model, step, num_steps)


def _time(model: WeatherMixer, step: Callable[[], None], num_steps: int) -> Timing:
    mesh = model.mesh
    axes = (mesh.data, mesh.domain, mesh.tensor)
    num_flops = count_flops(step)  # warms up too
    flops = torch.tensor(float(num_flops), dtype=torch.float64, device=mesh.device)
    all_reduce_sum(flops, axes)
    seconds = []
    for _ in range(num_steps):
        barrier(mesh)
        _synchronize(mesh.device)
        start_s = time.perf_counter()
        step()
        _synchronize(mesh.device)
        barrier(mesh)
        seconds.append(time.perf_counter() - start_s)
    seconds.sort()
    peak = peak_memory_bytes(mesh.device)
    return Timing(seconds[len(seconds) // 2], seconds[0], seconds[-1], int(flops), peak)


def count_flops(step: Callable[[], object]) -> int:
    """Floating-point operations of a step on this rank."""
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
