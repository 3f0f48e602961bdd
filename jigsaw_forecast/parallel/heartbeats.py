"""What ranks say of themselves while they run, and who is missed by what they said."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

MOST_NAMED = 4  # ranks that one message lists

ProcessState = Literal["runs", "stopped", "gone", "unknown"]


@dataclass(frozen=True)
class Beat:
    """What a rank last said of itself.

    Attributes:
        count: Heartbeats so far; one that no longer grows is a rank that is gone or stopped.
        at_s: Seconds since the watch began, which all ranks did at nearly the same time.
        host: Name of its machine.
        pid: Its process there.
        started: When that process began, in the kernel's ticks, which tells it from a later one
            of the same number; 0 where the system does not say.
        begun: Collectives that it has begun to wait in.
        waits_in: Name of the one that it waits in; empty where it computes.
        note: What it is doing, for people.
        closed: Whether it has left the run.
    """

    count: int
    at_s: float
    host: str
    pid: int
    started: int
    begun: int
    waits_in: str
    note: str
    closed: bool


@dataclass(frozen=True)
class Finding:
    """Why a collective does not end.

    Attributes:
        text: For people: the ranks that are missed, with their hosts.
        ranks: Those ranks.
        is_certain: Whether a rank has ended or is silent, rather than slow.
    """

    text: str
    ranks: tuple[int, ...]
    is_certain: bool


def process_start(pid: int) -> int:
    """When a process of this machine began, in the kernel's ticks; 0 where that is unknown."""
    fields = _process_fields(pid)
    return int(fields[19]) if fields else 0


def process_state(pid: int, started: int) -> ProcessState:
    """Whether a process of this machine runs; `unknown` where the system does not say.

    Args:
        pid: Its number.
        started: Its `process_start`.
    """
    if not started:
        return "unknown"
    fields = _process_fields(pid)
    if fields is None or int(fields[19]) != started or fields[0] in "ZX":
        return "gone"
    return "stopped" if fields[0] in "Tt" else "runs"


def _process_fields(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third (state) on, proc(5); None without them."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()  # the name before it may hold spaces


def find_ended(rank: int, beats: Sequence[Beat]) -> Finding | None:
    """The ranks that have surely ended: those that said so, or whose process here is gone."""
    host = beats[rank].host
    ended = [
        other
        for other, beat in enumerate(beats)
        if other != rank
        and (beat.closed or (beat.host == host and process_state(beat.pid, beat.started) == "gone"))
    ]
    if not ended:
        return None
    return Finding(_list([f"{_name(other, beats)} has ended" for other in ended]), (*ended,), True)


def find_missed(rank: int, before: Sequence[Beat], after: Sequence[Beat]) -> Finding:
    """The ranks that keep this one waiting.

    Those that ended come first, then those that fell silent, then those that do not wait
    themselves, then those that have begun the fewest collectives.

    Args:
        rank: This rank, which looks.
        before: The heartbeats of all ranks.
        after: The same, several periods later.
    """
    if ended := find_ended(rank, after):
        return ended
    others = [other for other in range(len(after)) if other != rank]
    silent = [other for other in others if after[other].count == before[other].count]
    if silent:
        now_s = max(beat.at_s for beat in after)
        lines = [_describe_silent(other, after, now_s, after[rank].host) for other in silent]
        return Finding(_list(lines), (*silent,), True)
    computing = [other for other in others if not after[other].waits_in]
    if not computing and len({after[other].begun for other in range(len(after))}) == 1:
        waits = [f"rank {other} waits in {beat.waits_in}" for other, beat in enumerate(after)]
        return Finding(f"no rank lags and no rank goes on: {_list(waits)}", (*others,), False)
    fewest = min(after[other].begun for other in computing or others)
    late = [other for other in computing or others if after[other].begun == fewest]
    lines = [_describe_late(other, rank, after) for other in late]
    return Finding(_list(lines), (*late,), False)


def _describe_silent(rank: int, beats: Sequence[Beat], now_s: float, own_host: str) -> str:
    beat = beats[rank]
    is_stopped = (
        beat.host == own_host and process_state(beat.pid, beat.started) == "stopped"
    )  # only its own machine can tell
    what = "is stopped by a signal" if is_stopped else "has ended or cannot be reached"
    note = f", in {beat.note}" if beat.note else ""
    return f"{_name(rank, beats)} {what} (last heard of {now_s - beat.at_s:.0f} s ago{note})"


def _describe_late(rank: int, own_rank: int, beats: Sequence[Beat]) -> str:
    beat = beats[rank]
    behind = beats[own_rank].begun - beat.begun
    notes = [
        *([f"last heard of in {beat.note}"] if beat.note else []),
        *([f"waits in {beat.waits_in}"] if beat.waits_in else []),
        *([f"{behind} collectives behind"] if behind > 1 else []),
    ]
    detail = f" ({', '.join(notes)})" if notes else ""
    return f"{_name(rank, beats)} does not go on{detail}"


def _name(rank: int, beats: Sequence[Beat]) -> str:
    return f"rank {rank} on host {beats[rank].host}"


def _list(lines: Sequence[str]) -> str:
    hidden = len(lines) - MOST_NAMED
    return "; ".join([*lines[:MOST_NAMED], *([f"{hidden} more ranks alike"] if hidden > 0 else [])])


def own_start() -> int:
    """When this process began."""
    return process_start(os.getpid())
