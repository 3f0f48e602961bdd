"""Validation during training: the one-step loss and the error of rollouts, beside references."""

from dataclasses import dataclass, field

import numpy as np
import torch

from jigsaw_forecast.data.statistics import Statistics, row_weights
from jigsaw_forecast.data.training_set import Batch, TrainingSet
from jigsaw_forecast.errors import DataError
from jigsaw_forecast.model.weather_mixer import WeatherMixer
from jigsaw_forecast.parallel.collectives import all_reduce_sum
from jigsaw_forecast.train.loss import LossWeights, rollout_loss
from jigsaw_forecast.train.precision import in_precision
from jigsaw_forecast.train.schema import TrainSection
from jigsaw_forecast.verify.climatology import Climatology, ClimatologyBuilder
from jigsaw_forecast.verify.statistics import SquaredErrors, spatial_mean_square

HEADLINE_FIELDS = ("z500", "t850", "u850", "v850", "2t")
HOURS = (0, 6, 12, 18)
# of the sums of a climatology by hour and day of the year; larger ones are left to `score`
MAX_CLIMATOLOGY_BYTES = 1 << 29
_TIMES_PER_READ = 64

Rmse = dict[str, dict[int, float]]


@dataclass(frozen=True)
class ValidationScores:
    """What a validation finds.

    Attributes:
        loss: Training loss of one step.
        rmse: Root mean square error by field and lead time in hours, the field's units.
        references: `rmse_persistence` and `rmse_climatology`, likewise.
    """

    loss: float
    rmse: Rmse
    references: dict[str, Rmse] = field(default_factory=dict)

    @property
    def error(self) -> float:
        """By which checkpoints are compared: RMSE over that of persistence.

        The mean over fields and lead times, so that training on rollouts, which raises the loss of
        one step, is judged by forecasts. The loss where the model has none of the fields.
        """
        persistence = self.references.get("rmse_persistence", {})
        ratios = [
            rmse / persistence[name][lead]
            for name, by_lead in self.rmse.items()
            for lead, rmse in by_lead.items()
            if name in persistence and persistence[name][lead] > 0
        ]
        return float(np.mean(ratios)) if ratios else self.loss

    def text(self) -> str:
        """`RMSE at 6/24 h: z500 31/120 (persistence 118/401, climatology 613/613)`, by field."""
        leads = next(iter(self.rmse.values()), {})
        return f"RMSE at {'/'.join(map(str, leads))} h: " + ", ".join(
            f"{name} {_numbers(by_lead)}{self._beside(name)}" for name, by_lead in self.rmse.items()
        )

    def _beside(self, name: str) -> str:
        texts = [
            f"{kind.removeprefix('rmse_')} {_numbers(rmse[name])}"
            for kind, rmse in self.references.items()
        ]
        return f" ({', '.join(texts)})" if texts else ""


def _numbers(by_lead: dict[int, float]) -> str:
    return "/".join(f"{value:.4g}" for value in by_lead.values())


class Validation:
    """A fixed set of rollouts from the validation period, held in the CPU's memory."""

    def __init__(
        self,
        data: TrainingSet,
        statistics: Statistics,
        model: WeatherMixer,
        weights: LossWeights,
        train: TrainSection,
    ) -> None:
        """Reads the samples: starts spread evenly over the period, the same on every mesh.

        Args:
            data: The validation period, normalised.
            statistics: Of the training period.
            model: To validate.
            weights: Of the loss.
            train: For the number of starts and the lead times.

        Raises:
            DataError: The period is shorter than a rollout.
        """
        hours = model.config.step_hours
        self._leads = train.validation_leads(hours)
        self._num_steps = max(self._leads) // hours
        num_samples = data.num_samples(self._num_steps)
        if num_samples < 1:
            raise DataError(
                f"the validation period is shorter than {max(self._leads)} h and one step"
            )
        mesh = model.mesh
        num_inits = min(train.num_validation_inits, num_samples)
        starts = np.unique(np.linspace(0, num_samples - 1, num_inits).astype(np.int64))
        own = starts[mesh.data.index :: mesh.data.size]
        self._batch: Batch | None = data.batch(own, self._num_steps) if own.size else None
        self._times = data.valid_times(own, self._num_steps)
        self._model = model
        self._weights = weights
        pieces, grid = model.pieces, model.config.grid_object
        rows = torch.from_numpy(row_weights(grid)[pieces.rows] / grid.num_model_lat)
        self._rows = rows.to(mesh.device)
        self._std = torch.from_numpy(statistics.std[pieces.fields]).to(mesh.device)
        self._references: dict[str, Rmse] = {}

    def make_references(self, data: TrainingSet, *, in_memory: bool) -> None:
        """The errors of persistence and of climatology over the same starts, once.

        The climatology is that of `verify.climatology`, by hour and day of the year, where the
        training period is in memory, its sums fit `MAX_CLIMATOLOGY_BYTES` and its days cover those
        needed; else the mean over the training period at each grid point.

        Args:
            data: The training period, normalised.
            in_memory: Whether reading it costs nothing.

        Communication:
            A few all-reduces of a few numbers.
        """
        persistence, climatology = self._no_errors(), self._no_errors()
        model = self._model
        names = list(model.config.fields[model.pieces.fields])
        held = [place for place, name in enumerate(names) if name in HEADLINE_FIELDS]
        maps = self._climatology(data, held) if in_memory else None
        if self._batch is not None:
            states = self._batch.states.to(model.mesh.device)
            for step, lead in self._lead_steps():
                truth = states[:, step]
                self._add(persistence, lead, states[:, 0] - truth)
                expected = torch.zeros_like(truth)  # anomalies: zero is the mean
                if maps is not None:
                    values = torch.from_numpy(maps.at(self._times[:, step]))
                    expected[:, held] = values.to(truth)
                self._add(climatology, lead, expected - truth)
        self._references = {
            "rmse_persistence": self._rmse(persistence),
            "rmse_climatology": self._rmse(climatology),
        }

    @torch.no_grad()
    def score(self) -> ValidationScores:
        """Runs the model from every start.

        Communication:
            The model's own, and three all-reduces of a few numbers.
        """
        model, mesh = self._model, self._model.mesh
        errors = self._no_errors()
        loss = torch.zeros(2, dtype=torch.float64, device=mesh.device)
        if self._batch is not None:
            dtype = next(model.parameters()).dtype
            batch = in_precision(self._batch.to(mesh.device), dtype)
            first = Batch(batch.states[:, :2], batch.diagnostics[:, :1], batch.forcings[:, :1])
            count = first.states.shape[0]
            loss[0] = rollout_loss(model, first, self._weights).double() * count
            loss[1] = count / mesh.model.size
            self._roll_out(batch, errors)
        all_reduce_sum(loss, (mesh.domain, mesh.tensor, mesh.data))
        return ValidationScores(float(loss[0] / loss[1]), self._rmse(errors), self._references)

    def _roll_out(self, batch: Batch, errors: SquaredErrors) -> None:
        """Adds the errors of all starts at once."""
        state = batch.states[:, 0]
        steps = dict(self._lead_steps())
        for step in range(1, self._num_steps + 1):
            state, _ = self._model(state, batch.forcings[:, step - 1])
            if step in steps:
                self._add(errors, steps[step], state - batch.states[:, step])

    def _lead_steps(self) -> list[tuple[int, int]]:
        """Rollout step and lead time in hours of all lead times."""
        return [(lead // self._model.config.step_hours, lead) for lead in self._leads]

    def _no_errors(self) -> SquaredErrors:
        return SquaredErrors.empty(len(self._leads), len(self._model.config.fields))

    def _add(self, errors: SquaredErrors, lead: int, difference: torch.Tensor) -> None:
        """Adds normalised differences, [B, F_j, Y_i, X]."""
        physical = difference * self._std[:, None, None]
        mean_squares = spatial_mean_square(physical, self._rows)
        errors.add(self._leads.index(lead), mean_squares, self._model.pieces.fields)

    def _rmse(self, errors: SquaredErrors) -> Rmse:
        """By headline field and lead time, over all ranks."""
        config, mesh = self._model.config, self._model.mesh
        errors.reduce((mesh.domain, mesh.tensor), mesh.data, mesh.device)
        rmse = errors.rmse()
        return {
            name: {
                lead: float(rmse[place, config.fields.index(name)])
                for place, lead in enumerate(self._leads)
            }
            for name in HEADLINE_FIELDS
            if name in config.fields
        }

    def _climatology(self, data: TrainingSet, held: list[int]) -> Climatology | None:
        """By hour and day of the year of the local headline fields, None where there is none.

        Communication:
            One all-reduce of a number over data: replicas need other days, and decide alike.
        """
        config = self._model.config
        grid = config.grid_object
        num_fields = sum(name in config.fields for name in HEADLINE_FIELDS)
        num_bytes = 8 * len(HOURS) * 366 * num_fields * grid.num_model_lat * grid.num_lon
        if num_bytes > MAX_CLIMATOLOGY_BYTES:
            return None
        rows = self._model.pieces.rows
        builder = ClimatologyBuilder((len(held), rows.stop - rows.start, grid.num_lon), HOURS)
        num_times = data.num_samples(0)
        for start in range(0, num_times, _TIMES_PER_READ):
            places = np.arange(start, min(start + _TIMES_PER_READ, num_times))
            values = data.batch(places, 0).states[:, 0, held].numpy()
            builder.add(data.valid_times(places, 0)[:, 0], values)
        found = builder.finish()
        leads = [step for step, _ in self._lead_steps()]
        is_whole = all(np.isfinite(found.at(self._times[:, step])).all() for step in leads)
        mesh = self._model.mesh
        lacking = torch.tensor(float(not is_whole), device=mesh.device)
        all_reduce_sum(lacking, (mesh.domain, mesh.tensor, mesh.data))
        return found if not lacking.item() else None
