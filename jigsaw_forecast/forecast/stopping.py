"""What may end a run between two steps, known to all ranks at once: one gather of texts a step."""

import json
import logging
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from types import FrameType

import torch

from jigsaw_forecast.errors import StoppedError
from jigsaw_forecast.fields import Field
from jigsaw_forecast.parallel.mesh import Mesh
from jigsaw_forecast.parallel.together import gather_texts
from jigsaw_forecast.state import State

_log = logging.getLogger(__name__)
STEPS_TO_JUDGE_BY = 5  # the last of them, the first step of a run left out


class AgreedStop(StoppedError):
    """All ranks stop after the same step; what was made before is written first."""


@dataclass
class StopSignal:
    """Whether this rank was told to stop.

    Attributes:
        name: The signal, empty where none came.
    """

    name: str = ""


@contextmanager
def stop_on_signal() -> Iterator[StopSignal]:
    """Within, SIGTERM and SIGINT ask for a stop after the step in progress; a second one ends it.

    Raises:
        StoppedError: A second signal came.
    """
    stop = StopSignal()

    def take(number: int, frame: FrameType | None) -> None:
        if stop.name:
            raise StoppedError(
                f"stopped by a second {signal.Signals(number).name}; --resume goes on"
            )
        stop.name = signal.Signals(number).name

    before = {number: signal.signal(number, take) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Deadline:
    """Tells from the steps so far whether the run would be late."""

    def __init__(self, seconds: float | None, process_age_s: float) -> None:
        """Starts the clock.

        Args:
            seconds: From the start of the process until the last product must be whole; None for
                no deadline.
            process_age_s: Seconds since the process started.
        """
        self._seconds = seconds
        self._began = time.perf_counter() - process_age_s
        self._ends: list[float] = []

    def after_step(self, num_left: int) -> str:
        """Why the run has to stop, empty where it may go on.

        Args:
            num_left: Steps still to be made.
        """
        now = time.perf_counter()
        self._ends.append(now)
        if self._seconds is None:
            return ""
        elapsed_s = now - self._began
        ends = self._ends[-STEPS_TO_JUDGE_BY - 1 :]
        per_step_s = (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else 0.0
        needed_s = per_step_s * num_left
        if num_left == 0 or elapsed_s + needed_s <= self._seconds:
            return ""
        return (
            f"{elapsed_s:.1f} s have passed and {num_left} steps need about {needed_s:.1f} s more, "
            f"beyond --deadline {self._seconds:g}"
        )


@dataclass
class StepNews:
    """What one rank has to say after a step.

    Attributes:
        not_finite: Fields with values that are no numbers.
        implausible: Fields outside of their range, with least and greatest value.
        failure: Why its output cannot be written, empty where it can.
        signal: Name of the signal that it got.
        late: Why the run would be late; of rank 0.
        saves: Whether the restart state is saved after this step; of rank 0.
    """

    not_finite: list[str] = field(default_factory=list)
    implausible: list[tuple[str, float, float]] = field(default_factory=list)
    failure: str = ""
    signal: str = ""
    late: str = ""
    saves: bool = False


@dataclass(frozen=True)
class Implausible:
    """A field that left its plausible range.

    Attributes:
        forecast: Initial time, and member where there is one.
        field: Short name.
        lead_hours: Lead time.
        min: Least value, SI units.
        max: Greatest value.
    """

    forecast: str
    field: str
    lead_hours: int
    min: float
    max: float

    def __str__(self) -> str:
        """`t850 at lead time 66 h: 91.2 to 341`."""
        return f"{self.field} at lead time {self.lead_hours} h: {self.min:g} to {self.max:g}"


def look_at(state: State, plausible: Mapping[Field, tuple[float, float]]) -> StepNews:
    """What is wrong with the values of this rank's piece of a state."""
    news = StepNews()
    if not state.fields:
        return news
    least, greatest = torch.aminmax(state.data.flatten(1), dim=1)  # both pass NaN on
    extremes = torch.stack([least, greatest]).tolist()
    for item, low, high in zip(state.fields, *extremes, strict=True):
        if not (abs(low) < float("inf") and abs(high) < float("inf")):
            news.not_finite.append(str(item))
        elif item in plausible and not plausible[item][0] <= low <= high <= plausible[item][1]:
            news.implausible.append((str(item), low, high))
    return news


def share(mesh: Mesh, own: StepNews) -> list[StepNews]:
    """The news of every rank, in rank order.

    Communication:
        One gather of texts over all ranks.
    """
    return [StepNews(**json.loads(text)) for text in gather_texts(mesh, json.dumps(asdict(own)))]


def find_implausible(
    news: Sequence[StepNews], group_size: int, forecasts: Sequence[str], lead_hours: int
) -> list[Implausible]:
    """The fields outside of their range, their extremes joined over the bands of a model group.

    Args:
        news: Of every rank.
        group_size: Ranks of a model group.
        forecasts: What each model group makes.
        lead_hours: Lead time.
    """
    found: dict[tuple[str, str], tuple[float, float]] = {}
    for rank, told in enumerate(news):
        for name, low, high in told.implausible:
            key = (forecasts[rank // group_size], name)
            before = found.get(key, (low, high))
            found[key] = (min(before[0], low), max(before[1], high))
    return [
        Implausible(forecast, name, lead_hours, low, high)
        for (forecast, name), (low, high) in found.items()
    ]


def raise_if_lost(
    news: Sequence[StepNews], group_size: int, forecasts: Sequence[str], lead_hours: int
) -> None:
    """Ends the run on all ranks where what was made is no forecast or output has failed.

    Raises:
        AgreedStop: It is so; all reasons in one message.
    """
    lost: dict[str, list[str]] = {}
    for rank, told in enumerate(news):
        names = lost.setdefault(forecasts[rank // group_size], [])
        names += [name for name in told.not_finite if name not in names]
    reasons = [
        f"the forecast from {forecast} is not finite at lead time {lead_hours} h: "
        f"{', '.join(names)}; the model or its input is not sound"
        for forecast, names in lost.items()
        if names
    ]
    reasons += dict.fromkeys(told.failure for told in news if told.failure)
    if reasons:
        raise AgreedStop("\n".join(reasons))


def raise_if_told(news: Sequence[StepNews], lead_hours: int) -> None:
    """Ends the run on all ranks where one of them got a signal or it would be late.

    Raises:
        AgreedStop: It is so.
    """
    reasons = [
        *dict.fromkeys(
            f"stopped by {told.signal} after lead time {lead_hours} h"
            for told in news
            if told.signal
        ),
        *(f"stopped after lead time {lead_hours} h: {told.late}" for told in news if told.late),
    ]
    if reasons:
        raise AgreedStop("\n".join(reasons))


def describe_ranges(found: Sequence[Implausible]) -> str:
    """One line for a message or the log."""
    return "; ".join(map(str, found))
