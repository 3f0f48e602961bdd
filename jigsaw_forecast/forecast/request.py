"""What `run` and `check` are asked for, and what the command line gives where it says nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jigsaw_forecast.fields import Field, parse_fields
from jigsaw_forecast.model.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class ForecastRequest:
    """The forecasts that are wanted; the names are those of the options.

    Attributes:
        checkpoint: Name or folder.
        init_times: UTC.
        lead_time: How far.
        input: The text of `--input`, None for the checkpoint's own.
        outputs: Paths or templates, `.scores` among them where a truth is given.
        variables: What is written, None for all.
        output_frequency: What is written, None for each step.
        write_initial_state: Whether lead time 0 is written.
        mesh: Degrees of the axes; 1 where one is left out.
        device: `auto`, `cpu` or `cuda`.
        precision: `float32` or `bfloat16`.
        weights: `resident` or `streamed`.
        regrid: Whether the input is regridded.
        grib_keys: Of GRIB products.
        num_members: Ensemble members; 0 where the run is no ensemble.
        truth: What the forecasts are scored against while they are made, None for no scores.
        climatology: For the scores.
        allow_missing: Whether the truth may lack valid times.
        overwrite: Whether products are replaced.
        resume: Whether a run is continued.
        report: File for times, memory and traffic.
        plot: File for maps of the first product that holds any.
    """

    checkpoint: str
    init_times: tuple[np.datetime64, ...]
    lead_time: np.timedelta64
    input: str | None = None
    outputs: tuple[str, ...] = ()
    variables: str | None = None
    output_frequency: np.timedelta64 | None = None
    write_initial_state: bool = False
    mesh: Mapping[str, int] = field(default_factory=dict)
    device: str = "auto"
    precision: str = "float32"
    weights: str = "resident"
    regrid: bool = False
    grib_keys: Mapping[str, str] = field(default_factory=dict)
    num_members: int = 0
    truth: Path | None = None
    climatology: Path | None = None
    allow_missing: bool = False
    overwrite: bool = False
    resume: bool = False
    report: Path | None = None
    plot: Path | None = None

    @property
    def members(self) -> tuple[int, ...]:
        """Numbers of the ensemble members; none where the run is no ensemble."""
        return tuple(range(self.num_members))

    @property
    def degrees(self) -> dict[str, int]:
        """Degree of every axis."""
        return {axis: self.mesh.get(axis, 1) for axis in ("data", "domain", "tensor")}

    @property
    def num_ranks(self) -> int:
        """Ranks of the mesh."""
        return int(np.prod(list(self.degrees.values())))

    def fields(self, config: ModelConfig) -> tuple[Field, ...]:
        """What is written of a model's fields.

        Raises:
            ForecastError: The model has no such variables.
        """
        available = (*config.prognostic_fields, *config.diagnostic_fields)
        return available if self.variables is None else parse_fields(self.variables, available)


@dataclass(frozen=True, kw_only=True)
class RunRequest(ForecastRequest):
    """What a run is asked for beyond its forecasts.

    Attributes:
        deadline_s: Seconds after which the run stops; None for no limit.
        stops_implausible: Whether a field outside of its plausible range ends the run.
        command: The command line, for the records.
    """

    deadline_s: float | None = None
    stops_implausible: bool = False
    command: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CheckRequest(ForecastRequest):
    """What a check is asked for beyond the forecasts.

    Attributes:
        device_kind: For memory and time: a kind of `plan`; empty for this machine.
        with_values: Whether the input's values are read.
        with_digests: Whether the checkpoint's files are compared with their digests.
    """

    device_kind: str = ""
    with_values: bool = True
    with_digests: bool = True
