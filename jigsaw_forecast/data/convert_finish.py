"""The end of `data convert`: axes, statics and moments beside the values, and the digest."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from jigsaw_forecast.data.bad_maps import describe_bad_static
from jigsaw_forecast.data.convert_files import STATICS, read_statics
from jigsaw_forecast.data.convert_input import ConvertInput
from jigsaw_forecast.data.convert_worker import Work
from jigsaw_forecast.data.field_moments import FieldMoments
from jigsaw_forecast.data.store import Array, Times, shorten
from jigsaw_forecast.data.stores import PLAN_FILE
from jigsaw_forecast.data.training_store import (
    CHECKSUM,
    MOMENTS,
    PROGRESS_FOLDER,
    TIME_UNITS,
    VALUES,
    TrainingSetHeader,
)
from jigsaw_forecast.errors import DataError, OutputError

Checksums = npt.NDArray[np.uint32]

_log = logging.getLogger(__name__)


def plan_digest(plan: Mapping[str, Any]) -> str:
    """Tells whether two conversions are the same."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def find_statics(source: ConvertInput, apart: Path | None) -> dict[str, Array]:
    """Static maps on the grid of the inputs; a warning names those that are not there.

    Args:
        source: The inputs.
        apart: File of the static maps, None where the inputs hold them.

    Raises:
        DataError: They cannot be read, have missing values or cannot be on Earth.
    """
    if apart is not None:
        found = read_statics(apart, source.grid)
    else:
        found = source.statics()
    bad = [text for name, map_ in found.items() if (text := describe_bad_static(name, map_))]
    if bad:
        raise DataError(
            f"{apart or 'the inputs'}: {'; '.join(bad)}; give {'another' if apart else 'a'} file "
            "with --statics"
        )
    if missing := [name for name in STATICS if name not in found]:
        _log.warning(
            "missing static fields %s%s: a model that takes them for forcings cannot be trained on "
            "this set; give a file that holds them with --statics",
            shorten(missing),
            f" in {apart}" if apart else "",
        )
    return found


def finish(work: Work, plan: Mapping[str, Any], statics: Mapping[str, Array]) -> TrainingSetHeader:
    """Writes everything beside the values, the root's attributes last; `put_in_place` follows.

    Plan and progress stay: stopped in here, the same conversion finishes again and converts
    nothing.

    Args:
        work: All shards of it are done.
        plan: What `plan_digest` identifies it by.
        statics: Static maps by name.

    Raises:
        OutputError: The store cannot be written.
    """
    moments, checksums = _gather(work)
    source, layout = work.source, work.layout
    header = TrainingSetHeader(
        grid=source.grid,
        fields=source.fields,
        layout=layout,
        num_times=len(work.times),
        step_hours=int(plan["step_hours"]),
        digest="",
        notice=source.notice,
        sources=tuple(path for path, _ in plan["inputs"]),
    )
    header = replace(header, digest=data_digest(header, work.times, checksums))
    try:
        attributes = {"fields": [field.short_name for field in source.fields]}
        metadata = layout.metadata(len(work.times), attributes)
        (work.folder / VALUES / "zarr.json").write_text(json.dumps(metadata, indent=1))
        group = zarr.open_group(work.folder, mode="a", zarr_format=3)
        _write_axes(group, work)
        for name, map_ in statics.items():
            _write(group, name, map_.astype(np.float32), ("latitude", "longitude"))
        beside = group.require_group(MOMENTS)
        for name, values in moments.to_arrays().items():
            _write(beside, name, values, ("time", "field"))
        _write(beside, CHECKSUM, checksums, ("time", "field"))
        beside.attrs.update({"digest": header.digest, "step_hours": header.step_hours})
        group.attrs.update({**header.to_attributes(), "plan": plan_digest(plan)})
        os.sync()  # a name that says whole must not outlive the bytes in a loss of power
    except OSError as error:
        raise OutputError(
            f"cannot write {work.folder}: {error.strerror}; free some space, then run the same "
            "command again to go on"
        ) from None
    return header


def put_in_place(folder: Path, output: Path) -> None:
    """Renames a finished set to its name; what had that name is deleted after that.

    Stopped at any moment, the same command goes on to the same end: the new set is whole under
    one of its names, with its plan.

    Raises:
        OutputError: It cannot be renamed.
    """
    replaced = _replaced_name(output)
    try:
        if os.path.lexists(output):
            _delete(replaced)  # of a stop before, which the one at the name came after
            os.rename(output, replaced)
        os.rename(folder, output)
    except OSError as error:
        raise OutputError(
            f"cannot rename {folder} to {output}: {error.strerror}; run the same command again"
        ) from None
    clear_leftovers(output)


def clear_leftovers(output: Path) -> None:
    """Deletes what a finished set does not need, the plan last: it tells that there is more."""
    for path in (_replaced_name(output), output / PROGRESS_FOLDER, output / PLAN_FILE):
        _delete(path)
        if os.path.lexists(path):
            _log.warning("%s is not needed any more and cannot be deleted", path)


def _replaced_name(output: Path) -> Path:
    """Where a set that `--overwrite` replaces waits until the new one has its name."""
    return output.with_name(f".{output.name}.replaced")


def _delete(path: Path) -> None:
    """Deletes a file or folder as far as it can be; another process may do the same."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        os.unlink(path)


def data_digest(header: TrainingSetHeader, times: Times, checksums: Checksums) -> str:
    """Tells a training set from any other: by grid, fields, times and all values.

    Args:
        header: Of the set.
        times: All times.
        checksums: Of each map, shape [T, F].
    """
    names = [field.short_name for field in header.fields]
    identity = [header.grid.name, names, [str(time) for time in times]]
    digest = hashlib.sha256(json.dumps(identity).encode())
    digest.update(np.ascontiguousarray(checksums, dtype="<u4").tobytes())
    return digest.hexdigest()


def _gather(work: Work) -> tuple[FieldMoments, Checksums]:
    """All shards' moments and checksums."""
    checksums, parts = [], []
    num_shards = -(-len(work.times) // work.layout.num_times)
    names = FieldMoments.empty(0, 0).to_arrays()
    for shard in range(num_shards):
        with np.load(work.progress_file(shard)) as progress:
            checksums.append(progress[CHECKSUM])
            parts.append(FieldMoments(**{name: progress[name] for name in names}))
    return FieldMoments.join(parts), np.concatenate(checksums)


def _write_axes(group: zarr.Group, work: Work) -> None:
    grid, rows = work.source.grid, work.layout.num_rows
    minutes = work.times.astype("datetime64[m]").astype(np.int64)
    time = _write(group, "time", minutes, ("time",))
    time.attrs.update({"units": TIME_UNITS, "calendar": "proleptic_gregorian"})
    latitude = _write(group, "latitude", grid.latitudes[:rows], ("latitude",))
    latitude.attrs.update({"units": "degrees_north", "standard_name": "latitude"})
    longitude = _write(group, "longitude", grid.longitudes, ("longitude",))
    longitude.attrs.update({"units": "degrees_east", "standard_name": "longitude"})


def _write(group: zarr.Group, name: str, values: Any, dims: tuple[str, ...]) -> zarr.Array[Any]:
    return group.create_array(
        name,
        data=np.ascontiguousarray(values),
        dimension_names=dims,
        fill_value=np.nan if values.dtype.kind == "f" else 0,
        overwrite=True,
    )
