"""The operational run: checkpoint and initial conditions in, forecast products out."""

import logging
import platform
import shlex
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from jigsaw_forecast.checkpoint.format import Manifest, find_checkpoint, read_manifest
from jigsaw_forecast.checkpoint.load import LoadedModel, load_checkpoint
from jigsaw_forecast.data.acquisition import ResolvedInput
from jigsaw_forecast.errors import OutputError, StoppedError
from jigsaw_forecast.fields import Field, parse_fields
from jigsaw_forecast.forecast.grib_keys import spelled_out
from jigsaw_forecast.forecast.inputs import (
    DEFAULT_INPUT,
    find_input,
    plan_inputs,
    plausible_ranges,
)
from jigsaw_forecast.forecast.output import (
    OutputSpec,
    Product,
    check_keys,
    describe_unwritable,
    resolve_outputs,
)
from jigsaw_forecast.forecast.pipeline import OutputPipeline
from jigsaw_forecast.forecast.provenance import (
    Identity,
    RunHistory,
    fingerprint,
    grib_defaults,
    product_attributes,
)
from jigsaw_forecast.forecast.record import now_text, read_record, record_path
from jigsaw_forecast.forecast.report import RunMeter
from jigsaw_forecast.forecast.restart import RestartFolder
from jigsaw_forecast.forecast.resume import (
    describe_rest,
    first_product,
    share_numbers,
    step_to_go_on_from,
    take_up_all,
)
from jigsaw_forecast.forecast.rolling import Checks, Leg, Rolling, Round, roll_and_write
from jigsaw_forecast.forecast.rollout import one_step
from jigsaw_forecast.forecast.schedule import (
    Schedule,
    Start,
    check_data_degree,
    make_rounds,
    make_schedule,
    make_starts,
)
from jigsaw_forecast.forecast.stopping import AgreedStop, Deadline, StopSignal, stop_on_signal
from jigsaw_forecast.forecast.writing import Products, RunProducts
from jigsaw_forecast.model.config import ModelConfig
from jigsaw_forecast.parallel.collectives import gather_texts, together
from jigsaw_forecast.parallel.mesh import Mesh, choose_device, close_mesh, make_mesh
from jigsaw_forecast.parallel.side_channel import SideChannel
from jigsaw_forecast.plan.memory import BASE_BYTES, check_memory
from jigsaw_forecast.plan.meshes import Workload

_log = logging.getLogger(__name__)


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
    num_members: int = 0  # 0: no ensemble
    resume: bool = False
    deadline_s: float | None = None
    stops_implausible: bool = False
    command: tuple[str, ...] = ()

    @property
    def members(self) -> tuple[int, ...]:
        """Numbers of the ensemble members; none where the run is no ensemble."""
        return tuple(range(self.num_members))


@dataclass(frozen=True)
class _Setting:
    """What follows from a request and a checkpoint alone; the same on every rank.

    Attributes:
        folder: Of the checkpoint.
        manifest: Of the checkpoint.
        schedule: What is made and written.
        starts: The forecasts.
        spec: What is written, for all times.
        products: Into what.
        identity: What decides every bit.
    """

    folder: Path
    manifest: Manifest
    schedule: Schedule
    starts: tuple[Start, ...]
    spec: OutputSpec
    products: tuple[Product, ...]
    identity: Identity

    def fingerprint(self, product: Product) -> Mapping[str, str]:
        """What a run must have in common with the one whose product it goes on with."""
        return fingerprint(self.manifest, self.identity, self.spec, product)


def run_forecast(request: RunRequest) -> None:
    """Makes the forecasts of a request: as many at a time as there are model groups.

    Raises:
        ForecastError: Anything wrong with the request, the input or the output; the same on
            every rank, and nothing is left under a final output name.
        StoppedError: A fault, a signal or the deadline ended the run; `resume` goes on.

    Communication:
        The ranks agree after each stage and each step, so that all stop together.
    """
    setting = _prepare(request)
    if request.resume and _is_finished(setting):
        _log.info("%s: whole, nothing to do", ", ".join(str(p.path) for p in setting.products))
        return
    inputs = find_input(
        request.input,
        setting.folder,
        setting.manifest,
        _lacking_inits(setting) if request.resume else request.init_times,
        request.members,
    )
    plan = {"request": repr(request), "checkpoint": setting.manifest.digest}
    mesh = make_mesh(request.mesh, setting.identity.device, plan)
    try:
        _run(request, setting, inputs, mesh)
    finally:
        close_mesh()


def _prepare(request: RunRequest) -> _Setting:
    """Checks everything that needs neither ranks nor input.

    Raises:
        ForecastError: The checkpoint, mesh, schedule, fields, keys or outputs are wrong.
    """
    folder = find_checkpoint(request.checkpoint)
    manifest = read_manifest(folder)
    config = manifest.architecture
    config.check_mesh(request.mesh.get("domain", 1), request.mesh.get("tensor", 1))
    starts = make_starts(request.init_times, request.members)
    check_data_degree(request.mesh.get("data", 1), len(starts))
    schedule = make_schedule(
        request.lead_time,
        request.output_frequency,
        config.step_hours,
        has_initial_state=request.write_initial_state,
    )
    fields = _output_fields(request, config)
    products = resolve_outputs(
        request.outputs,
        request.init_times,
        schedule.lead_times,
        overwrite=request.overwrite,
        resume=request.resume,
        fields=fields,
        members=request.members,
    )
    default = f"{manifest.name}/{DEFAULT_INPUT}"
    spec = OutputSpec(
        fields=fields,
        grid=config.grid_object,
        init_times=request.init_times,
        lead_times=schedule.lead_times,
        attributes=product_attributes(manifest, request.input or default),
        grib_keys=grib_defaults(manifest) | spelled_out(request.grib_keys),
        members=request.members,
        num_members=request.num_members,
    )
    _check_side_files(request, folder, products)
    check_keys(products, spec)
    mesh = ",".join(f"{axis}={degree}" for axis, degree in request.mesh.items() if degree > 1)
    identity = Identity(
        request.precision,
        request.weights,
        mesh or "one rank",
        choose_device(request.device),
        request.regrid,
    )
    return _Setting(folder, manifest, schedule, starts, spec, tuple(products), identity)


def _is_finished(setting: _Setting) -> bool:
    """Whether every product is there and this run's."""
    return all(_is_own_and_whole(setting, product) for product in setting.products)


def _lacking_inits(setting: _Setting) -> list[np.datetime64]:
    """The initial times with a product that is not there yet: only they need an input."""
    lacking = [p for p in setting.products if not _is_own_and_whole(setting, p)]
    needed = {init for product in lacking for init in product.init_times}
    return [init for init in setting.spec.init_times if init in needed]


def _is_own_and_whole(setting: _Setting, product: Product) -> bool:
    record = read_record(product.path) if product.path.exists() else None
    return record is not None and record.get("run") == setting.fingerprint(product)


def _run(request: RunRequest, setting: _Setting, inputs: ResolvedInput, mesh: Mesh) -> None:
    meter = RunMeter(mesh)
    with ExitStack() as cleanup:
        stop = cleanup.enter_context(stop_on_signal())
        run = _take_up(request, setting, mesh, cleanup)
        rounds = _make_rounds(request, setting, run, inputs, mesh, meter)
        history = _history(request, setting, run, inputs, mesh)
        products = Products(
            mesh,
            run,
            SideChannel(mesh),
            lambda product: history.record(product, setting.spec, meter.seconds),
        )
        cleanup.callback(products.close)
        try:
            products.finish_rest()
            if any(leg is not None for legs in rounds for leg in legs):
                _load_and_roll(request, setting, rounds, products, history, meter, stop, cleanup)
        except AgreedStop as error:
            rest = describe_rest(setting.products, products.num_done())
            raise StoppedError(f"{error}\n{rest}" if rest else str(error)) from error
    meter.ranks.input_bytes_read = inputs.bytes_read
    meter.ranks.output_bytes_written = products.num_bytes_written
    if request.plot is not None:
        together(mesh, lambda: _draw(request, setting) if mesh.rank == 0 else None)
    if request.report is not None:
        meter.write(request.report, _report_header(request, setting, rounds, history, mesh))


def _take_up(request: RunRequest, setting: _Setting, mesh: Mesh, cleanup: ExitStack) -> RunProducts:
    """Locks all products and finds out how far each is.

    Communication:
        One gather of texts over all ranks.
    """
    rounds = make_rounds(setting.starts, mesh.data.size)
    creators = {p.path: _creator(p, rounds, mesh.model.size) for p in setting.products}
    own = [product for product in setting.products if creators[product.path] == mesh.rank]
    standings, locks = take_up_all(
        mesh,
        own,
        setting.spec,
        {product.path: setting.fingerprint(product) for product in own},
        resume=request.resume,
        overwrite=request.overwrite,
    )
    run = RunProducts(setting.products, setting.spec, standings, creators, locks, request.overwrite)
    cleanup.callback(run.give_back)
    return run


def _creator(product: Product, rounds: list[list[Start | None]], group_size: int) -> int:
    """The first rank of the only model group that writes a product, else the first of all."""
    groups = {
        group
        for legs in rounds
        for group, start in enumerate(legs)
        if start is not None
        and start.init_time in product.init_times
        and (start.member is None or start.member in product.members)
    }
    return groups.pop() * group_size if len(groups) == 1 else 0


def _make_rounds(
    request: RunRequest,
    setting: _Setting,
    run: RunProducts,
    inputs: ResolvedInput,
    mesh: Mesh,
    meter: RunMeter,
) -> list[Round]:
    """What is left to be made, with a checked plan for each initial state.

    Raises:
        DataError: An input is wrong; all that is wrong is named.
    """
    folders = {
        start: RestartFolder(
            first_product(setting.products, start, setting.schedule).path, start, mesh.model.size
        )
        for start in setting.starts
    }
    # one look for all ranks: what another one sees of the disk may differ for a moment
    found = together(
        mesh,
        lambda: [
            step_to_go_on_from(folders[start], setting.products, run.standings, setting.schedule)
            if mesh.rank == 0
            else None
            for start in setting.starts
        ],
    )
    steps = dict(zip(setting.starts, share_numbers(mesh, found), strict=True))
    with meter.phase("read"):
        lacking = [start for start, step in steps.items() if step is not None]
        plans = together(
            mesh, lambda: plan_inputs(inputs, setting.manifest, lacking, regrid=request.regrid)
        )
    rounds: list[Round] = []
    for starts in make_rounds(setting.starts, mesh.data.size):
        legs: list[Leg | None] = []
        for start in starts:
            step = steps[start] if start is not None else None
            is_left = start is not None and step is not None
            legs.append(Leg(start, step, folders[start], plans[start]) if is_left else None)  # type: ignore[index,arg-type]
        if any(leg is not None for leg in legs):
            rounds.append(legs)
    return rounds


def _load_and_roll(
    request: RunRequest,
    setting: _Setting,
    rounds: list[Round],
    products: Products,
    history: RunHistory,
    meter: RunMeter,
    stop: StopSignal,
    cleanup: ExitStack,
) -> None:
    """Loads the model and makes all rounds."""
    mesh = meter.mesh
    loaded = _load(request, setting, mesh, meter)
    num_steps = sum(
        setting.schedule.num_steps - min(leg.first_step for leg in legs if leg is not None)
        for legs in rounds
    )
    checks = Checks(
        mesh,
        plausible_ranges(setting.manifest),
        stop,
        Deadline(request.deadline_s, meter.seconds["start"]),
        history,
        num_steps=num_steps,
        stops_implausible=request.stops_implausible,
    )
    rolling = Rolling(loaded, setting.schedule, products, history, meter, checks)
    pipeline = OutputPipeline(mesh, setting.manifest.architecture, products)
    try:
        roll_and_write(rolling, rounds, pipeline, mesh)
    finally:
        if not pipeline.close():
            cleanup.pop_all()  # the thread hangs in the files: they go with the process
        meter.ranks.output_seconds = asdict(pipeline.seconds) | asdict(products.seconds)


def _load(request: RunRequest, setting: _Setting, mesh: Mesh, meter: RunMeter) -> LoadedModel:
    config = setting.manifest.architecture
    with meter.phase("load"):
        together(mesh, lambda: _check_memory(request, config, mesh))
        loaded = load_checkpoint(setting.folder, mesh, getattr(torch, request.precision))
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
    return loaded


def _history(
    request: RunRequest,
    setting: _Setting,
    run: RunProducts,
    inputs: ResolvedInput,
    mesh: Mesh,
) -> RunHistory:
    return RunHistory(
        command=["jigsaw-forecast", *request.command],
        manifest=setting.manifest,
        folder=str(setting.folder),
        identity=setting.identity,
        hosts=gather_texts(mesh, platform.node()),
        inputs=inputs.provenance(),
        began=now_text(),
        resumed=any(standing.marks for standing in run.standings.values()),
    )


def _report_header(
    request: RunRequest,
    setting: _Setting,
    rounds: list[Round],
    history: RunHistory,
    mesh: Mesh,
) -> dict[str, object]:
    legs = [leg for group in rounds for leg in group if leg is not None]
    return {
        "command": "run",
        "command_line": shlex.join(history.command),
        "init": [str(time.astype("datetime64[s]")) for time in request.init_times],
        "members": list(request.members),
        "num_rollout_steps": setting.schedule.num_steps,
        "resumed_from": {str(leg.start): leg.first_step for leg in legs if leg.first_step},
        "mesh": mesh.degrees,
        "precision": request.precision,
        "parameters": setting.manifest.num_parameters,
        "implausible": [asdict(item) for item in history.implausible],
    }


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


def _check_side_files(request: RunRequest, folder: Path, products: list[Product]) -> None:
    """Refuses what could not be written after the forecast, or would be written over.

    Raises:
        OutputError: Names each.
    """
    problems = []
    records = {record_path(product.path).absolute() for product in products}
    for option, path in (("--report", request.report), ("--plot", request.plot)):
        if path is None:
            continue
        if (reason := describe_unwritable(path.parent)) is not None:
            problems.append(f"{option} {path}: {reason}")
        if path.absolute() in records:
            problems.append(f"{option} {path} is the record of a product; choose another name")
    source = Path(request.input) if request.input is not None else folder / DEFAULT_INPUT
    if source.exists():
        problems += [
            f"output {product.path} is the input; choose another --output"
            for product in products
            if product.path.exists() and product.path.samefile(source)
        ]
    if problems:
        raise OutputError("\n".join(problems))


def _output_fields(request: RunRequest, config: ModelConfig) -> tuple[Field, ...]:
    available = (*config.prognostic_fields, *config.diagnostic_fields)
    return available if request.variables is None else parse_fields(request.variables, available)


def _draw(request: RunRequest, setting: _Setting) -> None:
    # matplotlib takes a second to import and most runs draw nothing
    from jigsaw_forecast.plot.forecast_maps import plot_forecast

    assert request.plot is not None
    notice = setting.manifest.notice or None
    plot_forecast(setting.products[0].path, request.plot, notice=notice)
    _log.info("drew %s", request.plot)
