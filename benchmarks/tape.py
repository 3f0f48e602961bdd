"""Stands between the project and torch.distributed: records, mutes, replays or delays it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal

import torch
import torch.distributed as dist

_SINGLE = ("all_gather_single", "all_gather_into_tensor", "all_to_all_single", "all_reduce")
_BATCH = "batch_isend_irecv"


@dataclass
class Tape:
    """The collectives of one step, in the order in which they are begun and awaited.

    Attributes:
        mode: `pass` lets calls through, `record` notes them too, `mute` does nothing in their
            place: results are what memory holds, shapes are right.
        bytes_per_s: Of a link that each call's received bytes have to pass, one call after the
            other; None for the real link alone.
        received_bytes: What the recorded calls receive on this rank.
        num_calls: Recorded.
    """

    mode: Literal["pass", "record", "mute"] = "pass"
    bytes_per_s: float | None = None
    received_bytes: int = 0
    num_calls: int = 0
    _events: list[tuple[str, int]] = field(default_factory=list)
    _calls: list[Callable[[], Any]] = field(default_factory=list)
    _pool: dict[Any, torch.Tensor] = field(default_factory=dict)
    _link_free_s: float = 0.0

    def install(self, *modules: ModuleType) -> None:
        """Puts the tape in the place of the collectives that modules have by name."""
        originals = {
            getattr(dist, name): name for name in (*_SINGLE, _BATCH) if hasattr(dist, name)
        }
        for module in (dist, *modules):
            for name, value in list(vars(module).items()):
                if callable(value) and _is_in(value, originals):
                    wrap = self._batch if originals[value] == _BATCH else self._single
                    setattr(module, name, wrap(value, originals[value]))

    def start_recording(self) -> None:
        """Forgets the old recording and begins a new one."""
        self.mode, self.received_bytes, self.num_calls = "record", 0, 0
        self._events, self._calls, self._pool = [], [], {}

    def replay(self) -> None:
        """Makes the recorded calls back to back, begun and awaited in the recorded order."""
        works: dict[int, Any] = {}
        for what, number in self._events:
            if what == "begin":
                works[number] = self._calls[number]()
            else:
                work = works.pop(number)
                for part in work if isinstance(work, list) else [work]:
                    if part is not None:
                        part.wait()
        assert not works, "a recorded collective was never awaited"

    def _single(self, original: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            is_async = bool(kwargs.get("async_op", False))
            if self.mode == "mute":
                return Muted() if is_async else None
            num_bytes = _received_bytes(name, args, kwargs)
            if self.mode == "record":
                spare = [self._spare(index, value) for index, value in enumerate(args)]
                number = self._note(lambda: call(*spare, **kwargs), num_bytes)
            arrival_s = self._arrival(num_bytes)
            work = original(*args, **kwargs)
            if not is_async:
                _sleep_until(arrival_s)
                if self.mode == "record":
                    self._events.append(("wait", number))
                return work
            noted = (self, number) if self.mode == "record" else None
            return Awaited(work, arrival_s, noted)

        return call

    def _batch(self, original: Callable[..., Any], _name: str) -> Callable[..., Any]:
        def call(operations: list[dist.P2POp]) -> list[Any]:
            if self.mode == "mute":
                return [Muted()]
            num_bytes = sum(o.tensor.nbytes for o in operations if o.op is dist.irecv)
            if self.mode == "record":
                spare = [
                    dist.P2POp(
                        o.op,
                        self._spare(index, o.tensor),
                        group=o.group,
                        group_peer=dist.get_group_rank(o.group, o.peer),
                    )
                    for index, o in enumerate(operations)
                ]
                number = self._note(lambda: call(spare), num_bytes)
            arrival_s = self._arrival(num_bytes)
            works = original(operations)
            noted = (self, number) if self.mode == "record" else None
            # noted once, with the last: they are awaited together
            notes = [None] * (len(works) - 1) + [noted]
            return [Awaited(w, arrival_s, note) for w, note in zip(works, notes, strict=True)]

        return call

    def _note(self, call: Callable[[], Any], num_bytes: int) -> int:
        self._calls.append(call)
        self.received_bytes += num_bytes
        self.num_calls += 1
        self._events.append(("begin", self.num_calls - 1))
        return self.num_calls - 1

    def note_wait(self, number: int) -> None:
        """Notes that a recorded call is awaited now."""
        if self.mode == "record":
            self._events.append(("wait", number))

    def _spare(self, place: int, value: Any) -> Any:
        """A tensor like one of the call's, shared by all calls: replays move bytes, not values."""
        if not isinstance(value, torch.Tensor):
            return value
        key = (place, value.shape, value.dtype)
        if key not in self._pool:
            self._pool[key] = torch.zeros_like(value)
        return self._pool[key]

    def _arrival(self, num_bytes: int) -> float:
        """When the last byte has passed the made-up link; 0 without one."""
        if self.bytes_per_s is None:
            return 0.0
        begin_s = max(time.perf_counter(), self._link_free_s)
        self._link_free_s = begin_s + num_bytes / self.bytes_per_s
        return self._link_free_s


class Awaited:
    """A work of torch's whose wait is noted, and lasts until its bytes have passed the link."""

    def __init__(self, work: Any, arrival_s: float, noted: tuple[Tape, int] | None) -> None:
        self._work, self._arrival_s, self._noted = work, arrival_s, noted

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)

    def wait(self, *args: Any) -> Any:
        if self._noted is not None:
            tape, number = self._noted
            tape.note_wait(number)
            self._noted = None
        result = self._work.wait(*args)
        _sleep_until(self._arrival_s)
        return result


class Muted:
    """A work that has ended."""

    def wait(self, *_args: Any) -> bool:
        return True

    def is_completed(self) -> bool:
        return True


def _received_bytes(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    group = kwargs.get("group")
    num_ranks, output = dist.get_world_size(group), args[0]
    if name == "all_reduce":
        return int(2 * output.nbytes * (num_ranks - 1) // num_ranks)  # a ring
    if name == "all_to_all_single":
        rows = args[2] if len(args) > 2 else kwargs.get("output_split_sizes")
        if rows and sum(rows):
            own = rows[dist.get_rank(group)]
            return int(output.nbytes * (sum(rows) - own) // sum(rows))
    return int(output.nbytes * (num_ranks - 1) // num_ranks)


def _is_in(value: Any, originals: dict[Any, str]) -> bool:
    try:
        return value in originals
    except TypeError:  # not every callable can be hashed
        return False


def _sleep_until(time_s: float) -> None:
    left_s = time_s - time.perf_counter()
    if left_s > 0:
        time.sleep(left_s)
