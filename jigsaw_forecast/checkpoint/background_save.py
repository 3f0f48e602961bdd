"""Saves beside the training: a copy of the state is taken, and a thread writes it."""

import threading
from collections.abc import Callable

import torch

from jigsaw_forecast.checkpoint.pieces import Piece, Pieces

Write = Callable[[Pieces], None]


class Staging:
    """Copies of pieces on the CPU, in memory that is kept from save to save.

    Holds as many bytes again as the pieces. Page-locked where they are on a GPU.
    """

    def __init__(self, pieces: Pieces) -> None:
        """Makes room for these pieces and touches it, so that no save waits for the system."""
        self._buffers = {
            name: torch.zeros(
                piece.values.shape,
                dtype=piece.values.dtype,
                pin_memory=piece.values.is_cuda,
            )
            for name, piece in pieces.items()
        }

    @torch.no_grad()
    def copy(self, pieces: Pieces) -> dict[str, Piece]:
        """The pieces with copied values; those of the last call are overwritten."""
        staged = {}
        has_gpu = False
        for name, piece in pieces.items():
            buffer = self._buffers[name]
            buffer.copy_(piece.values, non_blocking=True)
            has_gpu |= piece.values.is_cuda
            staged[name] = piece.with_values(buffer)
        if has_gpu:
            torch.cuda.synchronize()
        return staged


class BackgroundSaver:
    """At most one save at a time, by a thread of its own; `save` and `settle` alone stall."""

    def __init__(self, pieces: Pieces) -> None:
        """Makes room for a copy of these pieces."""
        self._staging = Staging(pieces)
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a save is under way."""
        return self._thread is not None and self._thread.is_alive()

    def save(self, pieces: Pieces, write: Write) -> None:
        """Copies the pieces and begins to write the copy; no save may be unsettled.

        Args:
            pieces: Of the names that the saver was made with.
            write: Writes them; runs in the thread and may raise `CheckpointError`.
        """
        assert self._thread is None, "settle comes first"
        staged = self._staging.copy(pieces)

        def run() -> None:
            try:
                write(staged)
            except Exception as error:  # noqa: BLE001  raised again by `settle`
                self._failure = error

        # not waited for at the interpreter's end: a rank whose peers are gone must be able to end
        self._thread = threading.Thread(target=run, name="checkpoint", daemon=True)
        self._thread.start()

    def settle(self) -> None:
        """Waits until the save under way has ended, where there is one.

        Raises:
            CheckpointError: It failed.
        """
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
