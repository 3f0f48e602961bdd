"""When a run writes, and which forecast each model group makes when."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jigsaw_forecast.errors import ForecastError, MeshError
from jigsaw_forecast.forecast.product import Slot


@dataclass(frozen=True)
class Start:
    """One forecast of a run, by where it starts.

    Attributes:
        init_time: UTC, datetime64[s].
        member: Ensemble member, None where the run is no ensemble.
    """

    init_time: np.datetime64
    member: int | None = None

    def at(self, lead_time: np.timedelta64) -> Slot:
        """One of its lead times."""
        return Slot.of(self.init_time, lead_time, self.member)

    def __str__(self) -> str:
        """`2026-06-24T00:00:00` and the member where there is one."""
        return str(self.init_time) + ("" if self.member is None else f" member {self.member}")


@dataclass(frozen=True)
class Schedule:
    """Which steps are made and which of them are written.

    Attributes:
        step: Time that one rollout step takes the model ahead.
        num_steps: Rollout steps of each forecast.
        lead_times: Those that are written, timedelta64[s], ascending.
    """

    step: np.timedelta64
    num_steps: int
    lead_times: tuple[np.timedelta64, ...]

    def lead_time(self, rollout_step: int) -> np.timedelta64:
        """Lead time after so many rollout steps, timedelta64[s]."""
        lead_time: np.timedelta64 = (rollout_step * self.step).astype("timedelta64[s]")
        return lead_time


def make_schedule(
    lead_time: np.timedelta64,
    output_frequency: np.timedelta64 | None,
    step_hours: int,
    *,
    has_initial_state: bool,
) -> Schedule:
    """The schedule of every forecast of a run.

    Args:
        lead_time: How far.
        output_frequency: What is written; None for each step.
        step_hours: Step of the model.
        has_initial_state: Whether lead time 0 is written too.

    Raises:
        ForecastError: A span is no multiple of the model's step, or the last steps would not be
            written.
    """
    step = np.timedelta64(step_hours, "h")
    frequency = output_frequency or step
    problems = [
        f"{name} {span.astype('timedelta64[h]')} is not a positive multiple of the model's step "
        f"of {step_hours} hours"
        for name, span in (("--lead-time", lead_time), ("--output-frequency", frequency))
        if span <= np.timedelta64(0, "h") or span % step
    ]
    if problems:
        raise ForecastError("\n".join(problems))
    if lead_time % frequency:
        raise ForecastError(
            f"--output-frequency {frequency.astype('timedelta64[h]')} does not divide --lead-time "
            f"{lead_time.astype('timedelta64[h]')}: the last steps would be lost"
        )
    num_steps = int(lead_time / step)
    stride = int(frequency / step)
    leads = [index * step for index in range(stride, num_steps + 1, stride)]
    if has_initial_state:
        leads.insert(0, 0 * step)
    return Schedule(step, num_steps, tuple(lead.astype("timedelta64[s]") for lead in leads))


def make_starts(init_times: Sequence[np.datetime64], members: Sequence[int]) -> tuple[Start, ...]:
    """The forecasts of a run: every member of every initial time."""
    return tuple(
        Start(init.astype("datetime64[s]"), member)
        for init in init_times
        for member in (members or (None,))
    )


def check_data_degree(degree: int, num_forecasts: int) -> None:
    """Refuses more model groups than there are forecasts.

    Raises:
        MeshError: Groups would have nothing to do.
    """
    if degree > num_forecasts:
        raise MeshError(
            f"data={degree}: the run makes {num_forecasts} forecast"
            f"{'s' if num_forecasts > 1 else ''}, one for each initial time and member, and "
            f"{degree - num_forecasts} model groups would be idle; use data={num_forecasts} or less"
        )


def make_rounds(starts: Sequence[Start], degree: int) -> list[list[Start | None]]:
    """What each of `degree` model groups makes, round after round; None where one is idle."""
    rounds = []
    for first in range(0, len(starts), degree):
        chosen: list[Start | None] = list(starts[first : first + degree])
        rounds.append(chosen + [None] * (degree - len(chosen)))
    return rounds
