"""Noise on initial states: every value is a pure function of seed, train step and place.

So the noise is that of one rank on any mesh and after any restart, and each rank makes its own.
"""

import math

import numpy as np
import numpy.typing as npt
import torch

from jigsaw_forecast.data.training_set import Batch
from jigsaw_forecast.model.weather_mixer import WeatherMixer

_DRAWS_PER_COUNT = 4  # Philox gives four 64-bit numbers for each value of its counter
_SMALLEST = 2.0**-53


def add_noise(
    batch: Batch, model: WeatherMixer, deviation: float, seed: tuple[int, int], batch_size: int
) -> Batch:
    """A batch whose initial states carry normal noise.

    Args:
        batch: This replica's samples on the model's device.
        model: For the piece of the sample that this rank holds.
        deviation: Of the noise, in deviations of each field's tendency over a model step.
        seed: Of the run, and the train step.
        batch_size: Samples of the train step over all replicas.
    """
    mesh, pieces, grid = model.mesh, model.pieces, model.config.grid_object
    num_samples = batch.states.shape[0]
    first = mesh.data.index * (batch_size // mesh.data.size)
    fields = range(pieces.fields.start, pieces.fields.stop)
    rows, shape = pieces.rows, (grid.num_model_lat, grid.num_lon)
    noise = np.empty(batch.states[:, 0].shape)
    for sample in range(num_samples):
        for place, field in enumerate(fields):
            key = (*seed, first + sample, field)
            noise[sample, place] = normal_rows(key, shape, rows.start, rows.stop)
    values = torch.from_numpy(noise).to(batch.states)
    states = batch.states.clone()
    states[:, 0] += deviation * model.tendency_scale[:, None, None] * values
    return Batch(states, batch.diagnostics, batch.forcings)


def normal_rows(
    key: tuple[int, ...], shape: tuple[int, int], start: int, stop: int
) -> npt.NDArray[np.float64]:
    """Rows `start` to `stop` of a map of standard normal numbers, [stop - start, X].

    Source: Salmon et al. 2011 (Philox, whose counter can be set), Box and Muller 1958.
    """
    counts_per_row = -(-2 * shape[1] // _DRAWS_PER_COUNT)
    generator = np.random.Philox(np.random.SeedSequence(key))
    generator.advance(start * counts_per_row)
    draws = np.random.Generator(generator).random((stop - start, counts_per_row * _DRAWS_PER_COUNT))
    radius = np.sqrt(-2.0 * np.log(np.maximum(draws[:, : shape[1]], _SMALLEST)))
    angle = 2.0 * math.pi * draws[:, shape[1] : 2 * shape[1]]
    return np.asarray(radius * np.cos(angle))
