"""Validation during training: the one-step loss and the error of rollouts up to five days."""

from dataclasses import dataclass

import numpy as np
import torch

from jigsaw_forecast.data.statistics import Statistics, row_weights
from jigsaw_forecast.data.training_set import Batch, TrainingSet
from jigsaw_forecast.errors import DataError
from jigsaw_forecast.model.weather_mixer import WeatherMixer
from jigsaw_forecast.parallel.collectives import all_reduce_sum
from jigsaw_forecast.train.loss import LossWeights, rollout_loss
from jigsaw_forecast.verify.statistics import SquaredErrors, spatial_mean_square

HEADLINE_FIELDS = ("z500", "t850", "u850", "v850", "2t")
LEAD_HOURS = (6, 24, 72, 120)


@dataclass(frozen=True)
class ValidationScores:
    """What a validation finds.

    Attributes:
        loss: Training loss of one step.
        rmse: Root mean square error by field and lead time in hours, the field's units.
    """

    loss: float
    rmse: dict[str, dict[int, float]]


class Validation:
    """A fixed set of rollouts from the validation period, held in the CPU's memory."""

    def __init__(
        self,
        data: TrainingSet,
        statistics: Statistics,
        num_inits: int,
        model: WeatherMixer,
        weights: LossWeights,
    ) -> None:
        """Reads the samples: starts spread evenly over the period, the same on every mesh.

        Raises:
            DataError: The period is shorter than a rollout.
        """
        hours = model.config.step_hours
        self._leads = [lead for lead in LEAD_HOURS if lead % hours == 0]
        self._num_steps = max(self._leads) // hours
        num_samples = data.num_samples(self._num_steps)
        if num_samples < 1:
            raise DataError(
                f"the validation period is shorter than {max(self._leads)} h and one step"
            )
        mesh = model.mesh
        num_inits = min(num_inits, num_samples)
        starts = np.unique(np.linspace(0, num_samples - 1, num_inits).astype(np.int64))
        own = starts[mesh.data.index :: mesh.data.size]
        self._batch: Batch | None = data.batch(own, self._num_steps) if own.size else None
        self._model = model
        self._weights = weights
        pieces, grid = model.pieces, model.config.grid_object
        rows = torch.from_numpy(row_weights(grid)[pieces.rows] / grid.num_model_lat)
        self._rows = rows.to(mesh.device)
        self._std = torch.from_numpy(statistics.std[pieces.fields]).to(mesh.device)

    @torch.no_grad()
    def score(self) -> ValidationScores:
        """Runs the model from every start.

        Communication:
            The model's own, and three all-reduces of a few numbers.
        """
        model, config = self._model, self._model.config
        errors = SquaredErrors.empty(len(self._leads), len(config.fields))
        mesh = model.mesh
        loss = torch.zeros(2, dtype=torch.float64, device=mesh.device)
        if self._batch is not None:
            batch = self._batch.to(mesh.device)
            first = Batch(batch.states[:, :2], batch.diagnostics[:, :1], batch.forcings[:, :1])
            count = first.states.shape[0]
            loss[0] = rollout_loss(model, first, self._weights).double() * count
            loss[1] = count / mesh.model.size
            self._roll_out(batch, errors)
        all_reduce_sum(loss, (mesh.domain, mesh.tensor, mesh.data))
        errors.reduce((mesh.domain, mesh.tensor), mesh.data, mesh.device)
        rmse = errors.rmse()
        return ValidationScores(
            loss=float(loss[0] / loss[1]),
            rmse={
                name: {
                    lead: float(rmse[place, config.fields.index(name)])
                    for place, lead in enumerate(self._leads)
                }
                for name in HEADLINE_FIELDS
                if name in config.fields
            },
        )

    def _roll_out(self, batch: Batch, errors: SquaredErrors) -> None:
        """Adds the errors of all starts at once."""
        model = self._model
        state = batch.states[:, 0]
        for step in range(self._num_steps):
            state, _ = model(state, batch.forcings[:, step])
            lead = (step + 1) * model.config.step_hours
            if lead in self._leads:
                error = (state - batch.states[:, step + 1]) * self._std[:, None, None]
                mean_squares = spatial_mean_square(error, self._rows)
                errors.add(self._leads.index(lead), mean_squares, model.pieces.fields)
