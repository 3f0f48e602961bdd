"""AdamW, its schedule, the global gradient norm and the averaged weights."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from jigsaw_forecast.train.schema import Phase, TrainSection


def make_optimizer(model: nn.Module, train: TrainSection) -> torch.optim.AdamW:
    """AdamW on this rank's pieces; weight decay on parameters of two or more dims.

    These are the matrices and `embed.position`; biases and norms are vectors and do not decay.
    """
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": train.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    # one kernel for all weights where torch has it: CPUs and NVIDIA's GPUs
    has_fused = all(p.device.type in ("cpu", "cuda") for p in model.parameters())
    return torch.optim.AdamW(groups, lr=0.0, betas=train.betas, fused=has_fused)


def phase_at(train: TrainSection, step: int) -> tuple[int, int]:
    """The phase of train step `step` (from 0) and the step's place in it (from 0)."""
    for index, phase in enumerate(train.phases):
        if step < phase.num_steps:
            return index, step
        step -= phase.num_steps
    raise ValueError("step is past the last phase")


def learning_rate(phase: Phase, warmup_steps: int, step: int) -> float:
    """Linear warm-up to the peak, then a cosine that ends one step after the phase does.

    Args:
        phase: Peak, end and length.
        warmup_steps: Steps to the peak; the first has 1 / warmup_steps of it.
        step: Place in the phase, from 0.
    """
    if step < warmup_steps:
        return phase.learning_rate * (step + 1) / warmup_steps
    past = (step - warmup_steps) / max(phase.num_steps - warmup_steps, 1)
    end = phase.final_learning_rate
    return end + (phase.learning_rate - end) * 0.5 * (1.0 + math.cos(math.pi * past))


def local_gradient_square(parameters: Sequence[nn.Parameter]) -> torch.Tensor:
    """Sum of squares of this rank's gradients; every parameter lies on one rank of a group."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return nn.utils.get_total_norm(gradients).square()


class AveragedWeights:
    """An exponential moving average of the weights; the saved checkpoint holds it.

    The decay starts low, (1 + n) / (10 + n), so that early averages are not the fresh weights.
    """

    WARM_UP = 10.0  # TensorFlow's ExponentialMovingAverage

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Starts as the model's weights."""
        self._parameters = [parameter.detach() for parameter in model.parameters()]
        self._decay = decay
        self.values = [parameter.clone() for parameter in self._parameters]

    def update(self, num_updates: int) -> None:
        """Moves towards the weights after train step `num_updates` (from 1)."""
        decay = min(self._decay, (1.0 + num_updates) / (self.WARM_UP + num_updates))
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        average(self.values, self._parameters, num_updates)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the model holds the averaged weights."""
        with torch.no_grad():
            own = [parameter.clone() for parameter in self._parameters]
            for parameter, value in zip(self._parameters, self.values, strict=True):
                parameter.copy_(value)
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(self._parameters, own, strict=True):
                    parameter.copy_(value)
