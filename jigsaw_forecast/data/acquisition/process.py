"""Runs one fetch in a child process that is killed at its deadline and ends with its parent."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jigsaw_forecast.data.acquisition.spec import DEADLINE_VARIABLE, FetchLimits
from jigsaw_forecast.errors import DataError
from jigsaw_forecast.parallel.launch import module_arguments

_log = logging.getLogger(__name__)

_NOTICE_PERIOD_S = 10.0
_POLL_S = 0.05
_NUM_LAST_LINES = 5
# The child's own deadline comes a little earlier: it can say what it waits for.
_GRACE_SHARE = 0.05


def run_child(task: Mapping[str, Any], limits: FetchLimits, folder: Path) -> dict[str, Any]:
    """Does a task of `data.fetch` in a child.

    Args:
        task: What to do; the target, where there is one, lies in `folder`.
        limits: On time and attempts.
        folder: Scratch, removed by the caller.

    Returns:
        The child's answer.

    Raises:
        DataError: The task failed or did not end in time; what the child said.
    """
    answer = folder / "answer.json"
    whole = {
        **task,
        "answer": str(answer),
        "end_of_time_s": time.time() + limits.deadline_s * (1.0 - _GRACE_SHARE),
        "num_attempts": limits.num_attempts,
        "stall_s": limits.stall_s,
        "backoff_s": limits.backoff_s,
    }
    with (folder / "log.txt").open("w+", errors="replace") as log:
        process = subprocess.Popen(
            [sys.executable, *module_arguments("jigsaw_forecast.data.fetch")],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(whole).encode() + b"\n")
                process.stdin.flush()
            is_done = _wait(process, limits.deadline_s, whole.get("target"))
        finally:
            _kill(process)
        if not answer.exists():
            log.seek(0)
            last = [line.strip() for line in log if line.strip()][-_NUM_LAST_LINES:]
            raise DataError(_describe_end(is_done, process.returncode, limits.deadline_s, last))
    said: dict[str, Any] = json.loads(answer.read_text())
    if not said["ok"]:
        raise DataError(str(said["message"]))
    return said


def _wait(process: subprocess.Popen[bytes], deadline_s: float, target: str | None) -> bool:
    """Waits for the end of the child, which may not come in time; says now and then what came."""
    start_s = time.monotonic()
    notice_s = start_s + _NOTICE_PERIOD_S
    while process.poll() is None:
        now_s = time.monotonic()
        if now_s - start_s > deadline_s:
            return False
        if now_s > notice_s:
            notice_s = now_s + _NOTICE_PERIOD_S
            _log.info("fetching: %.1f MB in %.0f s", _size(target) / 1e6, now_s - start_s)
        time.sleep(_POLL_S)
    return True


def _describe_end(is_done: bool, code: int, deadline_s: float, last: list[str]) -> str:
    """Why a child left no answer."""
    said = f"; the last that it said: {last[-1]}" if last else ""
    if is_done:
        return f"the fetching process ended with code {code}: {' | '.join(last)}"
    return (
        f"not done within the deadline of {deadline_s:g} s{said}; set {DEADLINE_VARIABLE} or, but "
        "for a URL, add deadline=SECONDS to --input to allow more"
    )


def _size(target: str | None) -> int:
    try:
        return os.stat(target).st_size if target else 0
    except OSError:
        return 0


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Ends the child and all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
