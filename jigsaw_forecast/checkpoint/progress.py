"""Progress in bytes, counted from any thread, and sizes as one would say them."""

from threading import Lock

from jigsaw_forecast.log import Progress

_MEGABYTE = 1_000_000


class ByteProgress(Progress):
    """A `Progress` that takes bytes and shows megabytes."""

    def __init__(self, description: str, num_bytes: int) -> None:
        super().__init__(description, -(-num_bytes // _MEGABYTE), "MB")
        self._total_bytes = num_bytes
        self._num_bytes = 0
        self._lock = Lock()

    def advance(self, num_pieces: int = 1, note: str = "") -> None:
        """Counts bytes as done.

        Args:
            num_pieces: How many bytes.
            note: What was done last.
        """
        with self._lock:
            self._num_bytes += num_pieces
            is_whole = self._num_bytes >= self._total_bytes
            done = self.total if is_whole else self._num_bytes // _MEGABYTE
            if done > self.done:
                super().advance(done - self.done, note)


def format_bytes(num_bytes: int) -> str:
    """`812 bytes`, `19.1 MB` or `6.84 GB`: three digits, powers of ten."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return (
                f"{num_bytes / size:.3g} {unit}"
                if num_bytes < 1000 * size
                else (f"{num_bytes / size:.0f} {unit}")
            )
    return f"{num_bytes} bytes"
