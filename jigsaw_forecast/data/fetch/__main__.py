"""The child process of a fetch: takes its task on stdin, leaves the answer in a file.

It ends with its parent: while it works, a thread waits for the end of stdin, which comes when
the parent ends in whatever way, and then kills the whole process group.
"""

import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from jigsaw_forecast.data.fetch.earthkit_source import fetch_requests
from jigsaw_forecast.data.fetch.faults import FetchError
from jigsaw_forecast.data.fetch.http import Client, Limits
from jigsaw_forecast.data.fetch.messages import fetch_whole
from jigsaw_forecast.data.fetch.open_data import fetch_cycle, find_latest


def main() -> int:
    """Does one task; the exit code is 0 where an answer was left, good or bad."""
    logging.basicConfig(format="%(message)s")  # what the parent quotes where this is killed
    task = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, name="parent watch", daemon=True).start()
    answer_path = Path(task["answer"])
    try:
        answer = {"ok": True, **_do(task)}
    except FetchError as fault:
        answer = {"ok": False, "message": str(fault)}
    except OSError as fault:
        reason = fault.strerror or str(fault)
        answer = {"ok": False, "message": f"cannot write {fault.filename or 'cache'}: {reason}"}
    partial = answer_path.with_suffix(".part")
    partial.write_text(json.dumps(answer))
    partial.replace(answer_path)
    return 0


def _do(task: dict[str, Any]) -> dict[str, Any]:
    limits = Limits(
        end_s=time.monotonic() + task["end_of_time_s"] - time.time(),
        num_attempts=task["num_attempts"],
        stall_s=task["stall_s"],
        backoff_s=task["backoff_s"],
    )
    if task["kind"] == "latest":
        return find_latest(task, limits)
    with open(task["target"], "w+b") as target:
        if task["kind"] == "open-data":
            done = fetch_cycle(task, limits, target)
        elif task["kind"] == "url":
            num_bytes = fetch_whole(Client(limits), task["url"], target)
            done = {"origin": task["url"], "num_messages": None, "num_bytes": num_bytes}
        else:
            done = fetch_requests(task, limits, target)
        target.flush()
        os.fsync(target.fileno())
    return done


def _end_with_parent() -> None:
    while sys.stdin.buffer.read(1):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
