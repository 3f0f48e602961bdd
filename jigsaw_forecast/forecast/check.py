"""What a run would do and whether it would fail, without doing it: `check`, `run --dry-run`."""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from jigsaw_forecast.checkpoint.format import (
    Manifest,
    find_checkpoint,
    read_manifest,
    verify_digests,
)
from jigsaw_forecast.data.acquisition import InputRequest, resolve_input
from jigsaw_forecast.errors import DataError, ForecastError, MeshError
from jigsaw_forecast.fields import Field
from jigsaw_forecast.forecast.check_input import InputCheck, check_initial_state
from jigsaw_forecast.forecast.check_report import CheckReport, DiskCheck, MemoryCheck, TimeEstimate
from jigsaw_forecast.forecast.inputs import DEFAULT_INPUT, foreign_notice
from jigsaw_forecast.forecast.output import check_keys, check_scoring, resolve_outputs
from jigsaw_forecast.forecast.prepare import check_side_files, make_spec
from jigsaw_forecast.forecast.product import Product
from jigsaw_forecast.forecast.request import CheckRequest
from jigsaw_forecast.forecast.rollout import one_step
from jigsaw_forecast.forecast.schedule import (
    Schedule,
    check_data_degree,
    make_schedule,
    make_starts,
)
from jigsaw_forecast.log import count
from jigsaw_forecast.model.config import ModelConfig
from jigsaw_forecast.plan.devices import DeviceKind, find_device_kind
from jigsaw_forecast.plan.measure import measure_cpu
from jigsaw_forecast.plan.memory import BASE_BYTES, available_bytes
from jigsaw_forecast.plan.meshes import Workload, trace_workload
from jigsaw_forecast.plan.simulate import simulate
from jigsaw_forecast.plan.trace import Trace

Result = TypeVar("Result")

# Assumed for ranks of one CPU host where no rate is given: Gloo over the loopback, an order of
# magnitude; `jigsaw-forecast selfcheck --mesh domain=2` measures it.
LOOPBACK_BYTES_PER_S = 1.0e9
# Most bytes of a value in a product: float32, or 16 bits packed; headers are small beside them.
# Scores are a few numbers for each map.
_BYTES_PER_VALUE = {".zarr": 4, ".nc": 4, ".grib2": 2, ".grib": 2, ".scores": 0}
# Values that one core decodes or encodes in a second, an order of magnitude (docs/log.md).
_READ_VALUES_PER_S = 5.0e7
_WRITE_VALUES_PER_S = {
    ".zarr": 4.0e7,
    ".nc": 3.0e7,
    ".grib2": 2.5e7,
    ".grib": 2.5e7,
    ".scores": 5.0e6,
}


class _Problems:
    """Collects what is wrong, so that all of it is told."""

    def __init__(self) -> None:
        self.texts: dict[str, None] = {}

    def of(self, action: Callable[[], Result]) -> Result | None:
        """The action's result; None where it raised a `ForecastError`, which is kept."""
        try:
            return action()
        except ForecastError as error:
            self.add(str(error))
            return None

    def add(self, text: str) -> None:
        self.texts[text] = None


def check_run(request: CheckRequest) -> CheckReport:
    """Looks at everything that a run needs: starts no rank and holds one map at a time.

    A remote input is fetched into the cache, where the run will find it.

    Raises:
        CheckpointError: There is no checkpoint to check against.
    """
    folder = find_checkpoint(request.checkpoint)
    manifest = read_manifest(folder)
    config = manifest.architecture
    problems = _Problems()
    degrees = request.degrees
    if request.with_digests:
        problems.of(lambda: verify_digests(folder))
    problems.of(lambda: config.check_mesh(degrees["domain"], degrees["tensor"]))
    starts = make_starts(request.init_times, request.members)
    problems.of(lambda: check_data_degree(degrees["data"], len(starts)))
    schedule = problems.of(
        lambda: make_schedule(
            request.lead_time,
            request.output_frequency,
            config.step_hours,
            has_initial_state=request.write_initial_state,
        )
    )
    fields = problems.of(lambda: request.fields(config))
    products = _check_outputs(request, folder, manifest, schedule, fields, problems)
    inputs = _check_inputs(request, folder, manifest, problems)
    device = problems.of(lambda: _find_device(request))
    traced = _trace(request, config)
    memory = _check_memory(request, device, traced)
    work = _Work(request, config, schedule, products, fields or ())
    disks = work.check_disks()
    seconds = None
    if device is not None and traced is not None:
        seconds = work.estimate(inputs, device, traced)
    for shortage in (*(disk.shortage for disk in disks), memory.shortage if memory else ""):
        if shortage:
            problems.add(shortage)
    return CheckReport(
        checkpoint=str(folder),
        grid=config.grid,
        mesh=degrees,
        init_times=[str(time.astype("datetime64[s]")) for time in request.init_times],
        num_rollout_steps=schedule.num_steps if schedule else 0,
        num_lead_times=len(schedule.lead_times) if schedule else 0,
        statics=[name for name in config.forcings if name in _STATICS],
        inputs=inputs,
        memory=memory,
        seconds=seconds,
        disks=disks,
        problems=list(problems.texts),
        notice=foreign_notice(request.input, folder, manifest),
    )


_STATICS = ("land_sea_mask", "geopotential_at_surface")


def _check_outputs(
    request: CheckRequest,
    folder: Path,
    manifest: Manifest,
    schedule: Schedule | None,
    fields: tuple[Field, ...] | None,
    problems: _Problems,
) -> list[Product]:
    """The products, as far as they can be told; their names, keys and truth are looked at."""
    if schedule is None:
        return []
    products = problems.of(
        lambda: resolve_outputs(
            request.outputs,
            request.init_times,
            schedule.lead_times,
            overwrite=request.overwrite,
            resume=request.resume,
            fields=fields or (),
            members=request.members,
        )
    )
    if products is None:
        return []
    problems.of(lambda: check_side_files(request, folder, products))
    if fields is not None:
        spec = make_spec(request, manifest, schedule, fields)
        problems.of(lambda: check_keys(products, spec, request.grib_keys))
        problems.of(lambda: check_scoring(products, spec))
    return products


def _check_inputs(
    request: CheckRequest, folder: Path, manifest: Manifest, problems: _Problems
) -> list[InputCheck]:
    """The fields of every initial time and member."""
    config = manifest.architecture
    resolved = problems.of(
        lambda: resolve_input(
            InputRequest(
                spec=request.input,
                default=folder / DEFAULT_INPUT,
                fields=config.prognostic_fields,
                grid=config.grid_object,
                init_times=request.init_times,
                members=request.members,
            )
        )
    )
    if resolved is None:
        return []
    plausible = {f: manifest.plausible[f.short_name] for f in config.prognostic_fields}
    checks = []
    for start in make_starts(request.init_times, request.members):
        try:
            check = check_initial_state(
                resolved.source(start.init_time, start.member),
                resolved.file(start.init_time, start.member),
                config.prognostic_fields,
                config.grid_object,
                start.init_time,
                plausible,
                regrid=request.regrid,
                with_values=request.with_values,
            )
        except DataError as fault:
            problems.add(str(fault))
            continue
        checks.append(check)
        for text in check.problems:
            problems.add(text)
    return checks


def _find_device(request: CheckRequest) -> DeviceKind | None:
    """Rates and memory of what the run would compute on; None where nothing is known of it."""
    if request.device_kind:
        return find_device_kind(request.device_kind)
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if request.device == "cuda" and num_gpus < request.num_ranks:
        mesh = "use a smaller --mesh or --device cpu" if num_gpus else "use --device cpu"
        raise MeshError(
            f"device cuda: {count(request.num_ranks, 'rank')}, {count(num_gpus, 'GPU')} on this "
            f"machine; {mesh}, or give --device-kind to check for another machine"
        )
    if request.device == "cpu" or num_gpus < request.num_ranks:
        return measure_cpu(request.precision, request.num_ranks, LOOPBACK_BYTES_PER_S)
    name = torch.cuda.get_device_name(0).lower()
    kinds = ("h200", "h100", "a100")
    return next((find_device_kind(kind) for kind in kinds if kind in name), None)


def _trace(request: CheckRequest, config: ModelConfig) -> Trace | None:
    """One step on meta tensors; None where the mesh does not divide."""
    workload = Workload(
        config=config,
        mode="inference",
        dtype=request.precision,
        is_streamed=request.weights == "streamed",
        make_step=lambda _: one_step,
    )
    traced = trace_workload(workload, request.degrees)
    return None if isinstance(traced, str) else traced


def _check_memory(
    request: CheckRequest, device: DeviceKind | None, traced: Trace | None
) -> MemoryCheck | None:
    """Peak of the busiest rank against what it may take."""
    if traced is None:
        return None
    is_cpu = device is not None and device.name == "cpu"
    base_bytes = BASE_BYTES if is_cpu else 0
    if device is None:
        available = None
    elif is_cpu:
        # the ranks of one machine share it; under a launcher its number says how many
        shares = 1 if "LOCAL_WORLD_SIZE" in os.environ else request.num_ranks
        available = available_bytes(torch.device("cpu")) // shares
    else:
        available = int(device.memory_bytes)
    return MemoryCheck(
        parameter_bytes=traced.parameter_bytes,
        activation_bytes=traced.activation_bytes,
        buffer_bytes=traced.buffer_bytes,
        base_bytes=base_bytes,
        peak_bytes=traced.peak_bytes + base_bytes,
        available_bytes=available,
    )


@dataclass(frozen=True)
class _Work:
    """What a run reads, computes and writes."""

    request: CheckRequest
    config: ModelConfig
    schedule: Schedule | None
    products: Sequence[Product]
    fields: Sequence[Field]

    @property
    def map_values(self) -> int:
        """Values of one field."""
        grid = self.config.grid_object
        return grid.num_lat * grid.num_lon

    def num_values(self, product: Product) -> int:
        """Values of a product."""
        return len(product.slots) * len(self.fields) * self.map_values

    def check_disks(self) -> list[DiskCheck]:
        """What products need of each file system, against what is free on it."""
        needed: dict[int, int] = {}
        folders: dict[int, list[str]] = {}
        for product in self.products:
            folder = product.path.parent
            device = folder.stat().st_dev
            num_bytes = self.num_values(product) * _BYTES_PER_VALUE[product.path.suffix]
            needed[device] = needed.get(device, 0) + num_bytes
            folders.setdefault(device, []).append(str(folder))
        return [
            DiskCheck(
                folders=list(dict.fromkeys(folders[device])),
                needed_bytes=num_bytes,
                free_bytes=shutil.disk_usage(folders[device][0]).free,
            )
            for device, num_bytes in needed.items()
        ]

    def estimate(
        self, inputs: Sequence[InputCheck], device: DeviceKind, traced: Trace
    ) -> TimeEstimate | None:
        """Seconds of the run, from rates; None without a schedule."""
        if self.schedule is None:
            return None
        request = self.request
        num_starts = len(make_starts(request.init_times, request.members))
        num_rounds = -(-num_starts // request.degrees["data"])
        num_cores = min(request.num_ranks, os.cpu_count() or 1)
        measured = [check.read_seconds for check in inputs if check.read_seconds is not None]
        state_values = len(self.config.prognostic_fields) * self.map_values
        read = sum(measured) / len(measured) if measured else state_values / _READ_VALUES_PER_S
        step = simulate(traced.events, device, request.precision, request.degrees).step
        write = sum(
            self.num_values(product) / _WRITE_VALUES_PER_S[product.path.suffix]
            for product in self.products
        )
        return TimeEstimate(
            read=read * num_starts / num_cores,
            step=step,
            rollout=step * self.schedule.num_steps * num_rounds,
            write=write / num_cores,
            device=device.name,
            source=device.source,
        )
