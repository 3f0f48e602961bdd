"""The initial conditions of a run: planned for every forecast, read, and told apart by digest."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jigsaw_forecast.checkpoint.format import Manifest
from jigsaw_forecast.data.acquisition import InputRequest, ResolvedInput, resolve_input
from jigsaw_forecast.data.source import InitialStatePlan, plan_initial_state
from jigsaw_forecast.errors import DataError
from jigsaw_forecast.fields import Field, plausible_range
from jigsaw_forecast.forecast.schedule import Start
from jigsaw_forecast.parallel.mesh import Mesh
from jigsaw_forecast.parallel.together import gather_texts
from jigsaw_forecast.state import State

DEFAULT_INPUT = "initial.zarr"
_DIGITS = 16  # of a digest that is compared, not trusted


def find_input(
    spec: str | None,
    folder: Path,
    manifest: Manifest,
    init_times: Sequence[np.datetime64],
    members: Sequence[int],
) -> ResolvedInput:
    """Where the initial conditions are; what is remote is fetched, with no process group waiting.

    Args:
        spec: Value of `--input`, None for what the checkpoint carries.
        folder: Of the checkpoint.
        manifest: Of the checkpoint.
        init_times: Those that are still to be forecast.
        members: Ensemble members; empty where the run is no ensemble.

    Raises:
        DataError: Nothing is there, or what is there cannot be used.
    """
    config = manifest.architecture
    return resolve_input(
        InputRequest(
            spec=spec,
            default=folder / DEFAULT_INPUT,
            fields=config.prognostic_fields,
            grid=config.grid_object,
            init_times=tuple(init_times),
            members=tuple(members),
        )
    )


def foreign_notice(spec: str | None, folder: Path, manifest: Manifest) -> str:
    """What must be said where a model with a notice starts from data that are not its own.

    Args:
        spec: Value of `--input`, None for what the checkpoint carries.
        folder: Of the checkpoint.
        manifest: Of the checkpoint.

    Returns:
        One sentence, empty where nothing must be said.
    """
    own = folder / DEFAULT_INPUT
    if spec is None or not manifest.notice:
        return ""
    if os.path.exists(own) and os.path.exists(spec) and os.path.samefile(own, spec):
        return ""
    return f"notice of {manifest.name}, which starts from {spec}: {manifest.notice}"


def plan_inputs(
    found: ResolvedInput, manifest: Manifest, starts: Sequence[Start], *, regrid: bool
) -> dict[Start, InitialStatePlan]:
    """A checked plan for every forecast; reads headers only.

    Raises:
        DataError: All that is wrong with any of them.
    """
    config = manifest.architecture
    plausible = {field: manifest.plausible[field.short_name] for field in config.prognostic_fields}
    plans: dict[Start, InitialStatePlan] = {}
    problems: list[str] = []
    for start in starts:
        try:
            plans[start] = plan_initial_state(
                found.source(start.init_time, start.member),
                config.prognostic_fields,
                config.grid_object,
                start.init_time,
                regrid=regrid,
                plausible=plausible,
                member=found.file(start.init_time, start.member).member,
            )
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(dict.fromkeys(problems)))
    return plans


def plausible_ranges(manifest: Manifest) -> Mapping[Field, tuple[float, float]]:
    """What the values of a forecast may be, by field."""
    config = manifest.architecture
    ranges = {field: manifest.plausible[field.short_name] for field in config.prognostic_fields}
    return ranges | {field: plausible_range(field) for field in config.diagnostic_fields}


def digest_states(mesh: Mesh, state: State | None) -> list[dict[str, str]]:
    """A digest of every field of the initial state of every model group.

    Args:
        mesh: This rank's mesh; digests of states cut in another way differ.
        state: This rank's piece, None where its group is idle.

    Communication:
        One gather of texts over all ranks.
    """
    own: dict[str, str] = {}
    if state is not None:
        values = state.data.detach().cpu().numpy()
        own = {
            str(field): hashlib.sha256(np.ascontiguousarray(band).data).hexdigest()
            for field, band in zip(state.fields, values, strict=True)
        }
    told = [json.loads(text) for text in gather_texts(mesh, json.dumps(own))]
    size = mesh.model.size
    result = []
    for group in range(mesh.data.size):
        joined: dict[str, str] = {}
        for digests in told[group * size : (group + 1) * size]:
            for name, digest in digests.items():
                joined[name] = joined.get(name, "") + digest
        result.append(
            {
                name: hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
                for name, text in joined.items()
            }
        )
    return result
