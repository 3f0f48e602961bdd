"""The watch: each rank tells the others that it lives, and says who is missed when one does not.

A thread of every rank writes a heartbeat into the run's store once a second. Where a collective
fails, the heartbeats name the rank that has ended. Where one lasts too long, a second thread, which
never waits for the store, prints this rank's stacks, names the rank that lags and ends the process.
The first rank that gives up leaves a notice in the store, and no rank outlives it for long.
"""

import atexit
import contextlib
import faulthandler
import json
import os
import platform
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from jigsaw_forecast.errors import StoppedError
from jigsaw_forecast.parallel import launch
from jigsaw_forecast.parallel.heartbeats import (
    Beat,
    Finding,
    find_ended,
    find_missed,
    own_start,
    process_state,
)

BEAT_PERIOD_S = 1.0
SILENCE_S = 3.5  # a living rank beats three times in it
STORE_PATIENCE_S = 5.0
GUARD_PERIOD_S = 0.25
LAST_LOOK_S = 1.5  # for a lagging rank to read the notice and print its stacks
OUTLIVE_S = 30.0  # how long a rank may go on after another has ended the run
EXIT_STOPPED = 3
_END = "end"

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class _Notice:
    """Why the run is over, as the first rank that knew it said.

    Attributes:
        text: For people.
        ranks: Those to blame, which print their stacks where they still can.
    """

    text: str
    ranks: tuple[int, ...]


class Watch:
    """This rank's watch over the run.

    Attributes:
        note: What the rank is doing, for people.
        waits_in: Name of the collective that the rank waits in; empty where it computes.
        num_begun: Collectives that it has begun to wait in.
    """

    def __init__(self, store: TCPStore, rank: int, num_ranks: int, timeout_s: float) -> None:
        """Starts the threads.

        Args:
            store: The run's store; the watch keeps it open and makes a connection of its own.
            rank: This rank.
            num_ranks: Ranks of the run.
            timeout_s: Longest wait in one collective.

        Communication:
            Waits until every rank's watch has begun; then a text to the store every second.
        """
        self.note = ""
        self.waits_in = ""
        self.num_begun = 0
        self._rank = rank
        self._num_ranks = num_ranks
        self._timeout_s = timeout_s
        self._host = platform.node()
        self._process = (os.getpid(), own_start())
        self._count = 0
        self._closed = False
        self._notice: _Notice | None = None
        self._told = False
        self._has_dumped = False
        self._has_failed = False
        self._ended = threading.Event()
        self._shared_store = store
        self._store = PrefixStore(_prefix(), _connect(store))
        self._lock = threading.Lock()
        self._origin_s = time.monotonic()
        self._beat()
        keys = [_key(other) for other in range(num_ranks)]
        self._store.wait(keys, timedelta(seconds=timeout_s))
        self._origin_s = time.monotonic()
        self._first_beats = self._read_beats()
        self._threads = [
            threading.Thread(target=run, name=name, daemon=True)
            for run, name in ((self._send_beats, "heartbeat"), (self._guard, "watch"))
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Ends the threads and tells the others that this rank has left."""
        self._ended.set()
        for thread in self._threads:
            thread.join(BEAT_PERIOD_S)
        self._closed = True
        with contextlib.suppress(RuntimeError, TimeoutError):
            self._ask(self._beat)

    def explain(self, name: str, *, at_once: bool = False) -> Finding:
        """Who is missed in a collective of this name; takes some seconds of looking.

        Args:
            name: The collective.
            at_once: Whether a process of this machine that is gone ends the look.
        """
        waited = f"; rank {self._rank} on host {self._host} waited in {name}"
        try:
            if notice := self._ask(self._read_notice):
                return Finding(notice.text, notice.ranks, True)
            before = self._ask(self._read_beats)
            found = find_ended(self._rank, before) if at_once else None
            if found is None:
                time.sleep(SILENCE_S)
                found = find_missed(self._rank, before, self._ask(self._read_beats))
                if notice := self._ask(self._read_notice):
                    return Finding(notice.text, notice.ranks, True)
        except (RuntimeError, TimeoutError):
            found = self._explain_lost_store()
        return Finding(f"{found.text}{waited}", found.ranks, found.is_certain)

    def find_ended_peer(self) -> str:
        """Which rank has ended the run, as far as is known by now; empty where none has."""
        try:
            notice = self._ask(self._read_notice)
            found = None if notice else find_ended(self._rank, self._ask(self._read_beats))
        except (RuntimeError, TimeoutError):
            return self._explain_lost_store().text
        if notice:
            return notice.text
        return found.text if found else ""

    def tell(self, message: str) -> None:
        """Tells the other ranks why this one ends; the first to do so is believed."""
        if message and not self._told:
            text = f"rank {self._rank} on host {self._host} has ended: {message}"
            self._post(_Notice(text, (self._rank,)))

    def fail(self, name: str, error: RuntimeError) -> None:
        """Raises what a collective's failure means.

        Raises:
            StoppedError: Another rank has ended. Any other failure is left to the caller.
        """
        self._has_failed = True
        # Where this project's own launcher started the ranks, it knows more, the signal, and is
        # given the time to say so and to stop this rank.
        found = self.explain(name, at_once=not launch.launched_here())
        if not found.is_certain and not _is_of_connection(error):
            return
        self._post(_Notice(found.text, found.ranks))
        raise StoppedError(found.text) from error

    def _send_beats(self) -> None:
        while not self._ended.wait(BEAT_PERIOD_S):
            try:
                with self._lock:
                    self._beat_unlocked()
                    self._notice = self._notice or self._read_notice_unlocked()
            except RuntimeError:
                return  # a store that is gone shows in a collective that fails or lasts too long
            is_missed = self._notice is not None and self._rank in self._notice.ranks
            if is_missed and not self._told and not self._has_dumped:
                self._dump_stacks("for which others wait")

    def _guard(self) -> None:
        """Ends the process when it waits too long, or too long after the run's end."""
        # Time is counted in periods of this thread, so that a suspended job does not wake up late.
        wait, waited_s, outlived_s = (0, ""), 0.0, 0.0
        while not self._ended.wait(GUARD_PERIOD_S):
            now = (self.num_begun, self.waits_in)
            # A collective that has failed waits no more: looking for the cause is no wait in it.
            is_waiting = now == wait and self.waits_in and not self._has_failed
            waited_s = waited_s + GUARD_PERIOD_S if is_waiting else 0.0
            outlived_s += GUARD_PERIOD_S if self._notice else 0.0
            wait = now
            if waited_s > self._timeout_s:
                self._give_up(wait[1])
            if self._notice and outlived_s > OUTLIVE_S:
                _end_process(self._notice.text)

    def _give_up(self, name: str) -> None:
        self._dump_stacks(f"waiting in {name}")
        found = self.explain(name)
        text = f"waited {self._timeout_s:g} s ({launch.TIMEOUT_VARIABLE}) in vain: {found.text}"
        if not self._notice:
            self._post(_Notice(text, found.ranks))
            time.sleep(LAST_LOOK_S)
        self._kill_stopped(found.ranks)
        _end_process(text)

    def _kill_stopped(self, ranks: tuple[int, ...]) -> None:
        """Ends stopped ranks of this machine.

        SIGTERM does not reach a stopped process, and where no launcher started it nobody else
        ends it.
        """
        for rank in ranks:
            beat = self._first_beats[rank]
            is_near = rank != self._rank and beat.host == self._host
            if is_near and process_state(beat.pid, beat.started) == "stopped":
                with contextlib.suppress(OSError):
                    os.kill(beat.pid, signal.SIGKILL)

    def _dump_stacks(self, who: str) -> None:
        self._has_dumped = True
        stream = sys.__stderr__
        if stream is not None:
            stream.write(f"stacks of rank {self._rank} on host {self._host}, {who}:\n")
            stream.flush()
            faulthandler.dump_traceback(stream, all_threads=True)
            stream.flush()

    def _explain_lost_store(self) -> Finding:
        address = os.environ.get("MASTER_ADDR", "")
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            return Finding(f"the launcher on {address} has ended or cannot be reached", (), True)
        if self._rank == 0:
            return Finding("this rank's store does not answer", (), True)
        host = self._first_beats[0].host
        return Finding(f"rank 0 on host {host} has ended or cannot be reached", (0,), True)

    def _post(self, notice: _Notice) -> None:
        """Puts up the notice that the run is over, where none is up yet."""
        self._told = True
        self._notice = self._notice or notice
        text = json.dumps(asdict(notice))
        with contextlib.suppress(RuntimeError, TimeoutError):
            self._ask(lambda: self._locked(lambda: self._store.compare_set(_END, "", text)))

    def _ask(self, question: Callable[[], Answer]) -> Answer:
        """Asks the store, whose host may be stopped, and whose calls then never return.

        Raises:
            TimeoutError: No answer came.
            RuntimeError: The store is gone.
        """
        answers: queue.Queue[tuple[Answer | None, Exception | None]] = queue.Queue()

        def run() -> None:
            try:
                answers.put((question(), None))
            except RuntimeError as error:
                answers.put((None, error))

        threading.Thread(target=run, name="store", daemon=True).start()
        try:
            answer, error = answers.get(timeout=STORE_PATIENCE_S)
        except queue.Empty:
            raise TimeoutError("the store does not answer") from None
        if error is not None:
            raise error
        return answer  # type: ignore[return-value]  # without an error there is an answer

    def _locked(self, question: Callable[[], Answer]) -> Answer:
        with self._lock:
            return question()

    def _beat(self) -> None:
        self._locked(self._beat_unlocked)

    def _beat_unlocked(self) -> None:
        self._count += 1
        pid, started = self._process
        beat = Beat(
            count=self._count,
            at_s=time.monotonic() - self._origin_s,
            host=self._host,
            pid=pid,
            started=started,
            begun=self.num_begun,
            waits_in=self.waits_in,
            note=self.note,
            closed=self._closed,
        )
        self._store.set(_key(self._rank), json.dumps(asdict(beat)))

    def _read_beats(self) -> list[Beat]:
        keys = [_key(rank) for rank in range(self._num_ranks)]
        texts = self._locked(lambda: self._store.multi_get(keys))
        return [Beat(**json.loads(text)) for text in texts]

    def _read_notice(self) -> _Notice | None:
        return self._locked(self._read_notice_unlocked)

    def _read_notice_unlocked(self) -> _Notice | None:
        if not self._store.check([_END]):
            return None
        found = json.loads(self._store.get(_END))
        return _Notice(found["text"], tuple(found["ranks"]))


def _key(rank: int) -> str:
    return f"beat/{rank}"


def _prefix() -> str:
    """Apart from an earlier mesh of this process and from an attempt before a restart."""
    return f"watch/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{_num_started}"


def _connect(store: TCPStore) -> TCPStore:
    """A connection of its own to the host of a store: a thread may not share one that waits."""
    patience = timedelta(seconds=STORE_PATIENCE_S)
    return TCPStore(
        store.host, store.port, is_master=False, timeout=patience, wait_for_workers=False
    )


def _is_of_connection(error: RuntimeError) -> bool:
    """Whether a collective failed because a peer is gone; Gloo has no class for it."""
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


def _end_process(text: str) -> None:
    if launch.claim_failure(EXIT_STOPPED):
        sys.stderr.write(f"error: {text}\n")
    sys.stderr.flush()
    os._exit(EXIT_STOPPED)


_current: Watch | None = None
_num_started = 0


def start_watch(store: Store, rank: int, num_ranks: int) -> None:
    """Starts this process's watch, once; none where ranks do not share a store over a network.

    Args:
        store: The run's store.
        rank: This rank.
        num_ranks: Ranks of the run.

    Raises:
        StoppedError: A rank has ended already.

    Communication:
        A connection of its own to the store; waits until every rank's watch has begun.
    """
    global _current, _num_started
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    if _current is not None or num_ranks == 1 or not isinstance(store, TCPStore):
        return
    _num_started += 1
    try:
        _current = Watch(store, rank, num_ranks, launch.read_timeout_s())
    except dist.DistError as error:
        raise StoppedError(
            f"rank {rank} on host {platform.node()} lost the other {num_ranks - 1} ranks at the "
            "start: one of them has ended or cannot be reached"
        ) from error
    launch.set_peers(_current)
    atexit.register(stop_watch)


def stop_watch() -> None:
    """Ends this process's watch where there is one."""
    global _current
    watch, _current = _current, None
    if watch is not None:
        launch.set_peers(None)
        atexit.unregister(stop_watch)
        watch.close()


def note(text: str) -> None:
    """Notes what this rank is doing, for a message that may have to name it."""
    if _current is not None:
        _current.note = text


class waiting:
    """Within, this rank waits in a collective: a failure there names the rank that is missed.

    Costs about a microsecond.

    Raises:
        StoppedError: The collective failed because another rank has ended.
    """

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        """Takes the collective's name."""
        self._name = name

    def __enter__(self) -> None:
        """Marks the wait."""
        watch = _current
        if watch is not None:
            watch.num_begun += 1
            watch.waits_in = self._name

    def __exit__(
        self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None
    ) -> None:
        """Ends the wait."""
        watch = _current
        if watch is not None:
            try:
                if isinstance(error, RuntimeError):
                    watch.fail(self._name, error)
            finally:
                watch.waits_in = ""
