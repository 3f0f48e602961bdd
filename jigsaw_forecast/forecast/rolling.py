"""The loop of a run: rounds of forecasts, one for each model group, all ranks step by step."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from jigsaw_forecast.checkpoint.load import LoadedModel
from jigsaw_forecast.data.forcings import ForcingMaps
from jigsaw_forecast.data.source import InitialStatePlan
from jigsaw_forecast.errors import DataError, ForecastError
from jigsaw_forecast.fields import Field
from jigsaw_forecast.forecast.initial import read_initial_state
from jigsaw_forecast.forecast.inputs import digest_states
from jigsaw_forecast.forecast.pipeline import OutputPipeline
from jigsaw_forecast.forecast.product import Slot
from jigsaw_forecast.forecast.provenance import RunHistory
from jigsaw_forecast.forecast.record import append_progress, describe_changed_state, start_line
from jigsaw_forecast.forecast.report import RunMeter
from jigsaw_forecast.forecast.restart import RestartFolder
from jigsaw_forecast.forecast.rollout import Snapshot, first_snapshot, go_on, make_forcings
from jigsaw_forecast.forecast.schedule import Schedule, Start
from jigsaw_forecast.forecast.stopping import (
    AgreedStop,
    Deadline,
    StepNews,
    StopSignal,
    describe_ranges,
    find_implausible,
    look_at,
    raise_if_lost,
    raise_if_told,
    share,
)
from jigsaw_forecast.forecast.writing import Products
from jigsaw_forecast.log import Progress
from jigsaw_forecast.parallel.mesh import Mesh
from jigsaw_forecast.parallel.together import together
from jigsaw_forecast.parallel.watch import note
from jigsaw_forecast.state import State

_log = logging.getLogger(__name__)
# of a run's time, at most, goes into states to go on from: one with each lead time where it can
RESTART_SHARE = 0.05
RESTART_BYTES_PER_S = 1e9  # at most: its digest


@dataclass(frozen=True)
class Leg:
    """What is left to be made of one forecast.

    Attributes:
        start: The forecast.
        first_step: Rollout step that it goes on from, 0 for its initial state.
        restart: Where its states are kept.
        plan: Where its initial state comes from.
    """

    start: Start
    first_step: int
    restart: RestartFolder
    plan: InitialStatePlan


Round = Sequence[Leg | None]  # one for each model group


class Rolling:
    """Rolls the rounds of a run out; everything that all of them need."""

    def __init__(
        self,
        loaded: LoadedModel,
        schedule: Schedule,
        products: Products,
        history: RunHistory,
        meter: RunMeter,
        checks: "Checks",
    ) -> None:
        """Makes the forcings.

        Args:
            loaded: The model on this rank.
            schedule: What is made and written.
            products: What it is written into.
            history: Notes for the records.
            meter: Of the run.
            checks: What ends the run.
        """
        self._loaded = loaded
        self._config = loaded.manifest.architecture
        self._mesh = loaded.model.mesh
        self._schedule = schedule
        self._products = products
        self._history = history
        self._meter = meter
        self._checks = checks
        self._forcings: ForcingMaps = make_forcings(loaded)
        self._began = time.perf_counter()

    def run(self, rounds: Sequence[Round], pipeline: OutputPipeline) -> None:
        """Makes all rounds, one after the other.

        Raises:
            AgreedStop: The run ends early, on all ranks after the same step.
            DataError: An initial state cannot be read or is not the one that was begun with.

        Communication:
            That of the model, and after each step one gather of texts over all ranks.
        """
        num_left = sum(self._num_steps(legs) for legs in rounds)
        with Progress("forecast", num_left) as progress:
            for legs in rounds:
                with self._meter.phase("write"):
                    pipeline.drain()  # netCDF's library does not read and write at once
                initial, snapshot = self._begin(legs)
                self._forecast(legs, initial, snapshot, pipeline, progress)
                with self._meter.phase("write"):
                    pipeline.drain()
                together(self._mesh, partial(self._forget, legs, pipeline))

    def _begin(self, legs: Round) -> tuple[State | None, Snapshot | None]:
        """Reads the initial states of a round and takes up what is to be gone on from."""
        own = legs[self._mesh.data.index]
        note("the reading of initial states")
        with self._meter.phase("read"):
            init = own.start.init_time if own is not None else np.datetime64("NaT", "s")
            plan = own.plan if own is not None else None
            initial = read_initial_state(self._config, self._mesh, plan, init)
            digests = digest_states(self._mesh, initial)
            together(self._mesh, partial(self._note_states, legs, digests))
            snapshot = together(self._mesh, partial(self._take_up, own, initial))
        return initial, snapshot

    def _note_states(self, legs: Round, digests: Sequence[Mapping[str, str]]) -> None:
        """Compares initial states with those that an earlier run began with; notes new ones.

        Raises:
            DataError: One is another; all are named.
        """
        run = self._products.run
        changed: list[str] = []
        waiting = {product.path for product in self._products.waiting}
        for leg, here in zip(legs, digests, strict=True):
            if leg is None:
                continue
            self._history.states[leg.start] = here
            for product in run.products:
                if not any(slot in product.slots for slot in self._slots(leg)):
                    continue
                there = run.standings[product.path].states.get(leg.start)
                if there is not None:
                    changed.append(describe_changed_state(leg.start, there, here))
                elif run.creators[product.path] == self._mesh.rank and product.path in waiting:
                    append_progress(product.path, start_line(leg.start, here))
        if changed := [text for text in dict.fromkeys(changed) if text]:
            raise DataError(
                "--resume: cannot go on with what another input gave: "
                + "; ".join(changed)
                + "; give the same --input, or add --overwrite without --resume to start afresh"
            )

    def _take_up(self, own: Leg | None, initial: State | None) -> Snapshot | None:
        if own is None or initial is None:
            return None
        if own.first_step == 0:
            return first_snapshot(self._loaded, initial)
        values = own.restart.load(own.first_step, self._mesh.model.index)
        lead_time = self._schedule.lead_time(own.first_step)
        normalised = torch.from_numpy(values).to(self._mesh.device)
        if self._mesh.model.index == 0:
            hours = int(lead_time / np.timedelta64(1, "h"))
            _log.info("%s goes on from lead time %d h", own.start, hours)
        return Snapshot(normalised, own.start.init_time, lead_time)

    def _forecast(
        self,
        legs: Round,
        initial: State | None,
        snapshot: Snapshot | None,
        pipeline: OutputPipeline,
        progress: Progress,
    ) -> None:
        """Rolls one round out and hands each lead time over as it comes."""
        own = legs[self._mesh.data.index]
        num_steps = self._schedule.num_steps
        states: Iterator[tuple[Snapshot, State]] = iter(())
        if own is not None and snapshot is not None:
            states = go_on(self._loaded, self._forcings, snapshot, num_steps - own.first_step)
        first = num_steps - self._num_steps(legs)
        if first == 0:
            self._hand_over(legs, 0, initial, None, pipeline)
        for step in range(first + 1, num_steps + 1):
            lead_time = self._schedule.lead_time(step)
            note(f"the step to lead time {int(lead_time / np.timedelta64(1, 'h'))} h")
            made: tuple[Snapshot, State] | None = None
            if own is not None and step > own.first_step:
                with self._meter.step():
                    made = next(states)
            state = made[1] if made is not None else None
            saves = self._checks.before_output(legs, step, lead_time, state, pipeline)
            self._hand_over(legs, step, state, made[0] if made and saves else None, pipeline)
            progress.advance(note=f"lead time {int(lead_time / np.timedelta64(1, 'h'))} h")
            self._checks.after_output(lead_time)

    def _hand_over(
        self,
        legs: Round,
        step: int,
        state: State | None,
        snapshot: Snapshot | None,
        pipeline: OutputPipeline,
    ) -> None:
        lead_time = self._schedule.lead_time(step)
        slots = [
            leg.start.at(lead_time) if leg is not None and step >= leg.first_step else None
            for leg in legs
        ]
        run = self._products.run
        if not any(run.lacks(product, slot) for product in run.products for slot in slots):
            return
        own = legs[self._mesh.data.index]
        restart = (own.restart, snapshot) if own is not None and snapshot is not None else None
        with self._meter.phase("write"):
            pipeline.submit(slots, state, step, restart, self._history.take_news())

    def _forget(self, legs: Round, pipeline: OutputPipeline) -> None:
        """Removes the restart states of forecasts of which all is written."""
        own = legs[self._mesh.data.index]
        if own is not None and self._mesh.model.index == 0 and not pipeline.failure():
            own.restart.forget()

    def _slots(self, leg: Leg) -> list[Slot]:
        return [leg.start.at(lead) for lead in self._schedule.lead_times]

    def _num_steps(self, legs: Round) -> int:
        firsts = [leg.first_step for leg in legs if leg is not None]
        return self._schedule.num_steps - min(firsts)


class Checks:
    """What all ranks look at together between two steps."""

    def __init__(
        self,
        mesh: Mesh,
        plausible: Mapping[Field, tuple[float, float]],
        stop: StopSignal,
        deadline: Deadline,
        history: RunHistory,
        *,
        num_steps: int,
        stops_implausible: bool,
    ) -> None:
        """Begins with nothing found.

        Args:
            mesh: This rank's mesh.
            plausible: Range of each field.
            stop: Whether a signal came.
            deadline: Of the run.
            history: Takes what is implausible.
            num_steps: Steps of all rounds.
            stops_implausible: Whether a field outside of its range ends the run.
        """
        self._mesh = mesh
        self._plausible = plausible
        self._stop = stop
        self._deadline = deadline
        self._history = history
        self._num_left = num_steps
        self._stops_implausible = stops_implausible
        self._news: list[StepNews] = []
        self._warned: set[tuple[str, str]] = set()
        self._num_saves = 0
        self._began = time.perf_counter()

    def before_output(
        self,
        legs: Round,
        step: int,
        lead_time: np.timedelta64,
        state: State | None,
        pipeline: OutputPipeline,
    ) -> bool:
        """Ends the run where what was made is no forecast or cannot be written.

        Returns:
            Whether the state is saved to go on from.

        Raises:
            AgreedStop: Values are no numbers or not plausible, or output has failed.

        Communication:
            One gather of texts over all ranks.
        """
        own = look_at(state, self._plausible) if state is not None else StepNews()
        own.failure = pipeline.failure()
        own.signal = self._stop.name
        self._num_left -= 1
        if self._mesh.rank == 0:
            own.late = self._deadline.after_step(self._num_left)
            own.saves = self._has_time_to_save(pipeline.restart_seconds(), state)
        self._news = share(self._mesh, own)
        names = [str(leg.start) if leg is not None else "nothing" for leg in legs]
        hours = int(lead_time / np.timedelta64(1, "h"))
        size = self._mesh.model.size
        raise_if_lost(self._news, size, names, hours)
        found = find_implausible(self._news, size, names, hours)
        self._history.note_implausible(found)
        fresh = [item for item in found if (item.forecast, item.field) not in self._warned]
        self._warned.update((item.forecast, item.field) for item in fresh)
        if fresh and self._mesh.rank == 0:
            _log.warning("outside of what is plausible: %s", describe_ranges(fresh))
        if found and self._stops_implausible:
            raise AgreedStop(
                f"stopped at lead time {hours} h as --stop-implausible asks: "
                f"{describe_ranges(found)}"
            )
        return self._news[0].saves

    def _has_time_to_save(self, spent_s: float, state: State | None) -> bool:
        """Whether one more state to go on from stays within the share of the run's time."""
        # what is under way is not among the seconds spent, so each counts with its size at least
        least_s = 0.0 if state is None else state.data.nbytes / RESTART_BYTES_PER_S
        each_s = max(least_s, spent_s / max(self._num_saves, 1))
        elapsed_s = time.perf_counter() - self._began
        is_affordable = (self._num_saves + 1) * each_s <= RESTART_SHARE * elapsed_s
        self._num_saves += is_affordable
        return is_affordable

    def after_output(self, lead_time: np.timedelta64) -> None:
        """Ends the run where a signal came or it would be late; what was made is handed over.

        Raises:
            AgreedStop: It is so, and steps are left.
        """
        if self._num_left:
            raise_if_told(self._news, int(lead_time / np.timedelta64(1, "h")))


def roll_and_write(
    rolling: Rolling, rounds: Sequence[Round], pipeline: OutputPipeline, mesh: Mesh
) -> None:
    """Makes all rounds; whatever ends them, what was handed over is written where it can be.

    Raises:
        AgreedStop: See `Rolling.run`.
        ForecastError: Likewise.
    """
    try:
        rolling.run(rounds, pipeline)
        _raise_failure(mesh, pipeline)
    except (AgreedStop, ForecastError) as error:
        # every rank raised, so every rank's thread goes on to the end of the same queue
        pipeline.drain()
        failure = pipeline.failure()
        if failure and failure not in str(error):
            raise AgreedStop(f"{error}\n{failure}") from error
        raise
    except BaseException:
        pipeline.give_up()
        raise


def _raise_failure(mesh: Mesh, pipeline: OutputPipeline) -> None:
    """Ends the run where the last lead times could not be written.

    Raises:
        AgreedStop: On all ranks.
    """
    failures = [told.failure for told in share(mesh, StepNews(failure=pipeline.failure()))]
    if any(failures):
        raise AgreedStop("\n".join(dict.fromkeys(text for text in failures if text)))
