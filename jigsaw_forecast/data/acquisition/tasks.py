"""From a remote spec and a run's needs to the task of a fetch."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from jigsaw_forecast.data.acquisition.credentials import check_credentials
from jigsaw_forecast.data.acquisition.request import InputRequest
from jigsaw_forecast.data.acquisition.spec import CDS, MARS, OPEN_DATA, URL, RemoteSpec
from jigsaw_forecast.data.fetch.open_data import CYCLE_HOURS, MIRRORS
from jigsaw_forecast.errors import DataError
from jigsaw_forecast.fields import Field, LevelType
from jigsaw_forecast.grid import Grid

URL_VARIABLE = "JIGSAW_OPEN_DATA_URL"  # roots of open data, joined by commas
CLIENT_URLS_VARIABLE = "ECMWF_OPENDATA_URLS"  # ecmwf-opendata's: a JSON object by mirror's name
_OPEN_DATA_OPTIONS = ("url", "mirror", "model", "resol", "stream", "max-age")
_CONTROL_IS_OPER_SINCE = datetime(2026, 5, 12, 6)  # UTC; IFS cycle 50r1
_MIRROR_ORDER = ("ecmwf", "aws", "google")
# Where open data and archives name a surface variable otherwise than by its short name.
_SURFACE_NAMES = {"geopotential_at_surface": "z"}
# What stands in for a field, by converting (conversions.py); keys as `param@level`.
_INSTEAD: dict[str, tuple[str, ...]] = {"geopotential": ("gh",), "specific_humidity": ("r", "t")}

Task = dict[str, Any]


def make_task(
    spec: RemoteSpec, request: InputRequest, init_time: np.datetime64, members: Sequence[int]
) -> Task:
    """What the child is to fetch for one initial time.

    Args:
        spec: The source.
        request: What the run needs.
        init_time: UTC.
        members: Those that the file is to hold, empty where the run has none.

    Raises:
        DataError: The source has no such time, an option is unknown, or credentials or packages
            are missing.
    """
    make = _MAKERS.get(spec.source, _earthkit_task)
    return make(spec, request, init_time, members)


def open_data_cycles(spec: RemoteSpec, members: Sequence[int]) -> Task:
    """Where a spec looks for open data: by default in the ensemble where a run has members.

    Raises:
        DataError: Options are unknown or contradict each other; all are listed.
    """
    options = spec.options
    problems = [
        f"unknown option {key}; known: {', '.join(_OPEN_DATA_OPTIONS)}, deadline, attempts, "
        "stall, backoff, refresh"
        for key in options
        if key not in _OPEN_DATA_OPTIONS
    ]
    problems += [f"{part!r} is not KEY=VALUE" for part in spec.arguments]
    mirrors = dict(MIRRORS)
    if named := os.environ.get(CLIENT_URLS_VARIABLE):
        try:
            mirrors |= {str(key): str(url) for key, url in json.loads(named).items()}
        except (ValueError, AttributeError):
            problems.append(f"{CLIENT_URLS_VARIABLE} is not a JSON object of URLs by name")
    mirror = options.get("mirror")
    if mirror is not None and mirror not in mirrors:
        problems.append(f"unknown mirror {mirror}; known: {', '.join(mirrors)}")
    if "url" in options and mirror is not None:
        problems.append("give url or mirror, not both")
    if problems:
        raise DataError(f"--input {spec.text}: {'; '.join(problems)}")
    if "url" in options:
        urls = [options["url"]]
    elif mirror is not None:
        urls = [mirrors[mirror]]
    elif os.environ.get(URL_VARIABLE):
        urls = [url.strip() for url in os.environ[URL_VARIABLE].split(",") if url.strip()]
    else:
        urls = [mirrors[name] for name in _MIRROR_ORDER]
    return {
        "urls": urls,
        "model": options.get("model", "ifs"),
        "resolution": options.get("resol", "0p25"),
        "stream": options.get("stream", "enfo" if any(members) else "oper"),
    }


def wanted_messages(fields: Sequence[Field]) -> list[list[list[str]]]:
    """For each field the ways to get it from an index, best first, each a list of messages.

    A message is `param` or `param@level`. Fields that are converted from others name those.
    """
    ways: list[list[list[str]]] = []
    for field in fields:
        if field.spec.level_type is LevelType.SURFACE:
            ways.append([[_SURFACE_NAMES.get(field.variable, field.spec.short_name)]])
            continue
        own = [f"{field.spec.short_name}@{field.level_hpa}"]
        instead = [f"{name}@{field.level_hpa}" for name in _INSTEAD.get(field.variable, ())]
        ways.append([own, instead] if instead else [own])
    return ways


def _open_data_task(
    spec: RemoteSpec, request: InputRequest, init_time: np.datetime64, members: Sequence[int]
) -> Task:
    start = init_time.astype("datetime64[s]").item()
    if start.hour % CYCLE_HOURS or start.minute or start.second:
        raise DataError(
            f"--input {spec.text}: open data has analyses at 00, 06, 12 and 18 UTC, not at "
            f"{start:%Y-%m-%dT%H:%M}"
        )
    return {
        "kind": OPEN_DATA,
        "cycles": open_data_cycles(spec, members),
        "init": start.isoformat(),
        "wanted": wanted_messages(request.fields),
        "members": list(members),
    }


def _url_task(
    spec: RemoteSpec, request: InputRequest, init_time: np.datetime64, members: Sequence[int]
) -> Task:
    # what lies under one URL changes from day to day: each initial time has its own copy
    return {"kind": URL, "url": spec.arguments[0], "init": str(init_time.astype("datetime64[s]"))}


def _mars_task(
    spec: RemoteSpec, request: InputRequest, init_time: np.datetime64, members: Sequence[int]
) -> Task:
    check_credentials(MARS)
    start = init_time.astype("datetime64[s]").item()
    base: dict[str, object] = {
        "class": "od",
        "expver": "1",
        "date": f"{start:%Y-%m-%d}",
        "time": f"{start:%H:%M:%S}",
        "grid": archive_grid(request.grid),
    }
    given = _lists(spec.options)
    is_whole = "param" in given or "levtype" in given
    parts = [{}] if is_whole else _mars_parts(request.fields)
    if not members:
        kinds: list[dict[str, object]] = [{"stream": "oper", "type": "an"}]
    elif "type" in given or "number" in given:
        kinds = [_perturbed(members)]
    else:
        kinds = _mars_kinds(given, start, members)
        given = {key: value for key, value in given.items() if key != "stream"}
    requests = [base | kind | part | given for kind in kinds for part in parts]
    return {"kind": "earthkit", "source": MARS, "requests": [_call(r) for r in requests]}


def _mars_kinds(
    given: Mapping[str, object], start: datetime, members: Sequence[int]
) -> list[dict[str, object]]:
    """Where an archive has the control, which is member 0, and the perturbed members.

    Source: ECMWF, "MARS keywords: type, number" (cf has no number, pf begins with 1) and
    "Implementation of IFS Cycle 50r1" (no cf of enfo from there on: the control is oper's fc).
    """
    stream = given.get("stream", "enfo")
    is_ifs = given.get("class", "od") == "od" and stream == "enfo"
    control: dict[str, object] = {"stream": stream, "type": "cf", "step": "0"}
    if is_ifs and start >= _CONTROL_IS_OPER_SINCE:
        control |= {"stream": "oper", "type": "fc"}
    kinds = [control] if 0 in members else []
    perturbed = [member for member in members if member]
    return [*kinds, _perturbed(perturbed) | {"stream": stream}] if perturbed else kinds


def _perturbed(members: Sequence[int]) -> dict[str, object]:
    numbers = [str(member) for member in members]
    return {"stream": "enfo", "type": "pf", "step": "0", "number": numbers}


def _mars_parts(fields: Sequence[Field]) -> list[dict[str, object]]:
    """Pressure levels and surface: archives keep them apart."""
    levels = [field for field in fields if field.level_hpa]
    surface = [field for field in fields if not field.level_hpa]
    parts: list[dict[str, object]] = []
    if levels:
        parts.append(
            {
                "levtype": "pl",
                "levelist": [str(level) for level in sorted({f.level_hpa for f in levels})],
                "param": _param_ids(levels),
            }
        )
    if surface:
        parts.append({"levtype": "sfc", "param": _param_ids(surface)})
    return parts


def _param_ids(fields: Sequence[Field]) -> list[str]:
    return [f"{param}.128" for param in dict.fromkeys(f.spec.param_ids[0] for f in fields)]


def _cds_task(
    spec: RemoteSpec, request: InputRequest, init_time: np.datetime64, members: Sequence[int]
) -> Task:
    check_credentials(CDS)
    start = init_time.astype("datetime64[s]").item()
    base: dict[str, object] = {
        "product_type": ["ensemble_members" if members else "reanalysis"],
        "year": [f"{start:%Y}"],
        "month": [f"{start:%m}"],
        "day": [f"{start:%d}"],
        "time": [f"{start:%H:%M}"],
        "data_format": "grib",
        "download_format": "unarchived",
        "grid": archive_grid(request.grid),
    }
    given = _lists(spec.options)
    if spec.arguments:
        return _calls(CDS, [_call(base | given, spec.arguments[0])])
    parts = [
        ("reanalysis-era5-pressure-levels", [f for f in request.fields if f.level_hpa]),
        ("reanalysis-era5-single-levels", [f for f in request.fields if not f.level_hpa]),
    ]
    calls = []
    for dataset, fields in parts:
        names = [_CDS_NAMES.get(f.variable, f.variable) for f in fields]
        part: dict[str, object] = {"variable": list(dict.fromkeys(names))}
        if any(f.level_hpa for f in fields):
            part["pressure_level"] = [str(level) for level in sorted({f.level_hpa for f in fields})]
        if fields:
            calls.append(_call(base | part | given, dataset))
    return _calls(CDS, calls)


_CDS_NAMES = {"geopotential_at_surface": "geopotential"}


def _earthkit_task(
    spec: RemoteSpec, request: InputRequest, init_time: np.datetime64, members: Sequence[int]
) -> Task:
    check_credentials(spec.source)
    return _calls(spec.source, [_call(_lists(spec.options), *spec.arguments)])


_MAKERS: Mapping[str, Callable[[RemoteSpec, InputRequest, np.datetime64, Sequence[int]], Task]] = {
    OPEN_DATA: _open_data_task,
    URL: _url_task,
    MARS: _mars_task,
    CDS: _cds_task,
}


def archive_grid(grid: Grid) -> list[float]:
    """Increments that archives are asked for: the model's own, or as fine with pole rows.

    East-west first, then north-south (ECMWF, "MARS keywords: grid").
    """
    rows = grid.num_lat - 1 if grid.has_poles else grid.num_lat
    return [360.0 / grid.num_lon, 180.0 / rows]


def _lists(options: Mapping[str, str]) -> dict[str, object]:
    """Values as the clients take them: those joined by `/` as lists."""
    return {key: value.split("/") if "/" in value else value for key, value in options.items()}


def _call(options: Mapping[str, object], *arguments: str) -> Task:
    return {"arguments": list(arguments), "options": dict(options)}


def _calls(source: str, calls: Sequence[Task]) -> Task:
    return {"kind": "earthkit", "source": source, "requests": list(calls)}


def describe_origin(task: Task, said: Mapping[str, Any]) -> str:
    """Where a file came from, for records and messages."""
    if task["kind"] != "earthkit":
        return str(said["origin"])
    return f"{task['source']} {json.dumps(task['requests'], sort_keys=True)}"


def local_name(task: Task, init_time: np.datetime64) -> str:
    """The readable part of a cache key."""
    name = task.get("source", task["kind"])
    stamp = init_time.astype("datetime64[m]").item()
    if task["kind"] == URL:
        stem = Path(task["url"].partition("?")[0]).name
        readable = "".join(c if c.isalnum() or c in "-_" else "-" for c in stem)[:60]
        return f"url-{readable}-{stamp:%Y%m%dT%H}"
    return f"{name}-{stamp:%Y%m%dT%H}"
