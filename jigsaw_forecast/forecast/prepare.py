"""Everything of a run that follows from its request and its checkpoint: the same on every rank."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jigsaw_forecast.checkpoint.format import Manifest, find_checkpoint, read_manifest
from jigsaw_forecast.errors import OutputError
from jigsaw_forecast.fields import Field
from jigsaw_forecast.forecast.grib_keys import spelled_out
from jigsaw_forecast.forecast.inputs import DEFAULT_INPUT
from jigsaw_forecast.forecast.output import (
    OutputSpec,
    Product,
    check_keys,
    describe_unwritable,
    resolve_outputs,
)
from jigsaw_forecast.forecast.product import Scoring
from jigsaw_forecast.forecast.provenance import (
    Identity,
    fingerprint,
    grib_defaults,
    product_attributes,
)
from jigsaw_forecast.forecast.record import progress_path, read_record, record_path
from jigsaw_forecast.forecast.request import ForecastRequest, RunRequest
from jigsaw_forecast.forecast.schedule import (
    Schedule,
    Start,
    check_data_degree,
    make_schedule,
    make_starts,
)
from jigsaw_forecast.forecast.scores_writer import check_scoring, scores_products
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
    """

    folder: Path
    manifest: Manifest
    schedule: Schedule
    starts: tuple[Start, ...]
    spec: OutputSpec
    products: tuple[Product, ...]
    identity: Identity
    score_plans: Mapping[Path, str]

    def fingerprint(self, product: Product) -> Mapping[str, str]:
        """What a run must have in common with the one whose product it goes on with."""
        found = fingerprint(self.manifest, self.identity, self.spec, product)
        if product.path not in self.score_plans:
            return found
        scoring = self.spec.scoring
        assert scoring is not None, "there is a plan"
        plan = self.score_plans[product.path][:16]
        return {**found, "truth": f"{scoring.truth}, {scoring.climatology}, plan {plan}"}

    def is_finished(self) -> bool:
        """Whether every product is there and this run's."""
        return all(self._is_own_and_whole(product) for product in self.products)

    def lacking_inits(self) -> list[np.datetime64]:
        """The initial times with a product that is not there yet: only they need an input."""
        lacking = [product for product in self.products if not self._is_own_and_whole(product)]
        needed = {init for product in lacking for init in product.init_times}
        return [init for init in self.spec.init_times if init in needed]

    def _is_own_and_whole(self, product: Product) -> bool:
        record = read_record(product.path) if product.path.exists() else None
        return record is not None and record.get("run") == self.fingerprint(product)


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
    check_keys(products, spec)
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
    sources = [
        (Path(request.input) if request.input is not None else folder / DEFAULT_INPUT, "input")
    ]
    sources += [
        (path, what)
        for path, what in ((request.truth, "truth"), (request.climatology, "climatology"))
        if path is not None
    ]
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
        problems += [
            f"{option} {path} is the {what}; choose another name"
            for source, what in sources
            if path.exists() and _exists(source) and path.samefile(source)
        ]
    if request.plot is not None and len(scores_products(products)) == len(products):
        problems.append(f"--plot {request.plot}: missing an --output that holds maps")
    problems += [
        f"output {product.path} is the {what}; choose another --output"
        for source, what in sources
        if _exists(source)
        for product in products
        if product.path.exists() and product.path.samefile(source)
    ]
    if problems:
        raise OutputError("\n".join(problems))


def _exists(source: Path) -> bool:
    """Whether there is such a file; a request to a remote source may be longer than a name."""
    try:
        return source.exists()
    except (OSError, ValueError):
        return False
