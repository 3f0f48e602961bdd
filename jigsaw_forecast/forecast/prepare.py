"""Everything of a run that follows from its request and its checkpoint: the same on every rank."""

import os
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jigsaw_forecast.checkpoint.format import Manifest, find_checkpoint, read_manifest
from jigsaw_forecast.data.acquisition import local_paths
from jigsaw_forecast.errors import OutputError
from jigsaw_forecast.fields import Field
from jigsaw_forecast.forecast.grib_keys import spelled_out
from jigsaw_forecast.forecast.inputs import DEFAULT_INPUT
from jigsaw_forecast.forecast.output import (
    OutputSpec,
    Product,
    check_keys,
    check_scoring,
    describe_unwritable,
    resolve_outputs,
    scores_products,
)
from jigsaw_forecast.forecast.product import Scoring
from jigsaw_forecast.forecast.provenance import (
    Identity,
    fingerprint,
    grib_defaults,
    product_attributes,
)
from jigsaw_forecast.forecast.record import progress_path, record_path
from jigsaw_forecast.forecast.request import ForecastRequest, RunRequest
from jigsaw_forecast.forecast.resume import Standing, find_whole
from jigsaw_forecast.forecast.schedule import (
    Schedule,
    Start,
    check_data_degree,
    make_schedule,
    make_starts,
)
from jigsaw_forecast.forecast.staging import PARTIAL_SUFFIX
from jigsaw_forecast.parallel.mesh import choose_device


@dataclass(frozen=True)
class Setting:
    """What a run makes, into what, with what.

    Attributes:
        folder: Of the checkpoint.
        manifest: Of the checkpoint.
        schedule: What is made and written.
        starts: The forecasts.
        spec: What is written, for all times.
        products: Into what.
        identity: What decides every bit.
        score_plans: Digest of what is scored, by product that holds scores.
        overwrite: Whether products that exist may be replaced.
    """

    folder: Path
    manifest: Manifest
    schedule: Schedule
    starts: tuple[Start, ...]
    spec: OutputSpec
    products: tuple[Product, ...]
    identity: Identity
    score_plans: Mapping[Path, str]
    overwrite: bool

    def fingerprint(self, product: Product) -> Mapping[str, str]:
        """What a run must have in common with the one whose product it goes on with."""
        found = fingerprint(self.manifest, self.identity, self.spec, product)
        if product.path not in self.score_plans:
            return found
        scoring = self.spec.scoring
        assert scoring is not None, "there is a plan"
        plan = self.score_plans[product.path][:16]
        return {**found, "truth": f"{scoring.truth}, {scoring.climatology}, plan {plan}"}

    def find_whole(self) -> dict[Path, Standing]:
        """The products that are there, whole and this run's, as this rank sees them."""
        found = {
            product.path: find_whole(product, self.fingerprint(product), overwrite=self.overwrite)
            for product in self.products
        }
        return {path: standing for path, standing in found.items() if standing is not None}

    def lacking_inits(self, whole: Container[Path]) -> list[np.datetime64]:
        """The initial times with a product that is not there yet: only they need an input."""
        lacking = [product for product in self.products if product.path not in whole]
        needed = {init for product in lacking for init in product.init_times}
        return [init for init in self.spec.init_times if init in needed]


def prepare(request: RunRequest) -> Setting:
    """Checks everything that needs neither ranks nor input.

    Raises:
        ForecastError: The checkpoint, mesh, schedule, fields, keys, outputs or truth are wrong.
    """
    folder = find_checkpoint(request.checkpoint)
    manifest = read_manifest(folder)
    config = manifest.architecture
    degrees = request.degrees
    config.check_mesh(degrees["domain"], degrees["tensor"])
    starts = make_starts(request.init_times, request.members)
    check_data_degree(degrees["data"], len(starts))
    schedule = make_schedule(
        request.lead_time,
        request.output_frequency,
        config.step_hours,
        has_initial_state=request.write_initial_state,
    )
    fields = request.fields(config)
    try:
        products = resolve_outputs(
            request.outputs,
            request.init_times,
            schedule.lead_times,
            overwrite=request.overwrite,
            resume=request.resume,
            fields=fields,
            members=request.members,
        )
    except OutputError as error:
        if request.input is None and not (folder / DEFAULT_INPUT).exists():
            lacking = f"checkpoint {folder} has no initial conditions of its own: missing --input"
            raise OutputError(f"{error}\n{lacking}") from None
        raise
    spec = make_spec(request, manifest, schedule, fields)
    check_side_files(request, folder, products)
    check_keys(products, spec, request.grib_keys)
    mesh = ",".join(f"{axis}={degree}" for axis, degree in request.mesh.items() if degree > 1)
    identity = Identity(
        request.precision,
        request.weights,
        mesh or "one rank",
        choose_device(request.device),
        request.regrid,
    )
    return Setting(
        folder,
        manifest,
        schedule,
        starts,
        spec,
        tuple(products),
        identity,
        check_scoring(products, spec),
        request.overwrite,
    )


def make_spec(
    request: ForecastRequest, manifest: Manifest, schedule: Schedule, fields: tuple[Field, ...]
) -> OutputSpec:
    """What the products of a request hold, all of them together."""
    scoring = None
    if request.truth is not None:
        scoring = Scoring(manifest.name, request.truth, request.climatology, request.allow_missing)
    default = f"{manifest.name}/{DEFAULT_INPUT}"
    return OutputSpec(
        fields=fields,
        grid=manifest.architecture.grid_object,
        init_times=request.init_times,
        lead_times=schedule.lead_times,
        attributes=product_attributes(manifest, request.input or default),
        grib_keys=grib_defaults(manifest) | spelled_out(dict(request.grib_keys)),
        members=request.members,
        num_members=request.num_members,
        scoring=scoring,
    )


def check_side_files(request: ForecastRequest, folder: Path, products: Sequence[Product]) -> None:
    """Refuses what could not be written after the forecast, or would be written over.

    Raises:
        OutputError: Names each.
    """
    problems = []
    taken = {
        name.absolute(): f"{what} {product.path}"
        for product in products
        for name, what in (
            (product.path, "the product"),
            (record_path(product.path), "the record of the product"),
            (progress_path(product.path), "the progress of the product"),
            (product.path.with_name(product.path.name + PARTIAL_SUFFIX), "a part of the product"),
        )
    }
    sources = _Sources(request, folder)
    for option, path in (("--report", request.report), ("--plot", request.plot)):
        if path is None:
            continue
        if path.is_dir():
            problems.append(f"{option} {path} is a folder; it takes the name of a file")
        elif (reason := describe_unwritable(path.parent)) is not None:
            problems.append(f"{option} {path}: {reason}")
        if what := taken.get(path.absolute()):
            problems.append(f"{option} {path} is {what}; choose another name")
        taken[path.absolute()] = f"the file of {option}"
        if why := sources.why_not(path):
            problems.append(f"{option} {path} {why}; choose another name")
    if request.plot is not None and len(scores_products(products)) == len(products):
        problems.append(f"--plot {request.plot}: missing an --output that holds maps")
    problems += [
        f"output {product.path} {why}; choose another --output"
        for product in products
        if (why := sources.why_not(product.path))
    ]
    if problems:
        raise OutputError("\n".join(problems))


class _Sources:
    """What a run reads of this machine, which nothing that it writes may replace or disturb."""

    def __init__(self, request: ForecastRequest, folder: Path) -> None:
        spec = request.input
        if spec is None:
            read = [(folder / DEFAULT_INPUT, "input")]
        else:
            paths = local_paths(spec, request.init_times, request.members)
            read = [(path, "input") for path in paths]
        scored = ((request.truth, "truth"), (request.climatology, "climatology"))
        read += [(path, what) for path, what in scored if path is not None]
        self._names: dict[Path, str] = {}
        self._holders: dict[Path, str] = {}
        for path, what in read:
            if (place := _resolved(path)) is not None:
                self._names.setdefault(place, what)
                self._holders |= dict.fromkeys(place.parents, f"{what} {path}")

    def why_not(self, path: Path) -> str:
        """Why a file or store may not be made under a name, otherwise empty."""
        place = Path(os.path.realpath(path))
        if place in self._names:
            return f"is the {self._names[place]}"
        if place in self._holders:
            return f"holds the {self._holders[place]}"
        inside = next((above for above in place.parents if above in self._names), None)
        return f"lies in the {self._names[inside]} {inside}" if inside is not None else ""


def _resolved(source: Path) -> Path | None:
    """Where a source is, None where it is not; what is meant for a remote one may be no name."""
    try:
        return Path(os.path.realpath(source, strict=True))
    except (OSError, ValueError):
        return None
