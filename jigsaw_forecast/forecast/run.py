"""The operational run: checkpoint and initial conditions in, forecast products out."""

import logging
import platform
import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from jigsaw_forecast.checkpoint.load import LoadedModel, load_checkpoint
from jigsaw_forecast.data.acquisition import ResolvedInput
from jigsaw_forecast.errors import ForecastError, StoppedError
from jigsaw_forecast.forecast.inputs import (
    find_input,
    foreign_notice,
    plan_inputs,
    plausible_ranges,
)
from jigsaw_forecast.forecast.output import Product, scores_products
from jigsaw_forecast.forecast.pipeline import OutputPipeline
from jigsaw_forecast.forecast.prepare import Setting, prepare
from jigsaw_forecast.forecast.provenance import RunHistory
from jigsaw_forecast.forecast.record import now_text
from jigsaw_forecast.forecast.report import RunMeter
from jigsaw_forecast.forecast.request import RunRequest
from jigsaw_forecast.forecast.restart import RestartFolder, restart_product
from jigsaw_forecast.forecast.resume import (
    Standing,
    describe_rest,
    find_steps,
    remove_leftovers,
    share_numbers,
    take_up_all,
)
from jigsaw_forecast.forecast.rolling import Checks, Leg, Rolling, Round, roll_and_write
from jigsaw_forecast.forecast.rollout import one_step
from jigsaw_forecast.forecast.schedule import Start, make_rounds
from jigsaw_forecast.forecast.stopping import AgreedStop, Deadline, StopSignal, stop_on_signal
from jigsaw_forecast.forecast.writing import Products, RunProducts
from jigsaw_forecast.model.config import ModelConfig
from jigsaw_forecast.parallel.mesh import Mesh, close_mesh, make_mesh
from jigsaw_forecast.parallel.side_channel import LostPeerError, SideChannel
from jigsaw_forecast.parallel.together import gather_texts, together
from jigsaw_forecast.plan.memory import BASE_BYTES, check_memory
from jigsaw_forecast.plan.meshes import Workload

_log = logging.getLogger(__name__)


def run_forecast(request: RunRequest) -> None:
    """Makes the forecasts of a request: as many at a time as there are model groups.

    Raises:
        ForecastError: Anything wrong with the request, the input or the output; the same on
            every rank, and nothing is left under a final output name.
        StoppedError: A fault, a signal or the deadline ended the run; `resume` goes on.

    Communication:
        The ranks agree after each stage and each step, so that all stop together.
    """
    setting = prepare(request)
    whole = setting.find_whole() if request.resume else {}
    is_finished = len(whole) == len(setting.products)
    inputs = None if is_finished else _find_input(request, setting, whole)
    plan = {"request": repr(request), "checkpoint": setting.manifest.digest}
    mesh = make_mesh(request.degrees, setting.identity.device, plan)
    try:
        meter = RunMeter(mesh)
        # what another rank sees of the disk may differ while another run gives names
        if share_numbers(mesh, [int(is_finished)])[0]:
            _leave(request, setting, whole, meter)
            return
        if inputs is None:
            inputs = _find_input(request, setting, {})
        _run(request, setting, inputs, meter)
    finally:
        close_mesh()


def _find_input(
    request: RunRequest, setting: Setting, whole: Mapping[Path, Standing]
) -> ResolvedInput:
    return find_input(
        request.input,
        setting.folder,
        setting.manifest,
        setting.lacking_inits(whole),
        request.members,
    )


def _leave(
    request: RunRequest, setting: Setting, whole: Mapping[Path, Standing], meter: RunMeter
) -> None:
    """Ends a run that finds all of its products whole, with what else is asked for."""
    mesh = meter.mesh
    if mesh.rank == 0:
        remove_leftovers(setting.products)
        _log.info("%s: whole, nothing to do", ", ".join(str(p.path) for p in setting.products))
    _draw_and_report(request, setting, [], _history(request, setting, whole, [], mesh), meter)


def _run(request: RunRequest, setting: Setting, inputs: ResolvedInput, meter: RunMeter) -> None:
    mesh = meter.mesh
    with ExitStack() as cleanup:
        stop = cleanup.enter_context(stop_on_signal())
        run = _take_up(request, setting, mesh, cleanup)
        rounds = _make_rounds(request, setting, run, inputs, mesh, meter)
        history = _history(request, setting, run.standings, inputs.provenance(), mesh)
        products = Products(
            mesh,
            run,
            SideChannel(mesh),
            lambda product: history.record(product, setting.fingerprint(product), meter.seconds),
        )
        cleanup.callback(products.close)
        try:
            _finish_rest(products)
            if any(leg is not None for legs in rounds for leg in legs):
                _load_and_roll(request, setting, rounds, products, history, meter, stop, cleanup)
        except AgreedStop as error:
            rest = describe_rest(setting.products, products.num_done())
            raise StoppedError(f"{error}\n{rest}" if rest else str(error)) from error
    meter.ranks.input_bytes_read = inputs.bytes_read
    meter.ranks.output_bytes_written = products.num_bytes_written
    _draw_and_report(request, setting, rounds, history, meter)


def _finish_rest(products: Products) -> None:
    """Names what is whole already; ends as where a forecast that goes on cannot be written.

    Raises:
        AgreedStop: A product could not be written; on every rank.
    """
    try:
        products.finish_rest()
    except LostPeerError:
        raise  # the ranks do not agree on it
    except (ForecastError, StoppedError) as error:
        raise AgreedStop(str(error)) from error


def _draw_and_report(
    request: RunRequest,
    setting: Setting,
    rounds: list[Round],
    history: RunHistory,
    meter: RunMeter,
) -> None:
    mesh = meter.mesh
    if request.plot is not None:
        together(mesh, lambda: _draw(request, setting) if mesh.rank == 0 else None)
    if request.report is not None:
        meter.write(request.report, _report_header(request, setting, rounds, history, mesh))


def _take_up(request: RunRequest, setting: Setting, mesh: Mesh, cleanup: ExitStack) -> RunProducts:
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
    run = RunProducts(
        setting.products,
        setting.spec,
        standings,
        creators,
        locks,
        request.overwrite,
        {start: _restart_folder(setting, start, mesh) for start in setting.starts},
    )
    cleanup.callback(run.give_back)
    return run


def _restart_folder(setting: Setting, start: Start, mesh: Mesh) -> RestartFolder:
    product = restart_product(setting.products, start, setting.schedule)
    return RestartFolder(product.path, start, mesh.model.size)


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
    setting: Setting,
    run: RunProducts,
    inputs: ResolvedInput,
    mesh: Mesh,
    meter: RunMeter,
) -> list[Round]:
    """What is left to be made, with a checked plan for each initial state.

    Raises:
        DataError: An input is wrong; all that is wrong is named.
    """
    folders = run.restarts
    # one look for all ranks: what another one sees of the disk may differ for a moment
    found = together(
        mesh,
        lambda: (
            find_steps(list(folders.values()), setting.products, run.standings, setting.schedule)
            if mesh.rank == 0
            else []
        ),
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
    setting: Setting,
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
        Deadline(request.deadline_s, meter.age_s),
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


def _load(request: RunRequest, setting: Setting, mesh: Mesh, meter: RunMeter) -> LoadedModel:
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
    if notice := foreign_notice(request.input, setting.folder, setting.manifest):
        _log.info("%s", notice)
    return loaded


def _history(
    request: RunRequest,
    setting: Setting,
    standings: Mapping[Path, Standing],
    inputs: Sequence[Mapping[str, Any]],
    mesh: Mesh,
) -> RunHistory:
    history = RunHistory(
        command=["jigsaw-forecast", *request.command],
        manifest=setting.manifest,
        folder=str(setting.folder),
        identity=setting.identity,
        hosts=gather_texts(mesh, platform.node()),
        inputs=inputs,
        began=now_text(),
        resumed=any(standing.marks or standing.is_whole for standing in standings.values()),
    )
    for standing in standings.values():
        history.go_on(standing.states, standing.implausible)
    return history


def _report_header(
    request: RunRequest,
    setting: Setting,
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
        "scores": [str(product.path) for product in scores_products(setting.products)],
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


def _draw(request: RunRequest, setting: Setting) -> None:
    # matplotlib takes a second to import and most runs draw nothing
    from jigsaw_forecast.plot.forecast_maps import plot_forecast

    assert request.plot is not None
    scores = scores_products(setting.products)
    drawn = next(product for product in setting.products if product not in scores)
    plot_forecast(drawn.path, request.plot)
    _log.info("drew %s", request.plot)
