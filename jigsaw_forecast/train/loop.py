"""The training loop: phase after phase, step after step; validates, logs and saves on the way."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from jigsaw_forecast.data.training_set import Batch, ReadAhead
from jigsaw_forecast.errors import ForecastError, StoppedError
from jigsaw_forecast.parallel.collectives import all_reduce_sum
from jigsaw_forecast.parallel.watch import note
from jigsaw_forecast.train.checkpointing import samples_until
from jigsaw_forecast.train.noise import add_noise
from jigsaw_forecast.train.optimizer import learning_rate, local_gradient_square, phase_at
from jigsaw_forecast.train.precision import in_precision, micro_batches
from jigsaw_forecast.train.prepare import Run, on_first_rank
from jigsaw_forecast.train.reporting import Reporter, StepReport
from jigsaw_forecast.train.schema import Phase
from jigsaw_forecast.train.stopping import Stop


def train(run: Run, last: int, stop: Stop, reporter: Reporter) -> None:
    """Trains until `last` train steps are done or a signal comes, and saves.

    Raises:
        StoppedError: A signal came, the loss is no number, or the last save failed.
    """
    loop = _Loop(run, last, stop, reporter)
    try:
        while run.state.step < last and not stop.is_agreed:
            loop.run_phase()
    except (ForecastError, StoppedError):
        run.checkpoints.settle()  # a save under way is worth hours
        raise
    loop.save_last()
    if stop.is_agreed and run.state.step < run.recipe.train.num_steps:
        name = stop.signal_name or "a signal to another rank"
        raise StoppedError(
            f"stopped by {name} after {run.state.step} train steps; go on with --resume"
        )


@dataclass(frozen=True)
class _Place:
    """Where in the recipe a train step is.

    Attributes:
        index: Of the phase.
        phase: The phase.
        begin: Train steps before it.
        end: Last train step to do in it.
    """

    index: int
    phase: Phase
    begin: int
    end: int


class _Loop:
    """The state of the loop that no checkpoint needs."""

    def __init__(self, run: Run, last: int, stop: Stop, reporter: Reporter) -> None:
        self._run = run
        self._last = last
        self._stop = stop
        self._reporter = reporter
        self._parameters = list(run.state.model.parameters())
        self._validated: tuple[int, float] = (0, 0.0)  # train step and error
        self._num_skipped = 0  # in a row

    def run_phase(self) -> None:
        """The rest of the phase that the run is in."""
        run, train, state = self._run, self._run.recipe.train, self._run.state
        index, step_in_phase = phase_at(train, state.step)
        phase = train.phases[index]
        begin = state.step - step_in_phase
        place = _Place(index, phase, begin, min(begin + phase.num_steps, self._last))
        batch_size = train.batch_size(phase)
        order = run.order(index)

        def make_batch(step: int) -> Batch:
            starts = order.starts(step - begin, batch_size, run.mesh)
            batch = run.data.batch(starts, phase.rollout_steps)
            return batch.pinned() if run.mesh.device.type == "cuda" else batch

        num_ahead = run.recipe.data.prefetch_batches
        batches = ReadAhead(make_batch, state.step, place.end, num_ahead)
        try:
            while state.step < place.end and not self._stop.is_agreed:
                self._step(place, batches)
        finally:
            batches.close()

    def save_last(self) -> None:
        """Saves what is not saved yet, and leaves `REQUEUE` where a signal stopped the run."""
        run = self._run
        if self._stop.is_agreed and run.state.step < run.recipe.train.num_steps:
            # first: whoever sent the signal may not wait for the save
            on_first_rank(run.mesh, run.output.ask_to_go_on)
        with self._reporter.meter.paused():
            run.checkpoints.save_last(self._sample_order(), self._validation_error())

    def _step(self, place: _Place, batches: ReadAhead) -> None:
        """One train step and what is due after it."""
        run, train, state = self._run, self._run.recipe.train, self._run.state
        reporter, meter = self._reporter, self._reporter.meter
        note(f"train step {state.step + 1}")
        with meter.waiting_for_data():
            batch = batches.take()
        batch = self._ready(batch, place)
        rate = learning_rate(place.phase, train.warmup(place.phase), state.step - place.begin)
        batch_size = train.batch_size(place.phase)
        with meter.counting_flops((place.phase.rollout_steps, batch_size)):
            loss = self._gradients(batch, train.micro_batches_of(place.phase))
        report = self._update(loss, rate, batch_size)
        is_last = state.step == train.num_steps
        reporter.after_step(report)
        if state.step % train.log_every == 0 or is_last:
            samples = samples_until(run.recipe, state.step)
            reporter.log_metrics(report, samples, run.checkpoints.take_stalled_s())
        with meter.paused():
            if state.step % train.validate_every == 0 or is_last:
                self._validate()
            if state.step % train.checkpoint_every == 0 and state.step < self._last:
                run.checkpoints.save(self._sample_order(), self._validation_error())

    def _ready(self, batch: Batch, place: _Place) -> Batch:
        """A batch on the device, in the dtype of the weights, with noise where asked."""
        run = self._run
        dtype = self._parameters[0].dtype
        batch = in_precision(batch.to(run.mesh.device), dtype)
        deviation = run.recipe.train.input_noise
        if deviation:
            batch_size = run.recipe.train.batch_size(place.phase)
            batch = add_noise(
                batch, run.state.model, deviation, (run.recipe.seed, run.state.step), batch_size
            )
        return batch

    def _gradients(self, batch: Batch, num_parts: int) -> torch.Tensor:
        """Forward and backward; returns this rank's part of the loss.

        Communication:
            The model's own and that of `ReplicatedLoss.backward`.
        """
        return self._run.loss.backward(micro_batches(batch, num_parts))

    def _update(self, loss: torch.Tensor, rate: float, batch_size: int) -> StepReport:
        """One AdamW step, unless loss or gradients are no numbers.

        Raises:
            StoppedError: They are none, and the recipe does not skip such steps; the same on every
                rank, since all judge by the same sums.

        Communication:
            One all-reduce of three numbers (squared gradient norm, loss, whether a rank was
            signalled) over each axis.
        """
        run, state, mesh = self._run, self._run.state, self._run.mesh
        shared = torch.stack(
            [
                local_gradient_square(self._parameters).double() / mesh.data.size,
                loss.double() / mesh.data.size,
                loss.new_tensor(float(bool(self._stop.signal_name))).double(),
            ]
        )
        all_reduce_sum(shared, (mesh.domain, mesh.tensor, mesh.data))
        square, mean_loss, num_signalled = shared.tolist()
        norm = float(np.sqrt(square))
        is_finite = bool(np.isfinite(square) and np.isfinite(mean_loss))
        if is_finite:
            self._num_skipped = 0
            with self._reporter.meter.local_work():
                self._apply(norm, rate)
        else:
            self._skip(mean_loss, norm)
        run.state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        self._stop.is_agreed = num_signalled > 0
        if is_finite:
            state.losses.append(mean_loss)
        return StepReport(state.step, mean_loss, norm, rate, batch_size, not is_finite)

    def _apply(self, norm: float, rate: float) -> None:
        state = self._run.state
        clip_norm = self._run.recipe.train.clip_norm
        nn.utils.clip_grads_with_norm_(self._parameters, clip_norm, torch.tensor(norm))
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.step()
        state.num_updates += 1
        state.average.update(state.num_updates)

    def _skip(self, loss: float, norm: float) -> None:
        """Leaves the weights as they are, or ends the run.

        Raises:
            StoppedError: As `_update` says.
        """
        train, step = self._run.recipe.train, self._run.state.step + 1
        self._num_skipped += 1
        found = f"the loss is {loss:g} and the gradient norm {norm:g} at train step {step}"
        if train.on_non_finite == "skip" and self._num_skipped <= train.max_skipped:
            self._reporter.log_skipped(step, found)
            return
        if train.on_non_finite == "skip":
            found = f"{found}, {self._num_skipped} in a row (train.max_skipped)"
        saved = self._run.checkpoints.saved_step
        go_on = (
            f"go on from the checkpoint of step {saved}"
            if saved
            else "start again (no checkpoint is there yet)"
        )
        raise StoppedError(
            f"{found}; lower train.phases learning_rate, or {go_on} with --resume, which may skip "
            "such steps: --set train.on_non_finite=skip"
        )

    def _validate(self) -> None:
        """Scores the averaged weights and writes a line of metrics."""
        run = self._run
        with self._reporter.timed() as timer, run.state.average.applied():
            scores = run.validation.score()
        self._validated = (run.state.step, scores.error)
        self._reporter.log_validation(run.state.step, scores, timer.seconds)

    def _validation_error(self) -> float | None:
        step, error = self._validated
        return error if step == self._run.state.step and np.isfinite(error) else None

    def _sample_order(self) -> dict[str, Any]:
        """Where the order of samples stands: a pure function of these."""
        train, step = self._run.recipe.train, self._run.state.step
        index, step_in_phase = len(train.phases) - 1, train.phases[-1].num_steps
        if step < train.num_steps:
            index, step_in_phase = phase_at(train, step)
        position = step_in_phase * train.batch_size(train.phases[index])
        return {"phase": index, **self._run.order(index).state(position)}
