"""The rollout: a generator from a state to states; no I/O."""

from collections.abc import Iterator

import numpy as np
import torch

from jigsaw_forecast.checkpoint.load import LoadedModel
from jigsaw_forecast.data.forcings import ForcingMaps
from jigsaw_forecast.state import State


def make_forcings(loaded: LoadedModel) -> ForcingMaps:
    """The forcings of a model for this rank's rows."""
    config = loaded.manifest.architecture
    return ForcingMaps(
        config.forcings, config.grid_object, loaded.statics, loaded.model.pieces.rows
    )


@torch.inference_mode()
def rollout(
    loaded: LoadedModel, forcings: ForcingMaps, initial: State, num_steps: int
) -> Iterator[State]:
    """Yields the states of `num_steps` model steps, each this rank's piece.

    The normalised state is fed back in float32 whatever the products' dtype; precipitation, which
    a linear head can make negative, is cut off at zero where it leaves the model.

    Args:
        loaded: The model on this rank.
        forcings: Of this rank's rows.
        initial: This rank's piece of the initial state; its diagnostics are not read.
        num_steps: Rollout steps.

    Communication:
        That of the model's forward, each step.
    """
    model, norm = loaded.model, loaded.normalisation
    step = np.timedelta64(loaded.manifest.architecture.step_hours, "h").astype("timedelta64[s]")
    group = model.pieces.forcings
    num_prognostic = norm.mean.shape[0]
    state = ((initial.data[:num_prognostic] - norm.mean) / norm.std)[None]
    for index in range(num_steps):
        lead_time = initial.lead_time + index * step
        maps = forcings.at(initial.init_time + lead_time)[group]
        state, diagnostics = model(state, torch.from_numpy(maps)[None].to(state.device))
        physical = state[0] * norm.std + norm.mean
        rain = (diagnostics[0] * norm.diagnostic_std + norm.diagnostic_mean).clamp_min(0.0)
        yield initial.at(torch.cat([physical, rain]), lead_time + step)
