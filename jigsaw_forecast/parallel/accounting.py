"""Counts what the collectives really receive, by mesh axis and by what it is for."""

from collections import defaultdict
from typing import Literal

Kind = Literal["activations", "weights", "statistics"]
KINDS: tuple[Kind, ...] = ("activations", "weights", "statistics")


class Traffic:
    """Bytes that this rank received, by axis name and kind; added to where a collective runs."""

    def __init__(self) -> None:
        """Starts at zero."""
        self._received: dict[tuple[str, Kind], int] = defaultdict(int)

    def add(self, axis: str, kind: Kind, num_bytes: int) -> None:
        """Adds bytes received over an axis."""
        self._received[axis, kind] += num_bytes

    def received(self) -> dict[str, dict[str, int]]:
        """Bytes received so far: axis -> kind -> bytes, every axis and kind present."""
        return {
            axis: {kind: self._received.get((axis, kind), 0) for kind in KINDS}
            for axis in ("data", "domain", "tensor")
        }

    def reset(self) -> None:
        """Starts again at zero."""
        self._received.clear()
