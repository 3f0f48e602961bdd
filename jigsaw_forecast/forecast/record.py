"""The files beside a product: what is done while it grows, and where it came from when whole.

`NAME.progress` is there while a product grows: lines of JSON, each written whole. The first says
what run makes the product, and each `done` line marks a lead time of which every map is written:
downstream work may start on it, in `NAME.partial`. `NAME.json` is written just before a product
takes its name: command, versions, checkpoint, input, mesh, hosts, timings.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from jigsaw_forecast.errors import OutputError
from jigsaw_forecast.forecast.product import ONE_HOUR, Mark, Slot
from jigsaw_forecast.forecast.schedule import Start
from jigsaw_forecast.forecast.staging import remove_if_possible, reported

PROGRESS_SUFFIX, RECORD_SUFFIX = ".progress", ".json"
_FORMAT = "jigsaw-forecast product 1"
_LONGEST_SHOWN = 90

Fingerprint = Mapping[str, str]  # what a run must have in common with the one that it goes on with
StateDigests = Mapping[str, str]  # field -> digest of its initial values
Finding = Mapping[str, Any]  # of a field that left its plausible range


@dataclass
class Progress:
    """What `NAME.progress` says.

    Attributes:
        run: Fingerprint of the run that makes the product.
        states: Digests of the initial states that forecasts were started from.
        marks: Lead times that are done, in order.
        implausible: What left its plausible range up to them.
    """

    run: Fingerprint
    states: dict[Start, StateDigests] = field(default_factory=dict)
    marks: dict[Slot, Mark] = field(default_factory=dict)
    implausible: list[Finding] = field(default_factory=list)

    def lines(self) -> list[dict[str, Any]]:
        """As the file holds it."""
        return [
            {"format": _FORMAT, "run": dict(self.run)},
            *(start_line(start, digests) for start, digests in self.states.items()),
            *([implausible_line(self.implausible)] if self.implausible else []),
            *(done_line(slot, mark) for slot, mark in self.marks.items()),
        ]


def start_line(start: Start, digests: StateDigests) -> dict[str, Any]:
    """The line that notes what a forecast starts from."""
    return {"start": [str(start.init_time), start.member], "state": dict(digests)}


def done_line(slot: Slot, mark: Mark) -> dict[str, Any]:
    """The line that marks a lead time as done."""
    return {
        "done": [str(slot.init_time), slot.lead_hours, slot.member],
        "valid_time": str(slot.init_time + slot.lead_time),
        **mark,
    }


def implausible_line(found: Sequence[Finding]) -> dict[str, Any]:
    """The line that notes what left its plausible range before the lead times that follow."""
    return {"implausible": [dict(item) for item in found]}


def progress_path(product: Path) -> Path:
    """`NAME.progress`."""
    return product.with_name(product.name + PROGRESS_SUFFIX)


def record_path(product: Path) -> Path:
    """`NAME.json`."""
    return product.with_name(product.name + RECORD_SUFFIX)


def read_progress(product: Path) -> Progress | None:
    """What `NAME.progress` says, None where there is none that can be read.

    A line without its end was being written when its run was killed, and does not count.
    """
    try:
        text = progress_path(product).read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.splitlines(keepends=True) if line[-1] == "\n"]
        if not lines or lines[0].get("format") != _FORMAT:
            return None
        progress = Progress(lines[0]["run"])
        for line in lines[1:]:
            if "start" in line:
                init, member = line.pop("start")
                progress.states[Start(np.datetime64(init, "s"), member)] = line["state"]
            elif "implausible" in line:
                progress.implausible += line["implausible"]
            elif "done" in line:
                init, hours, member = line.pop("done")
                del line["valid_time"]
                slot = Slot.of(np.datetime64(init), hours * ONE_HOUR, member)
                progress.marks[slot] = line
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return progress


def write_progress(product: Path, progress: Progress) -> None:
    """Writes `NAME.progress` anew, whole."""
    lines = (json.dumps(line) + "\n" for line in progress.lines())
    _write_whole(product, progress_path(product), "".join(lines))


def append_progress(product: Path, line: Mapping[str, Any]) -> None:
    """Adds one line to `NAME.progress`, by one call of the system."""
    with reported(product), progress_path(product).open("ab", buffering=0) as file:
        file.write((json.dumps(line) + "\n").encode())


def remove_progress(product: Path) -> None:
    """Removes `NAME.progress`."""
    remove_if_possible(progress_path(product))


def write_record(product: Path, record: Mapping[str, Any]) -> None:
    """Writes `NAME.json`, whole."""
    text = json.dumps({"format": _FORMAT, **record}, indent=1, default=str) + "\n"
    _write_whole(product, record_path(product), text)


def read_record(product: Path) -> dict[str, Any] | None:
    """What `NAME.json` says, None where there is none of a run's."""
    try:
        record = json.loads(record_path(product).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_own = isinstance(record, dict) and record.get("format") == _FORMAT
    return record if is_own else None


def recorded_states(record: Mapping[str, Any]) -> dict[Start, StateDigests]:
    """What the forecasts of a product were started from, as its record has it."""
    return {
        Start(np.datetime64(item["init_time"], "s"), item["member"]): item["sha256"]
        for item in record.get("initial_states", [])
    }


def check_record_name(product: Path) -> None:
    """Refuses to write a record over somebody else's file.

    Raises:
        OutputError: `NAME.json` is there and no run has written it.
    """
    path = record_path(product)
    if path.exists() and read_record(product) is None:
        raise OutputError(
            f"{path} exists and is no record of a run, which would be written there; move it away "
            "or choose another --output"
        )


def describe_differences(there: Fingerprint, here: Fingerprint) -> list[str]:
    """`precision: float32 there, bfloat16 here` for each that differs."""
    return [
        f"{name}: {_shorten(there.get(name) or 'nothing')} there, "
        f"{_shorten(here.get(name) or 'nothing')} here"
        for name in dict.fromkeys((*here, *there))
        if there.get(name) != here.get(name)
    ]


def describe_changed_state(start: Start, there: StateDigests, here: StateDigests) -> str:
    """Which fields of an initial state are not what a forecast was started from, if any."""
    names = [name for name in dict.fromkeys((*here, *there)) if there.get(name) != here.get(name)]
    if not names:
        return ""
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return f"input: the initial state of {start} is another in {shown}"


def now_text() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def list_times(times: Sequence[np.datetime64]) -> str:
    """First and last of many times."""
    texts = [str(time.astype("datetime64[m]")) for time in times]
    return ",".join(texts) if len(texts) <= 4 else f"{texts[0]}..{texts[-1]} ({len(texts)})"


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _write_whole(product: Path, path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}.tmp")
    with reported(product):
        try:
            with fresh.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, path)
        except OSError:
            remove_if_possible(fresh)
            raise
