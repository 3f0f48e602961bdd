"""Turns `--input` into files that are there: local ones as they are, remote ones fetched."""

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jigsaw_forecast.data.acquisition.cache import Cache, CachedFile, cache_folder, digest, key_of
from jigsaw_forecast.data.acquisition.process import run_child
from jigsaw_forecast.data.acquisition.request import InputRequest
from jigsaw_forecast.data.acquisition.spec import (
    URL,
    RemoteSpec,
    fill_template,
    is_template,
    parse_spec,
)
from jigsaw_forecast.data.acquisition.tasks import Task, describe_origin, local_name, make_task
from jigsaw_forecast.data.records import Source
from jigsaw_forecast.data.source import open_source
from jigsaw_forecast.errors import DataError

_log = logging.getLogger(__name__)

_NUM_SHOWN = 6
Key = tuple[np.datetime64, int | None]


@dataclass(frozen=True)
class InputFile:
    """Where the initial state of one initial time and member is read from.

    Attributes:
        path: A file or store that is there.
        member: The member to take from it; None where it holds one, or the run has none.
        origin: Where it came from: a path, a URL, a request.
        sha256: Of a file that was fetched, otherwise None.
    """

    path: Path
    member: int | None
    origin: str
    sha256: str | None = None


class ResolvedInput:
    """The files of a run's initial states; sources are opened once each."""

    def __init__(self, spec: str, files: dict[Key, InputFile]) -> None:
        """Made by `resolve_input`."""
        self.spec = spec
        self._files = files
        self._sources: dict[Path, Source] = {}

    @property
    def names_times(self) -> bool:
        """Whether the spec is a template."""
        return is_template(self.spec)

    @property
    def bytes_read(self) -> int:
        """Bytes taken from all sources so far."""
        return sum(source.bytes_read for source in self._sources.values())

    def file(self, init_time: np.datetime64, member: int | None = None) -> InputFile:
        """The file of an initial time and member."""
        return self._files[init_time.astype("datetime64[s]"), member]

    def source(self, init_time: np.datetime64, member: int | None = None) -> Source:
        """The opened file of an initial time and member.

        Raises:
            DataError: It cannot be opened.
        """
        path = self.file(init_time, member).path
        if path not in self._sources:
            self._sources[path] = open_source(path)
        return self._sources[path]

    def provenance(self) -> list[dict[str, object]]:
        """One entry for each initial time and member, for the record beside a product."""
        digests: dict[Path, str | None] = {}
        entries: list[dict[str, object]] = []
        for (init_time, member), file in self._files.items():
            if file.path not in digests:
                is_file = file.sha256 is None and file.path.is_file()
                digests[file.path] = digest(file.path) if is_file else file.sha256
            entries.append(
                {
                    "init_time": str(init_time),
                    "member": member,
                    "path": str(file.path),
                    "origin": file.origin,
                    "sha256": digests[file.path],
                }
            )
        return entries


def resolve_input(request: InputRequest) -> ResolvedInput:
    """Sees to it that the input of every initial time and member is there.

    Remote sources are fetched into the cache, one file for each initial time, before this
    returns. Processes of one host that ask for the same share the fetch.

    Raises:
        DataError: Files do not exist, a source cannot be reached in time, lacks fields, holds
            another time, or its credentials are missing; all initial times are in the message.
    """
    spec = request.spec
    if spec is None:
        if not request.default.exists():
            raise DataError(
                f"checkpoint {request.default.parent} has no initial conditions of its own: "
                f"missing --input, such as the {request.default.name} of a checkpoint that was "
                "trained on the same weather, or an analysis in GRIB, netCDF or zarr"
            )
        spec = str(request.default)
    files: dict[Key, InputFile] = {}
    fetched: dict[tuple[str, np.datetime64], CachedFile] = {}
    problems: dict[str, None] = {}
    for init_time in request.init_times:
        for member in request.members or (None,):
            start = init_time.astype("datetime64[s]")
            try:
                text = fill_template(spec, start, member)
                is_own_file = text != fill_template(spec, start, None if member is None else -1)
                parsed = parse_spec(text)
                if isinstance(parsed, Path):
                    found = _local(parsed, spec)
                else:
                    shared = () if is_own_file else tuple(request.members)
                    cached = fetched.get((text, start))
                    if cached is None and parsed.source == URL:
                        same = [file for (other, _), file in fetched.items() if other == text]
                        cached = _find_holder(same, start)
                    if cached is None:
                        cached = _fetch(parsed, request, start, shared)
                    fetched[text, start] = cached
                    found = InputFile(cached.path, None, cached.origin, cached.sha256)
            except DataError as fault:
                problems[str(fault)] = None
                continue
            chosen = None if is_own_file else member
            files[start, member] = InputFile(found.path, chosen, found.origin, found.sha256)
    if problems:
        raise DataError("\n".join(problems))
    return ResolvedInput(spec, files)


def local_paths(
    spec: str, init_times: Sequence[np.datetime64], members: Sequence[int]
) -> list[Path]:
    """The files and stores of this machine that a spec names, whether they are there or not."""
    found: dict[Path, None] = {}
    for init_time in init_times:
        for member in members or (None,):
            with suppress(DataError):  # `resolve_input` tells of it
                parsed = parse_spec(fill_template(spec, init_time, member))
                if isinstance(parsed, Path):
                    found[parsed] = None
    return list(found)


def _local(path: Path, spec: str) -> InputFile:
    if not path.exists():
        named = f" (from the template {spec})" if is_template(spec) else ""
        raise DataError(f"cannot read {path}: no such file{named}")
    return InputFile(path, None, str(path))


def _find_holder(files: Sequence[CachedFile], init_time: np.datetime64) -> CachedFile | None:
    """The first of the files that holds an initial time: a URL may be that of many times."""
    for file in files:
        if init_time in open_source(file.path).valid_times():
            return file
    return None


def _fetch(
    spec: RemoteSpec, request: InputRequest, init_time: np.datetime64, members: Sequence[int]
) -> CachedFile:
    """The file of a remote source from the cache, or fetched into it.

    Raises:
        DataError: With the spec and the time before what went wrong.
    """
    task = make_task(spec, request, init_time, members)
    cache = Cache(cache_folder())
    key = key_of(task, local_name(task, init_time))
    title = (
        f"--input {spec.text.removesuffix(':')}: nothing for {init_time.astype('datetime64[m]')}"
    )
    called_s = time.time()
    if not spec.limits.is_refreshed and (found := cache.find(key, is_locked=False)):
        _log.info("input from the cache: %s (%s)", found.path, found.origin)
        return found
    with cache.locked(key, spec.limits.deadline_s + _LOCK_GRACE_S) as has_waited:
        if has_waited and (failure := cache.failure_since(key, called_s)):
            raise DataError(failure)
        takes_cached = has_waited or not spec.limits.is_refreshed
        if takes_cached and (found := cache.find(key, is_locked=True)):
            return found
        try:
            return _fetch_into(cache, key, task, spec, init_time)
        except DataError as fault:
            message = f"{title}: {fault}"
            cache.note_failure(key, message)
            raise DataError(message) from None


_LOCK_GRACE_S = 30.0  # to check and publish what was fetched within the deadline


def _fetch_into(
    cache: Cache, key: str, task: Task, spec: RemoteSpec, init_time: np.datetime64
) -> CachedFile:
    start_s = time.monotonic()
    _log.info("fetching %s for %s", spec.text, init_time.astype("datetime64[m]"))
    with cache.staged(key) as folder:
        target = folder / "target"
        said = run_child({**task, "target": str(target)}, spec.limits, folder)
        _check_fetched(target, init_time, task)
        origin = describe_origin(task, said)
        file = cache.publish(key, target, task, origin)
    seconds = time.monotonic() - start_s
    num_bytes = file.path.stat().st_size
    _log.info("fetched %.1f MB in %.1f s from %s", num_bytes / 1e6, seconds, origin)
    return file


def _check_fetched(target: Path, init_time: np.datetime64, task: Task) -> None:
    """Refuses what is no data file, or of another time than asked for.

    Raises:
        DataError: Names the message.
    """
    try:
        source = open_source(target)
    except DataError as fault:
        raise DataError(str(fault).replace(str(target), "what was fetched")) from None
    # a URL or an archive may give other times too: the plan of the initial state takes its own
    wrong = [
        r for r in source.records() if r.valid_time != init_time and not np.isnat(r.valid_time)
    ]
    if task["kind"] == "open-data" or len(wrong) == len(source.records()):
        found = [
            f"{record.where} ({record.short_name}{record.level or ''}) is valid at "
            f"{record.valid_time.astype('datetime64[m]')}"
            for record in wrong
        ]
        if found:
            more = f" and {len(found) - _NUM_SHOWN} more" if len(found) > _NUM_SHOWN else ""
            raise DataError(
                f"what was fetched is of another time, expected "
                f"{init_time.astype('datetime64[m]')}: {'; '.join(found[:_NUM_SHOWN])}{more}; "
                f"the source is stale{'' if task['kind'] == URL else ' or its index is wrong'}"
            )
