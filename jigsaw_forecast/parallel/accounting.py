"""Counts what the collectives really receive, by mesh axis and by what it is for."""

from collections import defaultdict
from collections.abc import Callable
from typing import Literal, NamedTuple

Kind = Literal["activations", "weights", "statistics"]
KINDS: tuple[Kind, ...] = ("activations", "weights", "statistics")


class Operation(NamedTuple):
    """One collective of the hot path.

    Attributes:
        name: `all-gather`, `reduce-scatter`, `all-reduce` or `rows` (point to point).
        axis: Mesh axis that it runs over.
        kind: What it carries.
        num_bytes: Bytes that this rank receives.
    """

    name: str
    axis: str
    kind: Kind
    num_bytes: int

    def __str__(self) -> str:
        """`all-gather of weights over domain`."""
        return f"{self.name} of {self.kind} over {self.axis}"


Observer = Callable[[Literal["begin", "end"], Operation], None]


class Traffic:
    """What this rank received and how; added to where a collective runs.

    Attributes:
        observer: Called when a collective begins and when its result is taken; None for nobody.
        peak_buffer_bytes: Most bytes held at once by what was being sent and received.
    """

    def __init__(self) -> None:
        """Starts at zero."""
        self.observer: Observer | None = None
        self._buffer_bytes = 0
        self.peak_buffer_bytes = 0
        self.reset()

    def begin(self, operation: Operation, buffer_bytes: int) -> None:
        """Counts a collective that begins, with the bytes of its buffers."""
        self._received[operation.axis, operation.kind] += operation.num_bytes
        self._collectives[operation.axis, operation.name] += 1
        self._buffer_bytes += buffer_bytes
        self.peak_buffer_bytes = max(self.peak_buffer_bytes, self._buffer_bytes)
        if self.observer is not None:
            self.observer("begin", operation)

    def end(self, operation: Operation, buffer_bytes: int) -> None:
        """Notes that a collective's result was taken."""
        self._buffer_bytes -= buffer_bytes
        if self.observer is not None:
            self.observer("end", operation)

    def received(self) -> dict[str, dict[str, int]]:
        """Bytes received so far: axis -> kind -> bytes, every axis and kind present."""
        return {
            axis: {kind: self._received.get((axis, kind), 0) for kind in KINDS}
            for axis in ("data", "domain", "tensor")
        }

    def collectives(self) -> dict[str, dict[str, int]]:
        """Collectives begun so far: axis -> name -> count."""
        result: dict[str, dict[str, int]] = {"data": {}, "domain": {}, "tensor": {}}
        for (axis, name), count in sorted(self._collectives.items()):
            result[axis][name] = count
        return result

    def reset(self) -> None:
        """Starts again at zero."""
        self._received: dict[tuple[str, Kind], int] = defaultdict(int)
        self._collectives: dict[tuple[str, str], int] = defaultdict(int)
        self.peak_buffer_bytes = self._buffer_bytes
