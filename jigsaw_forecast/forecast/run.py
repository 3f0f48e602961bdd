"""The operational run: checkpoint and initial conditions in, forecast products out."""

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import torch

from jigsaw_forecast import __version__
from jigsaw_forecast.checkpoint.format import find_checkpoint, read_manifest
from jigsaw_forecast.checkpoint.load import LoadedModel, load_checkpoint
from jigsaw_forecast.data.source import (
    InitialStatePlan,
    Source,
    open_source,
    plan_initial_state,
)
from jigsaw_forecast.errors import DataError, ForecastError, OutputError, StoppedError
from jigsaw_forecast.fields import Field, parse_fields
from jigsaw_forecast.forecast.exchange import fields_to_read, held_fields, maps_to_bands
from jigsaw_forecast.forecast.output import (
    OutputSpec,
    Product,
    check_keys,
    describe_unwritable,
    resolve_outputs,
)
from jigsaw_forecast.forecast.report import RunMeter
from jigsaw_forecast.forecast.rollout import make_forcings, one_step, rollout
from jigsaw_forecast.forecast.writing import Products
from jigsaw_forecast.log import Progress
from jigsaw_forecast.model.config import ModelConfig
from jigsaw_forecast.model.weather_mixer import sample_pieces
from jigsaw_forecast.parallel.collectives import together
from jigsaw_forecast.parallel.mesh import Mesh, choose_device, close_mesh, make_mesh
from jigsaw_forecast.parallel.watch import note
from jigsaw_forecast.plan.memory import BASE_BYTES, check_memory
from jigsaw_forecast.plan.meshes import Workload
from jigsaw_forecast.state import State

_log = logging.getLogger(__name__)
DEFAULT_INPUT = "initial.zarr"
REMOTE_SOURCES = ("open-data:", "mars:", "cds:")


@dataclass(frozen=True)
class RunRequest:
    """What `jigsaw-forecast run` was asked for; see its `--help`."""

    init_times: tuple[np.datetime64, ...]
    lead_time: np.timedelta64
    checkpoint: str
    input: str | None
    outputs: tuple[str, ...]
    variables: str | None
    output_frequency: np.timedelta64 | None
    write_initial_state: bool
    mesh: dict[str, int]
    device: str
    precision: str
    weights: str
    regrid: bool
    grib_keys: dict[str, str]
    overwrite: bool
    report: Path | None
    plot: Path | None


@dataclass(frozen=True)
class _Schedule:
    """Which steps are made and which of them are written."""

    num_steps: int
    lead_times: tuple[np.timedelta64, ...]


def run_forecast(request: RunRequest) -> None:
    """Makes the forecasts of a request, one initial time after the other.

    Raises:
        ForecastError: Anything wrong with the request, the input or the output; the same on
            every rank, and nothing is left under a final output name.

    Communication:
        The ranks agree after each stage, so that all stop together.
    """
    folder = find_checkpoint(request.checkpoint)
    config = read_manifest(folder).architecture
    config.check_mesh(request.mesh.get("domain", 1), request.mesh.get("tensor", 1))
    plan = {"request": repr(request), "checkpoint": read_manifest(folder).digest}
    mesh = make_mesh(request.mesh, choose_device(request.device), plan)
    try:
        _run(request, folder, config, mesh)
    finally:
        close_mesh()


def _run(request: RunRequest, folder: Path, config: ModelConfig, mesh: Mesh) -> None:
    meter = RunMeter(mesh)
    schedule = _make_schedule(request, config)
    fields = _output_fields(request, config)
    products = together(
        mesh,
        lambda: resolve_outputs(
            request.outputs,
            request.init_times,
            schedule.lead_times,
            overwrite=request.overwrite,
            fields=fields,
        ),
    )
    together(mesh, lambda: _check_side_files(request))
    with meter.phase("read"):
        source, plans = together(mesh, lambda: _plan_inputs(request, folder, config))
    with meter.phase("load"):
        together(mesh, lambda: _check_memory(request, config, mesh))
        dtype = getattr(torch, request.precision)
        loaded = load_checkpoint(folder, mesh, dtype)
        if request.weights == "resident":
            loaded.model.make_resident()
    meter.ranks.parameter_bytes = sum(
        parameter.numel() * parameter.element_size() for parameter in loaded.model.parameters()
    )
    meter.ranks.checkpoint_bytes_read = loaded.num_bytes_read
    _log.info(
        "%s: %s parameters, grid %s, mesh %s, %s on %s",
        loaded.manifest.name,
        f"{loaded.manifest.num_parameters:,}",
        config.grid,
        ",".join(f"{name}={degree}" for name, degree in mesh.degrees.items()),
        request.precision,
        mesh.device.type,
    )
    spec = OutputSpec(
        fields=fields,
        grid=config.grid_object,
        init_times=request.init_times,
        lead_times=schedule.lead_times,
        attributes=_attributes(request, loaded),
        grib_keys=request.grib_keys,
    )
    together(mesh, lambda: check_keys(products, spec))
    with Products(mesh, products, spec, overwrite=request.overwrite) as written:
        total = schedule.num_steps * len(request.init_times)
        with Progress("forecast", total) as progress:
            for init_time in request.init_times:
                with meter.phase("read"):
                    initial = _read_initial_state(config, mesh, plans[init_time], init_time)
                _forecast(loaded, initial, schedule, written, meter, progress)
    meter.ranks.input_bytes_read = source.bytes_read
    meter.ranks.output_bytes_written = written.num_bytes_written
    if request.plot is not None:
        together(mesh, lambda: _draw(request, products[0], loaded) if mesh.rank == 0 else None)
    if request.report is not None:
        header = {
            "command": "run",
            "init": [str(time.astype("datetime64[s]")) for time in request.init_times],
            "num_rollout_steps": schedule.num_steps,
            "mesh": mesh.degrees,
            "precision": request.precision,
            "parameters": loaded.manifest.num_parameters,
        }
        meter.write(request.report, header)


def _forecast(
    loaded: LoadedModel,
    initial: State,
    schedule: _Schedule,
    products: Products,
    meter: RunMeter,
    progress: Progress,
) -> None:
    """Rolls one initial state out and writes each lead time as it comes."""
    config, mesh = loaded.manifest.architecture, loaded.model.mesh
    if np.timedelta64(0, "s") in schedule.lead_times:
        with meter.phase("write"):
            products.write(config, initial)
    states = rollout(loaded, make_forcings(loaded), initial, schedule.num_steps)
    for step in range(1, schedule.num_steps + 1):
        note(f"the step to lead time {step * config.step_hours} h")
        with meter.step():
            state = next(states)
        together(mesh, partial(_check_finite, state))
        if state.lead_time in schedule.lead_times:
            with meter.phase("write"):
                products.write(config, state)
        progress.advance(note=f"lead time {state.lead_hours} h")


def _check_finite(state: State) -> None:
    """Stops a rollout that has left the real numbers: what follows could only be worse.

    Raises:
        StoppedError: Names the fields and the lead time.
    """
    is_finite = state.data.isfinite().flatten(1).all(1).tolist()
    lost = [str(field) for field, good in zip(state.fields, is_finite, strict=True) if not good]
    if lost:
        raise StoppedError(
            f"the forecast from {state.init_time} is not finite at lead time {state.lead_hours} h: "
            f"{', '.join(lost)}; the model or its input is not sound"
        )


def _plan_inputs(
    request: RunRequest, folder: Path, config: ModelConfig
) -> tuple[Source, dict[np.datetime64, InitialStatePlan]]:
    """The opened input and a checked plan for every initial time; reads headers only."""
    if request.input is not None and request.input.startswith(REMOTE_SOURCES):
        raise DataError(
            f"--input {request.input}: remote sources are not supported; download the file and "
            "give its path"
        )
    path = Path(request.input) if request.input is not None else folder / DEFAULT_INPUT
    if request.input is None and not path.exists():
        raise DataError(
            f"checkpoint {folder} has no initial conditions of its own: missing --input"
        )
    source = open_source(path)
    manifest = read_manifest(folder)
    plausible = {field: manifest.plausible[field.short_name] for field in config.prognostic_fields}
    return source, {
        init_time: plan_initial_state(
            source,
            config.prognostic_fields,
            config.grid_object,
            init_time,
            regrid=request.regrid,
            plausible=plausible,
        )
        for init_time in request.init_times
    }


def _read_initial_state(
    config: ModelConfig, mesh: Mesh, plan: InitialStatePlan, init_time: np.datetime64
) -> State:
    """This rank's piece of the initial state; each field is decoded by one rank of its group."""
    grid, pieces = config.grid_object, sample_pieces(config, mesh)
    maps = together(mesh, lambda: plan.read(fields_to_read(config, mesh)))
    rows = torch.from_numpy(maps)[:, : grid.num_model_lat].to(mesh.device)
    band = maps_to_bands(config, mesh, rows)
    fields = held_fields(config, pieces)
    rain = band.new_full((len(fields) - band.shape[0], *band.shape[1:]), float("nan"))
    return State(
        torch.cat([band, rain]),
        fields,
        grid,
        init_time,
        np.timedelta64(0, "s"),
        row_start=pieces.rows.start,
    )


def _check_memory(request: RunRequest, config: ModelConfig, mesh: Mesh) -> None:
    """Refuses a run that would not fit into memory."""

    def workload(is_streamed: bool) -> Workload:
        return Workload(
            config=config,
            mode="inference",
            dtype=request.precision,
            is_streamed=is_streamed,
            make_step=lambda _: one_step,
            base_bytes=BASE_BYTES if mesh.device.type == "cpu" else 0,
        )

    check_memory(mesh, config, workload, is_streamed=request.weights == "streamed")


def _check_side_files(request: RunRequest) -> None:
    """Refuses a report or picture that could not be written after the forecast.

    Raises:
        OutputError: Names each.
    """
    problems = []
    for option, path in (("--report", request.report), ("--plot", request.plot)):
        if path is not None and (reason := describe_unwritable(path.parent)) is not None:
            problems.append(f"{option} {path}: {reason}")
    if problems:
        raise OutputError("\n".join(problems))


def _make_schedule(request: RunRequest, config: ModelConfig) -> _Schedule:
    step = np.timedelta64(config.step_hours, "h")
    frequency = request.output_frequency or step
    problems = [
        f"{name} {span.astype('timedelta64[h]')} is not a positive multiple of the model's step "
        f"of {config.step_hours} hours"
        for name, span in (("--lead-time", request.lead_time), ("--output-frequency", frequency))
        if span <= np.timedelta64(0, "h") or span % step
    ]
    if problems:
        raise ForecastError("\n".join(problems))
    if request.lead_time % frequency:
        raise ForecastError(
            f"--output-frequency {frequency.astype('timedelta64[h]')} does not divide --lead-time "
            f"{request.lead_time.astype('timedelta64[h]')}: the last steps would be lost"
        )
    num_steps = int(request.lead_time / step)
    stride = int(frequency / step)
    steps = range(stride, num_steps + 1, stride)
    leads = [index * step for index in steps]
    if request.write_initial_state:
        leads.insert(0, 0 * step)
    return _Schedule(num_steps, tuple(lead.astype("timedelta64[s]") for lead in leads))


def _output_fields(request: RunRequest, config: ModelConfig) -> tuple[Field, ...]:
    available = (*config.prognostic_fields, *config.diagnostic_fields)
    return available if request.variables is None else parse_fields(request.variables, available)


def _draw(request: RunRequest, product: Product, loaded: LoadedModel) -> None:
    # matplotlib takes a second to import and most runs draw nothing
    from jigsaw_forecast.plot.forecast_maps import plot_forecast

    assert request.plot is not None
    plot_forecast(product.path, request.plot, notice=loaded.manifest.notice or None)
    _log.info("drew %s", request.plot)


def _attributes(request: RunRequest, loaded: LoadedModel) -> dict[str, str]:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    manifest = loaded.manifest
    digests = sorted(shard.sha256[:12] for shard in manifest.shards.values())
    attributes = {
        "title": f"Forecast by {manifest.name}",
        "source": f"WeatherMixer checkpoint {manifest.name} (sha256 {', '.join(digests)})",
        "history": f"{now} jigsaw-forecast {__version__} run",
        "input": request.input or f"{manifest.name}/{DEFAULT_INPUT}",
    }
    if manifest.notice:
        attributes["notice"] = manifest.notice
    return attributes
