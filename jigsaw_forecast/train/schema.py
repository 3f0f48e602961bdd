"""What a training recipe holds: sections `data`, `model` and `train`."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, field_validator, model_validator
from pydantic import Field as Setting

from jigsaw_forecast.data.forcings import FORCINGS
from jigsaw_forecast.data.weather_store import Period
from jigsaw_forecast.errors import RecipeError
from jigsaw_forecast.fields import Role
from jigsaw_forecast.model.config import ModelConfig
from jigsaw_forecast.train.weighting import LossWeighting

Count = Annotated[int, Setting(ge=1)]
NotNegative = Annotated[float, Setting(ge=0)]
Fraction = Annotated[float, Setting(ge=0, lt=1)]
LEAD_HOURS = (
    6,
    24,
    72,
    120,
)  # of a validation; those that are no multiples of the step are left out


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSection(_Section):
    """Where the weather is and which years are for what."""

    path: Path  # training set of `data convert` or WeatherBench-layout zarr store
    train: str  # START/END, both included: 1979/2019 ends with 2019-12-31
    validation: str  # START/END, both included, apart from `train`
    in_memory: bool = True  # whole piece as float32; else read ahead
    allow_gaps: bool = False  # train on the whole sequences between missing times; else refused
    read_threads: Count | None = None  # of one rank; default: its share of the cores, at most 8
    prefetch_batches: Count = 2  # read ahead; each takes the memory of a batch
    statistics: Path | None = None  # file of `data statistics`; default: made at the start
    statistics_times: Count | None = None  # evenly spread over data.train; default: all

    @field_validator("train", "validation")
    @classmethod
    def _is_period(cls, text: str) -> str:
        Period.parse(text)
        return text

    @model_validator(mode="after")
    def _are_apart(self) -> "DataSection":
        train, validation = Period.parse(self.train), Period.parse(self.validation)
        if train.start <= validation.end and validation.start <= train.end:
            raise ValueError(
                f"data.train {self.train} and data.validation {self.validation} overlap"
            )
        return self


class Phase(_Section):
    """A stretch of training with rollouts of one length and one warm-up and cosine.

    Phases with ever longer rollouts are the curriculum.
    """

    rollout_steps: Count  # model steps from each start
    num_steps: Count  # train steps
    learning_rate: Annotated[float, Setting(gt=0)]  # peak
    final_learning_rate: NotNegative = 0.0  # where the cosine ends; equal to the peak: constant
    global_batch_size: Count | None = None  # samples a train step; default train.global_batch_size
    warmup_steps: Annotated[int, Setting(ge=0)] | None = None  # default train.warmup_steps
    micro_batches: Count | None = None  # default train.micro_batches


class TrainSection(_Section):
    """Optimizer, loss, schedule and reporting."""

    global_batch_size: Count  # samples a train step over all data replicas
    # of the products; auto: what is faster here; weights and moments are float32, but float64 with
    # float64, which is for comparisons
    precision: Literal["auto", "float32", "bfloat16", "float64"]
    warmup_steps: Annotated[int, Setting(ge=0)]  # train steps from 0 to the peak learning rate
    log_every: Count  # train steps
    validate_every: Count = 1000  # train steps
    checkpoint_every: Count = 2000  # train steps
    keep_checkpoints: Count = 2  # the last so many; older ones are deleted
    keep_best: bool = True  # and that with the lowest validation error
    num_validation_inits: Count = 16  # starts, spread over data.validation
    validation_hours: Annotated[tuple[Count, ...], Setting(min_length=1)] = LEAD_HOURS
    weight_decay: NotNegative = 0.05  # of matrices and embed.position, times the rate
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    clip_norm: Annotated[float, Setting(gt=0)] = 1.0  # largest global gradient norm
    ema_decay: Fraction = 0.999  # of the averaged weights that are saved; 0 saves the raw ones
    diagnostic_weight: NotNegative = 0.05  # of the diagnostics' loss against the state's
    field_weights: dict[str, NotNegative] = {}  # by short name (z500) or variable; default 1
    level_weights: dict[str, NotNegative] = {}  # by level in hPa, { "500" = 2.0 }; default 1
    pressure_weights: bool = False  # a level counts by its pressure, mean 1 over the levels, too
    input_noise: NotNegative = 0.0  # deviation of noise on initial states, in tendency deviations
    micro_batches: Count = 1  # backward passes that share a train step's batch
    on_non_finite: Literal["stop", "skip"] = "stop"  # where loss or gradient norm is no number
    max_skipped: Count = 10  # train steps in a row that are skipped before the run stops
    tensorboard: bool = False  # also write OUTPUT/tensorboard; needs the extra of this name
    recompute_activations: bool = False  # of each model step in backward: less memory, 4/3 the work
    recompute_hidden: bool = False  # of each mixing in backward: less memory, 7/6 the work
    num_chunks: Count | None = None  # activations travel in so many; default: 128 and longer, <= 8
    phases: Annotated[tuple[Phase, ...], Setting(min_length=1)]

    @property
    def num_steps(self) -> int:
        """Train steps of all phases."""
        return sum(phase.num_steps for phase in self.phases)

    def batch_size(self, phase: Phase) -> int:
        """Global batch size of a phase."""
        return phase.global_batch_size or self.global_batch_size

    def loss_weighting(self) -> LossWeighting:
        """What the loss weighs by, besides area."""
        return LossWeighting(
            fields=self.field_weights,
            levels=self.level_weights,
            by_pressure=self.pressure_weights,
            diagnostics=self.diagnostic_weight,
        )

    def micro_batches_of(self, phase: Phase) -> int:
        """Backward passes of a train step of a phase."""
        return phase.micro_batches or self.micro_batches

    def validation_leads(self, step_hours: int) -> list[int]:
        """Lead times of a validation in hours, ascending: multiples of the model's step."""
        return sorted({lead for lead in self.validation_hours if lead % step_hours == 0})

    def warmup(self, phase: Phase) -> int:
        """Warm-up steps of a phase."""
        return self.warmup_steps if phase.warmup_steps is None else phase.warmup_steps


class TrainRecipe(_Section):
    """A complete training run."""

    seed: Annotated[int, Setting(ge=0)]  # of weights and sample order
    data: DataSection
    model: ModelConfig
    train: TrainSection

    @model_validator(mode="after")
    def _agrees(self) -> "TrainRecipe":
        problems = self._model_problems()
        known = set(self.model.fields) | {f.variable for f in self.model.prognostic_fields}
        unknown = [name for name in self.train.field_weights if name not in known]
        if unknown:
            problems.append(
                f"train.field_weights names no field or variable of the model: "
                f"{', '.join(unknown)}; fields are {', '.join(self.model.fields)}"
            )
        levels = sorted({field.level_hpa for field in self.model.prognostic_fields} - {0})
        unknown = [name for name in self.train.level_weights if name not in map(str, levels)]
        if unknown:
            problems.append(
                f"train.level_weights names no level of the model: {', '.join(unknown)}; levels "
                f"are {', '.join(map(str, levels))} hPa"
            )
        if not self.train.validation_leads(self.model.step_hours):
            hours = ", ".join(map(str, self.train.validation_hours))
            problems.append(
                f"train.validation_hours {hours}: none is a multiple of the "
                f"model's step of {self.model.step_hours} h"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _model_problems(self) -> list[str]:
        """What a model cannot be trained with, though each key for itself may be right."""
        model = self.model
        problems = []
        try:
            model.check()
        except RecipeError as error:
            problems.append(str(error))
        unknown = [name for name in model.forcings if name not in FORCINGS]
        if unknown:
            problems.append(
                f"model.forcings: no such forcings: {', '.join(unknown)}; known here: "
                f"{', '.join(FORCINGS)}"
            )
        names = (*model.fields, *model.diagnostics)
        if doubled := [name for name, count in Counter(names).items() if count > 1]:
            problems.append(
                f"model.fields and model.diagnostics name more than once: {', '.join(doubled)}"
            )
        misplaced = {
            field.short_name: field.spec.role
            for field in model.prognostic_fields
            if field.spec.role is not Role.PROGNOSTIC
        }
        if misplaced:
            roles = ", ".join(f"{name} ({role.value})" for name, role in misplaced.items())
            problems.append(
                f"model.fields: no state to start from: {roles}; name a diagnostic field in "
                "model.diagnostics, a static one in model.forcings"
            )
        return problems
