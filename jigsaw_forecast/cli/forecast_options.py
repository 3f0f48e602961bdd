"""The options that `run` and `check` share, and how they are turned into a request."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jigsaw_forecast.errors import ForecastError

if TYPE_CHECKING:
    import numpy as np

# The library is imported where a command needs it: torch takes seconds and --help must not wait.

DEFAULT_CHECKPOINT = "nature-run"
DEFAULT_LEAD_TIME = "10d"
DEFAULT_OUTPUT = "forecast-{init:%Y%m%d%H}.zarr"
SCORES_SUFFIX = ".scores"


class Device(StrEnum):
    """Where the model computes."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Precision(StrEnum):
    """In what the model computes."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Weights(StrEnum):
    """Whether gathered weights are kept or gathered again in each step."""

    RESIDENT = "resident"
    STREAMED = "streamed"


Init = Annotated[
    str,
    typer.Option(
        "--init",
        metavar="TIME",
        help="Initial time in UTC: 2026-06-24T00, 2026062400, 20260624, or latest of a remote "
        "source; several as a comma list or START/END/STEP.",
    ),
]
LeadTime = Annotated[
    str, typer.Option("--lead-time", metavar="SPAN", help="How far: 10d, 240h or 240.")
]
Input = Annotated[
    str | None,
    typer.Option(
        "--input",
        metavar="SPEC",
        help="Initial conditions: GRIB 1 or 2, zarr or netCDF, told apart by content; "
        "templates {init:%Y%m%d%H} and {member:03d}; or open-data:, mars:, cds:. Default: "
        "those shipped with the checkpoint.",
    ),
]
Output = Annotated[
    list[str] | None,
    typer.Option(
        "--output",
        metavar="PATH",
        help="Product: .zarr, .grib2, .nc or, with --truth, .scores; may be repeated; templates "
        f"{{init:%Y%m%d%H}}, {{lead:03d}} and {{member:02d}}. Default: {DEFAULT_OUTPUT}",
    ),
]
Variables = Annotated[
    str | None,
    typer.Option("--variables", metavar="LIST", help="Write only these: z500,2t,u,t_850."),
]
OutputFrequency = Annotated[
    str | None,
    typer.Option(
        "--output-frequency", metavar="SPAN", help="Write every 6h, 24h, ... Default: each step."
    ),
]
InitialState = Annotated[
    bool,
    typer.Option("--write-initial-state", help="Write lead time 0 too, as the model sees it."),
]
MeshDegrees = Annotated[
    str,
    typer.Option(
        "--mesh",
        metavar="AXIS=DEGREE,...",
        help="Ranks: domain=2,tensor=2 cut a forecast, data=2 makes two at a time.",
    ),
]
DeviceChoice = Annotated[Device, typer.Option("--device", help="Where to compute.")]
PrecisionChoice = Annotated[Precision, typer.Option("--precision", help="In what to compute.")]
WeightsChoice = Annotated[
    Weights,
    typer.Option("--weights", help="Keep gathered weights, or gather them in each step."),
]
Regrid = Annotated[bool, typer.Option("--regrid", help="Bring the input to the model's grid.")]
Grib = Annotated[
    str,
    typer.Option(
        "--grib",
        metavar="KEY=VALUE,...",
        help="Keys of GRIB2 products: centre=ecmf,class=ml,expver=0001,packing=ccsds,bits=16.",
    ),
]
Members = Annotated[
    int,
    typer.Option(
        "--members",
        metavar="N",
        min=0,
        help="Forecast the members 0 to N-1 of an ensemble of initial conditions.",
    ),
]
Truth = Annotated[
    Path | None,
    typer.Option(
        "--truth",
        metavar="PATH",
        help="Score against these analyses while the forecast is made, into the --output that "
        "ends in .scores; where none does, into NAME.scores beside the first one. With that "
        "output alone no fields are written.",
    ),
]
Climatology = Annotated[
    Path | None,
    typer.Option("--climatology", metavar="PATH", help="With --truth: for ACC and SEEPS."),
]
AllowMissing = Annotated[
    bool,
    typer.Option("--allow-missing", help="With --truth: leave out what the truth lacks."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace products that exist.")]


@dataclass(frozen=True)
class ForecastOptions:
    """The shared options as they were given."""

    init: str
    lead_time: str
    checkpoint: str
    input: str | None
    output: list[str] | None
    variables: str | None
    output_frequency: str | None
    write_initial_state: bool
    mesh: str
    device: Device
    precision: Precision
    weights: Weights
    regrid: bool
    grib: str
    members: int
    truth: Path | None
    climatology: Path | None
    allow_missing: bool
    overwrite: bool

    def parsed(self) -> dict[str, Any]:
        """The fields of a `ForecastRequest` that they ask for.

        `latest` is asked for once everything else is known to be right.

        Raises:
            ForecastError: What is wrong; all of it is listed.
        """
        from jigsaw_forecast.checkpoint.format import find_checkpoint, read_manifest
        from jigsaw_forecast.cli import parse
        from jigsaw_forecast.data.acquisition.latest import needs_latest, resolve_latest

        problems: list[str] = []
        found: dict[str, Any] = {}
        with parse.collected(problems):
            found["lead_time"] = parse.parse_duration(self.lead_time)
        with parse.collected(problems):
            found["output_frequency"] = parse.parse_optional_duration(
                self.output_frequency, "--output-frequency"
            )
        with parse.collected(problems):
            found["mesh"] = parse.parse_mesh(self.mesh)
        with parse.collected(problems):
            found["grib_keys"] = parse.parse_grib_keys(self.grib)
        if not needs_latest(self.init):
            with parse.collected(problems):
                found["init_times"] = parse.parse_init_times(self.init)
        if self.truth is None and (self.climatology is not None or self.allow_missing):
            problems.append("--climatology and --allow-missing are for scores: missing --truth")
        if problems:
            raise ForecastError("\n".join(problems))
        # the manifest is read without torch
        architecture = read_manifest(find_checkpoint(self.checkpoint)).architecture
        if needs_latest(self.init):
            members = tuple(range(self.members))
            found["init_times"] = parse.parse_init_times(
                self.init,
                lambda: resolve_latest(self.input, architecture.prognostic_fields, members),
            )
        return found | {
            "checkpoint": self.checkpoint,
            "input": self.input,
            "outputs": self._outputs(found["init_times"]),
            "variables": self.variables,
            "write_initial_state": self.write_initial_state,
            "device": self.device.value,
            "precision": self.precision.value,
            "weights": self.weights.value,
            "regrid": self.regrid,
            "num_members": self.members,
            "truth": self.truth,
            "climatology": self.climatology,
            "allow_missing": self.allow_missing,
            "overwrite": self.overwrite,
        }

    def _outputs(self, init_times: "tuple[np.datetime64, ...]") -> tuple[str, ...]:
        """Outputs with the default ones: the forecast's, and the scores' beside the first."""
        given = tuple(self.output or (DEFAULT_OUTPUT,))
        first = Path(given[0])
        has_scores = any(text.endswith(SCORES_SUFFIX) for text in given)
        if self.truth is None or has_scores or not first.name:
            return given
        if "{" not in first.name:
            return (*given, str(first.with_suffix(SCORES_SUFFIX)))
        # one folder for all of them: their scores are means over initial times
        ends = dict.fromkeys(_compact(time) for time in (init_times[0], init_times[-1]))
        name = f"forecast-{'-'.join(ends)}{SCORES_SUFFIX}"
        literal = [part for part in first.parent.parts if "{" not in part]
        return (*given, str(Path(*literal, name)))


def _compact(time: "np.datetime64") -> str:
    """`2026062400`."""
    return f"{time.item():%Y%m%d%H}"
