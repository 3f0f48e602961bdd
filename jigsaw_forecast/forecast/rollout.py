"""The rollout: a generator from a state to states; no I/O."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from jigsaw_forecast.checkpoint.load import LoadedModel, Normalisation
from jigsaw_forecast.data.forcings import ForcingMaps
from jigsaw_forecast.forecast.exchange import held_fields
from jigsaw_forecast.model.weather_mixer import WeatherMixer
from jigsaw_forecast.state import State


def make_forcings(loaded: LoadedModel) -> ForcingMaps:
    """The forcings of a model for this rank's rows."""
    config = loaded.manifest.architecture
    return ForcingMaps(
        config.forcings, config.grid_object, loaded.statics, loaded.model.pieces.rows
    )


@dataclass(frozen=True)
class Snapshot:
    """What a rollout goes on from, to the last bit: this rank's piece of the model's own state.

    Attributes:
        normalised: Prognostic fields as the model feeds them back, float32, [1, F_j, Y_i, X].
        init_time: Start of the forecast, UTC.
        lead_time: Time since the start.
    """

    normalised: torch.Tensor
    init_time: np.datetime64
    lead_time: np.timedelta64


def first_snapshot(loaded: LoadedModel, initial: State) -> Snapshot:
    """The initial state as the model takes it; its diagnostics are not read.

    Args:
        loaded: The model on this rank.
        initial: This rank's piece of the initial state.
    """
    norm = loaded.normalisation
    normalised = (initial.data[: norm.mean.shape[0]] - norm.mean) / norm.std
    return Snapshot(normalised[None], initial.init_time, initial.lead_time)


def rollout(
    loaded: LoadedModel, forcings: ForcingMaps, initial: State, num_steps: int
) -> Iterator[State]:
    """Yields the states of `num_steps` model steps, each this rank's piece; see `go_on`."""
    for _, state in go_on(loaded, forcings, first_snapshot(loaded, initial), num_steps):
        yield state


@torch.inference_mode()
def go_on(
    loaded: LoadedModel, forcings: ForcingMaps, start: Snapshot, num_steps: int
) -> Iterator[tuple[Snapshot, State]]:
    """Yields snapshot and state of `num_steps` model steps, each this rank's piece.

    The normalised state is fed back in float32 whatever the products' dtype; precipitation, which
    a linear head can make negative, is cut off at zero where it leaves the model.

    Args:
        loaded: The model on this rank.
        forcings: Of this rank's rows.
        start: This rank's piece of where to go on from.
        num_steps: Rollout steps.

    Communication:
        That of the model's forward, each step.
    """
    config, pieces = loaded.manifest.architecture, loaded.model.pieces
    step = np.timedelta64(config.step_hours, "h").astype("timedelta64[s]")
    fields = held_fields(config, pieces)
    normalised, lead_time = start.normalised, start.lead_time.astype("timedelta64[s]")
    for _ in range(num_steps):
        maps = forcings.at(start.init_time + lead_time)[pieces.forcings]
        forcing = torch.from_numpy(maps)[None].to(normalised.device)
        normalised, physical = advance(loaded.model, loaded.normalisation, normalised, forcing)
        lead_time = lead_time + step
        state = State(
            physical, fields, config.grid_object, start.init_time, lead_time, pieces.rows.start
        )
        yield Snapshot(normalised, start.init_time, lead_time), state


def advance(
    model: WeatherMixer, norm: Normalisation, state: torch.Tensor, forcing: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One model step: the next normalised state and all fields in physical units.

    Args:
        model: The model on this rank.
        norm: This rank's piece of the normalisation.
        state: Normalised, [1, F_j, Y_i, X].
        forcing: At the start of the step, [1, G_j, Y_i, X].

    Returns:
        [1, F_j, Y_i, X] and [F_j + D_j, Y_i, X].

    Communication:
        That of the model's forward.
    """
    state, diagnostics = model(state, forcing)
    num_fields, num_diagnostics = state.shape[1], diagnostics.shape[1]
    physical = state.new_empty((num_fields + num_diagnostics, *state.shape[2:]))
    torch.addcmul(norm.mean, state[0], norm.std, out=physical[:num_fields])
    rain = diagnostics[0] * norm.diagnostic_std + norm.diagnostic_mean
    torch.clamp_min(rain, 0.0, out=physical[num_fields:])
    return state, physical


def blank_inputs(model: WeatherMixer) -> tuple[Normalisation, torch.Tensor, torch.Tensor]:
    """A normalisation, a state and forcings of this rank's shapes."""
    pieces, device = model.pieces, model.mesh.device
    num_fields = num_in(pieces.fields)
    num_diagnostics = num_in(pieces.diagnostics)
    area = num_in(pieces.rows), model.config.grid_object.num_lon
    norm = Normalisation(
        torch.zeros(num_fields, *area, device=device),
        torch.ones(num_fields, 1, 1, device=device),
        torch.zeros(num_diagnostics, 1, 1, device=device),
        torch.ones(num_diagnostics, 1, 1, device=device),
    )
    state = torch.zeros(1, num_fields, *area, device=device)
    return norm, state, torch.zeros(1, num_in(pieces.forcings), *area, device=device)


@torch.inference_mode()
def one_step(model: WeatherMixer) -> None:
    """One step of a rollout, inputs and output in physical units included."""
    norm, physical, forcing = blank_inputs(model)
    advance(model, norm, (physical - norm.mean) / norm.std, forcing)


def num_in(part: slice) -> int:
    """Length of a slice with both ends."""
    return int(part.stop - part.start)
