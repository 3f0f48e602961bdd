"""ECMWF open data: which file holds a cycle, which bytes of it are needed, and the newest cycle.

Each GRIB file has an index beside it, one JSON object a line with MARS keys, `_offset` and
`_length`, so that only the messages asked for travel. Source: ECMWF, "Open data: real-time
forecasts" (file naming, index files).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO

from jigsaw_forecast.data.fetch.faults import FetchError
from jigsaw_forecast.data.fetch.http import Client, Limits, StatusError
from jigsaw_forecast.data.fetch.messages import Range, fetch_ranges, fetch_whole

MIRRORS = {
    "ecmwf": "https://data.ecmwf.int/forecasts",
    "aws": "https://ecmwf-forecasts.s3.eu-central-1.amazonaws.com",
    "google": "https://storage.googleapis.com/ecmwf-open-data",
}
CYCLE_HOURS = 6
# From IFS cycle 50r1 on the runs of 06 and 18 UTC are under oper, before under scda.
_ONE_STREAM_SINCE = datetime(2026, 5, 12, tzinfo=UTC)
_OLD_RESOLUTION = "0p4-beta"  # its paths name no model
_NUM_SHOWN = 20
_NOT_THERE = (403, 404)  # object stores answer 403 for what is not there

Wanted = Sequence[Sequence[Sequence[str]]]  # for each field, ways to get it; each a list of keys


@dataclass(frozen=True)
class Cycles:
    """Where the cycles of a stream lie.

    Attributes:
        urls: Roots that hold the same data, tried in turn.
        model: `ifs`, `aifs-single`, ...
        resolution: `0p25`, ...
        stream: `oper` or `enfo`.
    """

    urls: tuple[str, ...]
    model: str
    resolution: str
    stream: str

    def file(self, root: str, init: datetime) -> str:
        """URL of the GRIB file of step 0, without its suffix."""
        stream = self.stream
        if stream == "oper" and init.hour % 12 and init < _ONE_STREAM_SINCE:
            stream = "scda"
        kind = "ef" if stream == "enfo" and self.model == "ifs" else "fc"
        model = "" if self.resolution == _OLD_RESOLUTION else f"{self.model}/"
        return (
            f"{root.rstrip('/')}/{init:%Y%m%d}/{init:%H}z/{model}{self.resolution}/{stream}/"
            f"{init:%Y%m%d%H%M%S}-0h-{stream}-{kind}"
        )


def fetch_cycle(task: Mapping[str, Any], limits: Limits, target: BinaryIO) -> dict[str, Any]:
    """Fetches the messages of one analysis.

    Args:
        task: `cycles`, `init`, `wanted`, `members`.
        limits: On time and attempts.
        target: Takes the messages.

    Returns:
        Where it came from.

    Raises:
        FetchError: All mirrors failed, or the cycle lacks fields; all of them are listed.
    """
    cycles = _cycles(task)
    init = datetime.fromisoformat(task["init"]).replace(tzinfo=UTC)
    faults = []
    for root in cycles.urls:
        client = Client(limits)
        stem = cycles.file(root, init)
        try:
            return _fetch_from(client, cycles, root, init, task, target)
        except FetchError as fault:
            faults.append(f"{fault}" if stem in str(fault) else f"{stem}.grib2: {fault}")
    raise FetchError("\n".join(faults))


def find_latest(task: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """The newest cycle that has every message and whose file is as long as its index says.

    Args:
        task: `cycles`, `wanted`, `members`, `now` and `max_age_hours`.
        limits: On time and attempts.

    Raises:
        FetchError: No mirror could be asked, or the newest complete cycle is older than allowed.
    """
    cycles = _cycles(task)
    now = datetime.fromisoformat(task["now"]).replace(tzinfo=UTC)
    newest = now.replace(hour=now.hour - now.hour % CYCLE_HOURS, minute=0, second=0, microsecond=0)
    span = timedelta(hours=float(task["max_age_hours"]))
    faults: list[str] = []
    seen: list[str] = []
    for root in cycles.urls:
        client = Client(limits)
        try:
            for back in range(int(span.total_seconds() // 3600 // CYCLE_HOURS) + 1):
                init = newest - timedelta(hours=back * CYCLE_HOURS)
                why = _why_incomplete(client, cycles, root, init, task)
                if not why:
                    return {"init": init.replace(tzinfo=None).isoformat(), "skipped": seen}
                seen.append(f"{init:%Y-%m-%dT%H}: {why}")
        except FetchError as fault:
            faults.append(str(fault))
    if faults:
        raise FetchError("\n".join(faults))
    raise FetchError(
        f"{' and '.join(cycles.urls)}: missing a complete cycle of the last "
        f"{task['max_age_hours']:g} hours ({'; '.join(seen[:4])}"
        f"{'; ...' if len(seen) > 4 else ''}); add max-age=HOURS to accept an older one"
    )


def _cycles(task: Mapping[str, Any]) -> Cycles:
    given = task["cycles"]
    return Cycles(tuple(given["urls"]), given["model"], given["resolution"], given["stream"])


class _UnusableError(FetchError):
    """A mirror answers, but what it holds of a cycle cannot be used."""


@dataclass(frozen=True)
class _Part:
    """What a file has for some of the members: which bytes, and which fields not."""

    stem: str
    ranges: list[Range]
    lacking: list[str]
    names: set[str]


def _find_parts(
    client: Client, cycles: Cycles, root: str, init: datetime, task: Mapping[str, Any]
) -> list[_Part]:
    """The files that hold a cycle's messages, and what of them is needed.

    Raises:
        StatusError: There is no index.
        _UnusableError: An index is wrong, or there is none of the control's file.
    """
    wanted, members = task["wanted"], list(task["members"])
    stem = cycles.file(root, init)
    entries = list(_entries(client.text(f"{stem}.index"), stem, init))
    shares = [(stem, entries, members)]
    has_control = any(_member(entry) == 0 for entry in entries)
    if cycles.stream == "enfo" and cycles.model == "ifs" and 0 in members and not has_control:
        # from IFS cycle 50r1 on the control is the forecast of oper
        control = replace(cycles, stream="oper").file(root, init)
        try:
            index = client.text(f"{control}.index")
        except StatusError as fault:
            raise _UnusableError(f"{control}.index: missing the control: {fault}") from None
        perturbed = [member for member in members if member]
        shares = [(control, list(_entries(index, control, init)), [0])]
        shares += [(stem, entries, perturbed)] if perturbed else []
    parts = []
    for name, held, numbers in shares:
        ranges, lacking = _select(held, wanted, numbers)
        parts.append(_Part(name, ranges, lacking, {str(entry.get("param")) for entry in held}))
    return parts


def _fetch_from(
    client: Client,
    cycles: Cycles,
    root: str,
    init: datetime,
    task: Mapping[str, Any],
    target: BinaryIO,
) -> dict[str, Any]:
    stem = cycles.file(root, init)
    try:
        parts = _find_parts(client, cycles, root, init, task)
    except StatusError as fault:
        if fault.status not in _NOT_THERE:
            raise FetchError(f"{stem}.index: {fault}") from None
        return _fetch_without_index(client, stem, target)
    faults = [
        f"{part.stem}.index: missing {', '.join(part.lacking)}; it has "
        f"{', '.join(sorted(part.names)[:_NUM_SHOWN])}"
        f"{', ...' if len(part.names) > _NUM_SHOWN else ''}"
        for part in parts
        if part.lacking
    ]
    if faults:
        raise FetchError("\n".join(faults))
    num_bytes = 0
    for part in parts:
        num_bytes += fetch_ranges(client, f"{part.stem}.grib2", part.ranges, target, num_bytes)
    return {
        "origin": " ".join(f"{part.stem}.grib2" for part in parts),
        "num_messages": sum(len(part.ranges) for part in parts),
        "num_bytes": num_bytes,
    }


def _fetch_without_index(client: Client, stem: str, target: BinaryIO) -> dict[str, Any]:
    """The whole file, where a mirror keeps no index."""
    try:
        num_bytes = fetch_whole(client, f"{stem}.grib2", target)
    except StatusError as fault:
        if fault.status not in _NOT_THERE:
            raise FetchError(f"{stem}.grib2: {fault}") from None
        raise FetchError(
            f"missing cycle: neither {stem}.index nor {stem}.grib2 exists (HTTP status "
            f"{fault.status}): not published yet, or no longer kept; --init latest takes the "
            "newest complete cycle"
        ) from None
    return {"origin": f"{stem}.grib2", "num_messages": None, "num_bytes": num_bytes}


def _why_incomplete(
    client: Client, cycles: Cycles, root: str, init: datetime, task: Mapping[str, Any]
) -> str:
    """Why a cycle cannot be used yet, otherwise empty."""
    stem = cycles.file(root, init)
    try:
        parts = _find_parts(client, cycles, root, init, task)
        sizes = [client.size(f"{part.stem}.grib2") for part in parts]
    except StatusError as fault:
        if fault.status in _NOT_THERE:
            return "not there"
        raise
    except _UnusableError as fault:
        return str(fault).removeprefix(f"{stem}.index: ")
    for part, size in zip(parts, sizes, strict=True):
        if part.lacking:
            return f"missing {', '.join(part.lacking[:_NUM_SHOWN])}"
        end = max(offset + length for offset, length in part.ranges)
        if size is not None and size < end:
            return f"its file has {size} bytes so far, its index says {end}"
    return ""


def _entries(index: str, stem: str, init: datetime) -> Iterator[dict[str, Any]]:
    """The lines of an index.

    Raises:
        _UnusableError: A line is no JSON object with offset and length, or is of another cycle.
    """
    for number, line in enumerate(index.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            is_entry = int(entry["_offset"]) >= 0 and int(entry["_length"]) > 0
        except (ValueError, TypeError, KeyError):
            is_entry = False
        if not is_entry:
            raise _UnusableError(f"{stem}.index: line {number} is no index entry: {line[:60]!r}")
        found = f"{entry.get('date', '')}{entry.get('time', '')}"
        if found and found != f"{init:%Y%m%d%H%M}":
            raise _UnusableError(
                f"{stem}.index: line {number} is of cycle {found}, expected {init:%Y%m%d%H%M}: "
                "the server holds another cycle's file under this name"
            )
        yield entry
    if not index.strip():
        raise _UnusableError(f"{stem}.index: it is empty")


def _select(
    entries: Sequence[Mapping[str, Any]], wanted: Wanted, members: Sequence[int]
) -> tuple[list[Range], list[str]]:
    """Ranges of the messages of every field, and the names of the fields that have none."""
    found: dict[tuple[str, str, int], Range] = {}
    for entry in entries:
        if str(entry.get("step", "0")) != "0":
            continue
        level = str(entry.get("levelist", "")) if entry.get("levtype") == "pl" else ""
        place = int(entry["_offset"]), int(entry["_length"])
        found.setdefault((str(entry.get("param")), level, _member(entry)), place)
    ranges: dict[Range, None] = {}
    lacking = []
    for member in members or (0,):
        for ways in wanted:
            places = _first_way(found, ways, member)
            if places is None:
                suffix = f" of member {member}" if members else ""
                lacking.append(f"{_name(ways[0][0])}{suffix}")
            ranges.update(dict.fromkeys(places or ()))
    return list(ranges), lacking


def _member(entry: Mapping[str, Any]) -> int:
    """The control has no number."""
    return int(entry.get("number", 0) or 0)


def _first_way(
    found: Mapping[tuple[str, str, int], Range], ways: Sequence[Sequence[str]], member: int
) -> list[Range] | None:
    """Places of the first way of which all messages are there."""
    for way in ways:
        keys = [(param, level, member) for param, _, level in (key.partition("@") for key in way)]
        if all(key in found for key in keys):
            return [found[key] for key in keys]
    return None


def _name(key: str) -> str:
    """`z500` of `z@500`."""
    return key.replace("@", "")
