"""What a training recipe holds: sections `data`, `model` and `train`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, field_validator, model_validator
from pydantic import Field as Setting

from jigsaw_forecast.data.weather_store import Period
from jigsaw_forecast.fields import VARIABLES
from jigsaw_forecast.model.config import ModelConfig

Count = Annotated[int, Setting(ge=1)]
NotNegative = Annotated[float, Setting(ge=0)]
Fraction = Annotated[float, Setting(ge=0, lt=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSection(_Section):
    """Where the weather is and which years are for what."""

    path: Path  # WeatherBench-layout zarr store, relative to the working folder
    train: str  # START/END, both included
    validation: str  # START/END, both included, apart from `train`
    in_memory: bool = True  # whole piece as float32; else read ahead by a thread

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
    """A stretch of training with rollouts of one length and one warm-up and cosine."""

    rollout_steps: Count  # model steps from each start
    num_steps: Count  # train steps
    learning_rate: Annotated[float, Setting(gt=0)]  # peak
    global_batch_size: Count | None = None  # samples a train step; default train.global_batch_size
    warmup_steps: Annotated[int, Setting(ge=0)] | None = None  # default train.warmup_steps


class TrainSection(_Section):
    """Optimizer, loss, schedule and reporting."""

    global_batch_size: Count  # samples a train step over all data replicas
    precision: Literal["auto", "float32", "bfloat16"]  # of the products; auto: what is faster here
    warmup_steps: Annotated[int, Setting(ge=0)]  # train steps from 0 to the peak learning rate
    log_every: Count  # train steps
    validate_every: Count = 1000  # train steps
    checkpoint_every: Count = 2000  # train steps
    keep_checkpoints: Count = 2  # older ones are deleted
    num_validation_inits: Count = 16  # starts, spread over data.validation
    weight_decay: NotNegative = 0.05  # of matrices and embed.position, times the rate
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    clip_norm: Annotated[float, Setting(gt=0)] = 1.0  # largest global gradient norm
    ema_decay: Fraction = 0.999  # of the averaged weights that are saved; 0 saves the raw ones
    diagnostic_weight: NotNegative = 0.05  # of the diagnostics' loss against the state's
    field_weights: dict[str, NotNegative] = {}  # by short name (z500) or variable; default 1
    recompute_activations: bool = False  # of each model step in backward: less memory, 4/3 the work
    recompute_hidden: bool = False  # of each mixing in backward: less memory, 7/6 the work
    num_chunks: Count | None = None  # activations travel in so many; default: 512 and longer, <= 8
    phases: Annotated[tuple[Phase, ...], Setting(min_length=1)]

    @property
    def num_steps(self) -> int:
        """Train steps of all phases."""
        return sum(phase.num_steps for phase in self.phases)

    def batch_size(self, phase: Phase) -> int:
        """Global batch size of a phase."""
        return phase.global_batch_size or self.global_batch_size

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
    def _weights_name_fields(self) -> "TrainRecipe":
        known = set(self.model.fields) | set(VARIABLES)
        unknown = [name for name in self.train.field_weights if name not in known]
        if unknown:
            raise ValueError(
                f"train.field_weights names no field or variable of the model: "
                f"{', '.join(unknown)}; fields are {', '.join(self.model.fields)}"
            )
        return self
