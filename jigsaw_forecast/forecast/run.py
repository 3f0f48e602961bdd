"""The operational run: checkpoint and initial conditions in, forecast products out."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from jigsaw_forecast import __version__
from jigsaw_forecast.checkpoint.format import find_checkpoint, read_manifest
from jigsaw_forecast.checkpoint.load import LoadedModel, load_checkpoint
from jigsaw_forecast.data.source import InitialStatePlan, open_source, plan_initial_state
from jigsaw_forecast.errors import DataError, ForecastError, MeshError
from jigsaw_forecast.fields import Field, parse_fields
from jigsaw_forecast.forecast.exchange import (
    assign_units,
    bands_to_maps,
    fields_to_read,
    held_fields,
    maps_to_bands,
)
from jigsaw_forecast.forecast.output import (
    OutputSpec,
    Product,
    Writer,
    open_writer,
    resolve_outputs,
)
from jigsaw_forecast.forecast.report import RunMeter
from jigsaw_forecast.forecast.rollout import make_forcings, rollout
from jigsaw_forecast.log import Progress
from jigsaw_forecast.model.config import ModelConfig
from jigsaw_forecast.model.weather_mixer import sample_pieces
from jigsaw_forecast.parallel.collectives import gather_texts
from jigsaw_forecast.parallel.mesh import Mesh, close_mesh, make_mesh
from jigsaw_forecast.state import State

_log = logging.getLogger(__name__)
DEFAULT_INPUT = "initial.zarr"
REMOTE_SOURCES = ("open-data:", "mars:", "cds:")
Result = TypeVar("Result")


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
    if request.mesh.get("data", 1) > 1:
        raise MeshError(
            f"data={request.mesh['data']}: a run is cut over domain and tensor only; "
            "start one run for each initial time"
        )
    mesh = make_mesh(request.mesh, _device(request.device))
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
        ),
    )
    with meter.phase("read"):
        plans = together(mesh, lambda: _plan_inputs(request, folder, config))
    with meter.phase("load"):
        dtype = getattr(torch, request.precision)
        loaded = together(mesh, lambda: load_checkpoint(folder, mesh, dtype))
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
    with _open_products(mesh, products, spec, request.overwrite) as writers:
        total = schedule.num_steps * len(request.init_times)
        with Progress("forecast", total) as progress:
            for init_time in request.init_times:
                with meter.phase("read"):
                    initial = _read_initial_state(config, mesh, plans[init_time], init_time)
                _forecast(loaded, initial, schedule, writers, meter, progress)
        with meter.phase("write"):
            _finish(mesh, writers)
    meter.ranks.input_bytes_read = sum(plan.bytes_read for plan in plans.values())
    meter.ranks.output_bytes_written = sum(writer.bytes_written for writer in writers)
    for product in products:
        _log.info("wrote %s", product.path)
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
    writers: Sequence[Writer],
    meter: RunMeter,
    progress: Progress,
) -> None:
    """Rolls one initial state out and writes each lead time as it comes."""
    if np.timedelta64(0, "s") in schedule.lead_times:
        with meter.phase("write"):
            _write(loaded, initial, writers)
    states = rollout(loaded, make_forcings(loaded), initial, schedule.num_steps)
    for _ in range(schedule.num_steps):
        with meter.step():
            state = next(states)
        if state.lead_time in schedule.lead_times:
            with meter.phase("write"):
                _write(loaded, state, writers)
        progress.advance(note=f"lead time {state.lead_hours} h")


def _write(loaded: LoadedModel, state: State, writers: Sequence[Writer]) -> None:
    """Turns bands into whole maps, lets each rank write its own, and marks the time as done."""
    mesh, config = loaded.model.mesh, loaded.manifest.architecture
    for writer in writers:
        key = (state.init_time, state.lead_time)
        if key not in {
            (init.astype("datetime64[s]"), lead.astype("timedelta64[s]"))
            for init in writer.spec.init_times
            for lead in writer.spec.lead_times
        }:
            continue
        owners = assign_units(writer.units(), mesh.model.size)
        maps = bands_to_maps(config, mesh, state, owners)

        def write_own(writer: Writer = writer, maps: State = maps) -> None:
            if maps.fields:
                writer.write(maps)

        def mark_done(writer: Writer = writer) -> None:
            if writer.is_creator:
                writer.mark_done(state.init_time, state.lead_time)

        together(mesh, write_own)
        together(mesh, mark_done)


def _finish(mesh: Mesh, writers: Sequence[Writer]) -> None:
    """Closes every product on all ranks, then gives each its name on the rank that made it."""

    def finish_as(is_creator: bool) -> None:
        for writer in writers:
            if writer.is_creator == is_creator:
                writer.finish()

    together(mesh, lambda: finish_as(False))
    together(mesh, lambda: finish_as(True))


def together(mesh: Mesh, action: Callable[[], Result]) -> Result:
    """Runs an action on every rank; where it fails on any, all raise the same error.

    Raises:
        ForecastError: The first failing rank's kind of error, with every different message.

    Communication:
        One gather of texts over all ranks.
    """
    failure: ForecastError | None = None
    result: Result | None = None
    try:
        result = action()
    except ForecastError as error:
        failure = error
    texts = [text for text in gather_texts(mesh, str(failure) if failure else "") if text]
    if texts:
        kind = type(failure) if failure else ForecastError
        raise kind("\n".join(dict.fromkeys(texts))) from failure
    return result  # type: ignore[return-value]  # no failure: the action returned


@contextmanager
def _open_products(
    mesh: Mesh, products: Sequence[Product], spec: OutputSpec, overwrite: bool
) -> Iterator[list[Writer]]:
    """The writers of all products; the creator's first, and aborted where the run fails."""
    writers: list[Writer] = []

    def open_all(is_creator: bool) -> None:
        for product in products:
            writers.append(
                open_writer(
                    product.path,
                    spec.narrowed(product),
                    overwrite=overwrite,
                    is_creator=is_creator,
                )
            )

    try:
        together(mesh, lambda: open_all(True) if mesh.rank == 0 else None)
        together(mesh, lambda: open_all(False) if mesh.rank != 0 else None)
        yield writers
    except BaseException:
        for writer in writers:
            writer.abort()
        raise


def _plan_inputs(
    request: RunRequest, folder: Path, config: ModelConfig
) -> dict[np.datetime64, InitialStatePlan]:
    """A checked plan for every initial time; reads headers only."""
    if request.input is not None and request.input.startswith(REMOTE_SOURCES):
        raise DataError(
            f"--input {request.input}: remote sources are not supported; download the file and "
            "give its path"
        )
    path = Path(request.input) if request.input is not None else folder / DEFAULT_INPUT
    source = open_source(path)
    manifest = read_manifest(folder)
    plausible = {field: manifest.plausible[field.short_name] for field in config.prognostic_fields}
    return {
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
    num_steps = int(request.lead_time / step)
    stride = int(frequency / step)
    steps = range(stride, num_steps + 1, stride)
    if not steps:
        raise ForecastError("--output-frequency is longer than --lead-time: nothing to write")
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


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ForecastError("--device cuda: no CUDA device is available; use --device cpu")
    return name
