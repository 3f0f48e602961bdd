"""Chunks of activations: one travels while another is multiplied.

A product is cut along the dim that it does not contract, so each chunk is whole by itself. Of
gathers the next chunk's is under way, of reduce-scatters the previous one's.
"""

from collections.abc import Callable

import torch

from jigsaw_forecast.parallel.collectives import Pending
from jigsaw_forecast.parallel.layout import split_range

# Smaller chunks make slow products; more chunks hide no more than 1 - 1/8 already does.
MIN_CHUNK_LENGTH = 128
MAX_CHUNKS = 8


def chunk_ranges(
    length: int, num_chunks: int | None, travels: bool, weights_travel: bool = False
) -> list[slice]:
    """Where to cut a dim of this length.

    Args:
        length: Of the dim that the product does not contract.
        num_chunks: How many; None for as many as have `MIN_CHUNK_LENGTH`, at most `MAX_CHUNKS`.
            Where the activations stay, two if weights travel meanwhile, else one.
        travels: Whether the chunks travel.
        weights_travel: Whether the product's weights do.
    """
    if num_chunks is None:
        most = MAX_CHUNKS if travels else 2 if weights_travel else 1
        num_chunks = min(length // MIN_CHUNK_LENGTH, most)
    num_chunks = max(1, min(num_chunks, length))
    return [split_range(length, num_chunks, index) for index in range(num_chunks)]


def half(chunks: list[slice]) -> int:
    """Which chunk is the last one of the first half."""
    return (len(chunks) - 1) // 2


class GatheredChunks:
    """Chunks that arrive one after the other."""

    def __init__(
        self, chunks: list[slice], start: Callable[[slice], Pending[torch.Tensor]]
    ) -> None:
        """Begins with the first; `start` begins the gather of one chunk."""
        self._waiting = list(reversed(chunks))
        self._start = start
        self._pending = start(self._waiting.pop())

    def take(self) -> torch.Tensor:
        """The next chunk; the one after it is then under way."""
        values = self._pending.wait()
        if self._waiting:
            self._pending = self._start(self._waiting.pop())
        return values


class ScatteredChunks:
    """Sums that arrive one after the other and are put in their place."""

    def __init__(self, put: Callable[[slice, torch.Tensor], object]) -> None:
        """`put` takes a chunk's place and its sum."""
        self._put = put
        self._pending: tuple[slice, Pending[torch.Tensor]] | None = None

    def add(self, part: slice, pending: Pending[torch.Tensor]) -> None:
        """Notes a chunk whose sum is under way; the one before it is awaited."""
        self.finish()
        self._pending = part, pending

    def finish(self) -> None:
        """Awaits the last."""
        if self._pending is not None:
            part, pending = self._pending
            self._pending = None
            self._put(part, pending.wait())
