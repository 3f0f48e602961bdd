"""The watch: each rank tells the others that it lives, and says who is missed when one does not.

A thread of every rank writes a heartbeat into the run's store once a second. Where a collective
fails, the heartbeats name the rank that has ended; where one lasts too long, the watch prints this
rank's stacks, names the rank that lags and ends the process, so that its launcher ends the rest.
"""

import contextlib
import faulthandler
import json
import os
import platform
import sys
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any

import torch.distributed as dist

from jigsaw_forecast.errors import MeshError, StoppedError
from jigsaw_forecast.parallel import launch

TIMEOUT_VARIABLE = "JIGSAW_TIMEOUT_S"
DEFAULT_TIMEOUT_S = 600.0
BEAT_PERIOD_S = 1.0
SILENCE_S = 3.5  # a living rank beats three times in it
STORE_TIMEOUT = timedelta(seconds=10)
EXIT_STOPPED = 3


@dataclass
class Beat:
    """What a rank last said of itself.

    Attributes:
        count: Heartbeats so far.
        host: Name of its machine.
        begun: Collectives that it has waited in.
        waits_in: Name of the one that it waits in; empty where it computes.
        note: What it is doing, for people.
    """

    count: int
    host: str
    begun: int
    waits_in: str
    note: str


def read_timeout_s() -> float:
    """Seconds that a rank may wait for the others, from the environment.

    Raises:
        MeshError: The variable is no positive number.
    """
    text = os.environ.get(TIMEOUT_VARIABLE, str(DEFAULT_TIMEOUT_S))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds < 1e7:  # also refuses NaN
        raise MeshError(f"{TIMEOUT_VARIABLE}={text}: expected a positive number of seconds")
    return seconds


class Watch:
    """This rank's watch over the run."""

    def __init__(self, store: Any, rank: int, num_ranks: int, timeout_s: float) -> None:
        """Starts the thread.

        Args:
            store: A connection of its own to the run's store.
            rank: This rank.
            num_ranks: Ranks of the run.
            timeout_s: Longest wait in one collective.
        """
        self.note = ""
        self.num_begun = 0
        self.wait: tuple[str, float] | None = None
        self._store = store
        self._rank = rank
        self._num_ranks = num_ranks
        self._timeout_s = timeout_s
        self._host = platform.node()
        self._count = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        store.set_timeout(STORE_TIMEOUT)
        self._beat()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._ended.set()
        self._thread.join(2 * BEAT_PERIOD_S)

    def explain(self, name: str) -> str:
        """Who is missed in a collective of this name; takes some seconds of looking."""
        try:
            before = self._beats()
            time.sleep(SILENCE_S)
            after = self._beats()
        except (RuntimeError, dist.DistError):
            address = os.environ.get("MASTER_ADDR", "rank 0's host")
            return (
                f"the store of the run at {address} cannot be reached: rank 0 or its launcher has "
                f"ended; rank {self._rank} on host {self._host} waited in {name}"
            )
        silent = [
            rank
            for rank in range(self._num_ranks)
            if rank != self._rank and after[rank].count == before[rank].count
        ]
        others = [rank for rank in range(self._num_ranks) if rank != self._rank]
        busy = [rank for rank in others if not after[rank].waits_in]
        fewest = min(after[rank].begun for rank in busy or others)
        late = [rank for rank in busy or others if after[rank].begun == fewest]
        what = "has ended, is stopped or cannot be reached" if silent else "does not go on"
        who = "; ".join(
            f"rank {rank} on host {after[rank].host} {what}"
            + (f" (last heard of in {after[rank].note})" if after[rank].note else "")
            for rank in silent or late
        )
        return (
            f"{who or 'no rank is missed, the connection broke'}; rank {self._rank} on host "
            f"{self._host} waited in {name}"
        )

    def _run(self) -> None:
        while not self._ended.wait(BEAT_PERIOD_S):
            # a store that is gone shows in a collective that fails or lasts too long
            with contextlib.suppress(RuntimeError, dist.DistError):
                self._beat()
            wait = self.wait
            if wait is not None and time.monotonic() - wait[1] > self._timeout_s:
                self._give_up(wait[0])

    def _give_up(self, name: str) -> None:
        """Ends this process: it has waited too long."""
        sys.stderr.write(f"stacks of rank {self._rank} on host {self._host}, waiting in {name}:\n")
        sys.stderr.flush()
        faulthandler.dump_traceback(all_threads=True)
        text = f"waited {self._timeout_s:g} s ({TIMEOUT_VARIABLE}): {self.explain(name)}"
        if launch.claim_failure(EXIT_STOPPED):
            sys.stderr.write(f"error: {text}\n")
        sys.stderr.flush()
        os._exit(EXIT_STOPPED)

    def _beat(self) -> None:
        self._count += 1
        wait = self.wait
        beat = Beat(self._count, self._host, self.num_begun, wait[0] if wait else "", self.note)
        with self._lock:
            self._store.set(f"watch/{self._rank}", json.dumps(vars(beat)))

    def _beats(self) -> list[Beat]:
        with self._lock:
            texts = self._store.multi_get([f"watch/{rank}" for rank in range(self._num_ranks)])
        return [Beat(**json.loads(text)) for text in texts]


_current: Watch | None = None


def start_watch() -> None:
    """Starts this process's watch over the ranks of torch.distributed, once.

    Communication:
        A connection of its own to the store; waits until every rank's watch has begun.
    """
    global _current
    if _current is not None or dist.get_world_size() == 1:
        return
    store: Any = dist.distributed_c10d._get_default_store()
    _current = Watch(store.clone(), dist.get_rank(), dist.get_world_size(), read_timeout_s())
    store.wait(
        [f"watch/{rank}" for rank in range(dist.get_world_size())],
        timedelta(seconds=read_timeout_s()),
    )


def stop_watch() -> None:
    """Ends this process's watch where there is one."""
    global _current
    if _current is not None:
        _current.close()
        _current = None


def note(text: str) -> None:
    """Notes what this rank is doing, for a message that may have to name it."""
    if _current is not None:
        _current.note = text


class waiting:
    """Within, this rank waits in a collective: a failure there names the rank that is missed.

    Raises:
        StoppedError: The collective failed because another rank has ended.
    """

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        """Takes the collective's name."""
        self._name = name

    def __enter__(self) -> None:
        """Marks the wait."""
        if _current is not None:
            _current.num_begun += 1
            _current.wait = (self._name, time.monotonic())

    def __exit__(
        self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None
    ) -> None:
        """Ends the wait."""
        if _current is None:
            return
        _current.wait = None
        if isinstance(error, RuntimeError):
            raise StoppedError(_current.explain(self._name)) from error
