"""SIGTERM and SIGINT: the train step in progress is finished, then the run saves and stops."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from jigsaw_forecast.errors import SignalledError


@dataclass
class Stop:
    """Whether to stop.

    Attributes:
        signal_name: The signal that this rank got.
        is_agreed: Whether any rank got one; known to all ranks after each train step.
    """

    signal_name: str = ""
    is_agreed: bool = False

    def check(self) -> None:
        """Ends the preparation where this rank got a signal: there is nothing to save.

        Raises:
            SignalledError: It got one.
        """
        if self.signal_name:
            raise SignalledError(
                f"stopped by {self.signal_name} while reading the data; go on with --resume"
            )


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Within, SIGTERM and SIGINT ask for a stop after the train step in progress."""
    stop = Stop()

    def note(number: int, frame: FrameType | None) -> None:
        stop.signal_name = signal.Signals(number).name

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
