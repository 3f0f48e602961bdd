"""A second line between the ranks, for a thread whose messages must not meet the model's.

Collectives of two threads on one process group would take turns in an order that differs between
ranks. The side channel is a group of its own over all ranks, always Gloo on CPU tensors, so that
what is written travels while the next step is computed.
"""

import json
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from jigsaw_forecast.errors import StoppedError
from jigsaw_forecast.parallel.launch import read_timeout_s
from jigsaw_forecast.parallel.mesh import GRACE_AFTER_WATCH_S, Mesh
from jigsaw_forecast.parallel.watch import waiting

Result = TypeVar("Result")
Payload = list[tuple[int, bytes | memoryview]]  # numbered pieces, in any order


class LostPeerError(StoppedError):
    """The channel broke: another rank has ended. The main thread's watch knows which."""


class SideChannel:
    """The ranks as one background thread of each of them sees them.

    Attributes:
        rank: This rank.
        size: Number of ranks.
    """

    def __init__(self, mesh: Mesh) -> None:
        """Makes the group.

        Communication:
            Creates one Gloo group over all ranks; called on every rank's main thread.
        """
        self.rank, self.size = mesh.rank, mesh.size
        self._group: dist.ProcessGroup | None = None
        if mesh.size > 1:
            # a wait here covers the slowest disk of all; the watch is the one to lose patience
            patience = timedelta(seconds=2 * read_timeout_s() + GRACE_AFTER_WATCH_S)
            with waiting("the creation of the output's group"):
                self._group = dist.new_group(backend="gloo", timeout=patience)

    def texts(self, text: str) -> list[str]:
        """One text from every rank, in rank order.

        Raises:
            LostPeerError: Another rank has ended.

        Communication:
            Two all-gathers over all ranks.
        """
        if self._group is None:
            return [text]
        own = torch.frombuffer(bytearray(json.dumps(text).encode()), dtype=torch.uint8)
        try:
            lengths = self._gather_equal(torch.tensor([own.numel()]))
            longest = max(int(length) for length in lengths)
            padded = torch.zeros(longest, dtype=torch.uint8)
            padded[: own.numel()] = own
            rows = self._gather_equal(padded)
        except RuntimeError as error:
            raise LostPeerError(f"the ranks lost each other while writing: {error}") from error
        return [
            json.loads(row[: int(length)].numpy().tobytes())
            for row, length in zip(rows, lengths, strict=True)
        ]

    def together(self, action: Callable[[], Result]) -> Result:
        """Runs an action on every rank; where it fails on any, every rank raises.

        Raises:
            StoppedError: An action failed; with every different message.
            LostPeerError: Another rank has ended.

        Communication:
            That of `texts`.
        """
        failure: Exception | None = None
        result: Result | None = None
        try:
            result = action()
        except Exception as error:  # noqa: BLE001  raised again below, after the others know of it
            failure = error
        lost = isinstance(failure, LostPeerError)
        told = "" if failure is None or lost else str(failure) or type(failure).__name__
        texts = [told] if lost else self.texts(told)
        if failure is not None:
            raise failure
        if any(texts):
            raise StoppedError("\n".join(dict.fromkeys(text for text in texts if text)))
        return result  # type: ignore[return-value]  # no failure: the action returned

    def collect(self, pieces: Payload, root: int) -> Payload:
        """The pieces of every rank on one of them, in the order of their numbers.

        Args:
            pieces: This rank's.
            root: The rank that gets them all; the others get nothing.

        Raises:
            LostPeerError: Another rank has ended.

        Communication:
            One all-gather of sizes; each rank's pieces to `root`, point to point.
        """
        if self._group is None:
            return sorted(pieces, key=lambda piece: piece[0])
        header = json.dumps([[number, len(content)] for number, content in pieces])
        headers = [json.loads(text) for text in self.texts(header)]
        try:
            if self.rank != root:
                if any(len(content) for _, content in pieces):
                    joined = bytearray(b"".join(content for _, content in pieces))
                    flat = torch.frombuffer(joined, dtype=torch.uint8)
                    dist.send(flat, root, group=self._group)
                return []
            received = list(pieces)
            for rank, sizes in enumerate(headers):
                total = sum(size for _, size in sizes)
                if rank == root or not total:
                    continue
                flat = torch.empty(total, dtype=torch.uint8)
                dist.recv(flat, rank, group=self._group)
                received += _cut(flat.numpy().tobytes(), sizes)
        except RuntimeError as error:
            raise LostPeerError(f"the ranks lost each other while writing: {error}") from error
        return sorted(received, key=lambda piece: piece[0])

    def _gather_equal(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        rows = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(rows, tensor, group=self._group)
        return rows


def _cut(content: bytes, sizes: Sequence[Sequence[int]]) -> Payload:
    pieces: Payload = []
    start = 0
    for number, size in sizes:
        pieces.append((number, content[start : start + size]))
        start += size
    return pieces
