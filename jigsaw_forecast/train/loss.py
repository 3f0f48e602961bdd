"""The loss: mean square by area, field and level, in units of each field's own tendency."""

from typing import NamedTuple

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from jigsaw_forecast.data.statistics import row_weights
from jigsaw_forecast.data.training_set import Batch
from jigsaw_forecast.model.config import ModelConfig
from jigsaw_forecast.model.sample import Pieces
from jigsaw_forecast.model.weather_mixer import WeatherMixer
from jigsaw_forecast.train.weighting import LossWeighting, field_weights

Tensor = torch.Tensor


class LossWeights(NamedTuple):
    """What each squared error counts for; over all ranks each sums to 1 (diagnostics: weight).

    Attributes:
        state: For an error in units of the tendency's deviation, shape [F_j, Y_i, 1].
        diagnostic: For an error in units of the diagnostic's deviation, shape [D_j, Y_i, 1].
    """

    state: Tensor
    diagnostic: Tensor


def loss_weights(
    config: ModelConfig, pieces: Pieces, weighting: LossWeighting, device: torch.device
) -> LossWeights:
    """Weights of this rank's piece: field x level x cell area, summing to 1 over all fields.

    Args:
        config: The architecture.
        pieces: What this rank holds.
        weighting: Of fields, levels and diagnostics.
        device: Where the loss is computed.
    """
    grid = config.grid_object
    area = row_weights(grid)[pieces.rows] / (grid.num_model_lat * grid.num_lon)
    state = field_weights(config, weighting)[pieces.fields, None] * area
    num_local = len(config.diagnostics[pieces.diagnostics])
    by_diagnostic = np.full(num_local, weighting.diagnostics / max(len(config.diagnostics), 1))
    diagnostic = by_diagnostic[:, None] * area
    return LossWeights(
        *(
            torch.tensor(part, dtype=torch.float32, device=device)[..., None]
            for part in (state, diagnostic)
        )
    )


def rollout_loss(
    model: WeatherMixer, batch: Batch, weights: LossWeights, *, recompute: bool = False
) -> Tensor:
    """This rank's part of the loss: mean over the batch and the rollout steps.

    The sum over the ranks of a model group is the group's loss; the mean of that over the data
    axis is the loss. Gradients flow through all steps.

    Args:
        model: One model step.
        batch: Samples of `K` steps.
        weights: Of `loss_weights`.
        recompute: Keep only the states between steps and compute the rest again in backward.
    """
    num_steps = batch.forcings.shape[1]
    state = batch.states[:, 0]
    scale = model.tendency_scale[:, None, None]
    total = state.new_zeros(())
    for step in range(num_steps):
        if recompute:
            state, diagnostics = checkpoint(
                model, state, batch.forcings[:, step], use_reentrant=False
            )
        else:
            state, diagnostics = model(state, batch.forcings[:, step])
        error = (state - batch.states[:, step + 1]) / scale
        total = total + (error.square() * weights.state).sum()
        diagnostic_error = diagnostics - batch.diagnostics[:, step]
        total = total + (diagnostic_error.square() * weights.diagnostic).sum()
    return total / (num_steps * batch.states.shape[0])
