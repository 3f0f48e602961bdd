"""What a training run tells: JSON lines always, TensorBoard where asked, a view or plain lines."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from jigsaw_forecast.parallel.mesh import Mesh
from jigsaw_forecast.train.meter import Meter
from jigsaw_forecast.train.output import TrainOutput
from jigsaw_forecast.train.validation import ValidationScores

# a rank that takes so much longer than the median for work that is alike on all is told of
SLOW_RATIO = 1.5
_SHORTEST_TOLD_S = 0.05  # differences below are the clock's and the scheduler's

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepReport:
    """What a train step gave, the same on all ranks.

    Attributes:
        step: Train steps done with this one.
        loss: Over all replicas.
        norm: Of the gradient, before clipping.
        rate: Learning rate.
        samples: Of all replicas.
        is_skipped: Whether the weights were left as they were.
    """

    step: int
    loss: float
    norm: float
    rate: float
    samples: int
    is_skipped: bool


class Display(Protocol):
    """What shows a run while it goes on."""

    def show(self, report: StepReport, meter: Meter) -> None:
        """Shows a train step."""


class Board(Protocol):
    """Where numbers by name and train step go besides `metrics.jsonl`."""

    def add(self, line: dict[str, Any]) -> None:
        """Takes one line of metrics."""


class Timer:
    """Seconds within a `timed` block."""

    def __init__(self) -> None:
        """Starts."""
        self._start_s = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self._start_s


class Reporter:
    """Writes metrics on the first rank.

    Attributes:
        meter: What this rank measures.
    """

    def __init__(
        self,
        mesh: Mesh,
        output: TrainOutput,
        losses: list[float],
        display: Display,
        boards: Sequence[Board] = (),
        after: Sequence[Callable[[], None]] = (),
    ) -> None:
        """Takes where to report to.

        Args:
            mesh: This rank's mesh.
            output: The run's folder.
            losses: Of the steps since the last line of metrics; emptied with each.
            display: On the terminal.
            boards: Take every line of metrics too.
            after: Called after each train step.
        """
        self.meter = Meter(mesh)
        self._mesh = mesh
        self._output = output
        self._losses = losses
        self._display = display
        self._boards = boards
        self._after = after
        self._unwritten: deque[dict[str, Any]] = deque()

    def after_step(self, report: StepReport) -> None:
        """Notes a train step."""
        self.meter.count(report.samples)
        if self._mesh.rank == 0:
            self._display.show(report, self.meter)
        for act in self._after:
            act()

    def log_metrics(self, report: StepReport, samples: int, stalled_s: float) -> None:
        """Writes a line of metrics and starts a new interval.

        Args:
            report: Of the last train step.
            samples: Of the run so far.
            stalled_s: Seconds that training stood still for saves.

        Communication:
            That of `Meter.rank_seconds`.
        """
        if not self._losses:
            return  # all steps of the interval were skipped
        measured = self.meter.line()
        by_rank = self.meter.rank_seconds()
        line = {
            "train_step": report.step,
            "samples": samples,
            "learning_rate": report.rate,
            "loss": float(np.mean(self._losses)),
            "gradient_norm": report.norm,
            **measured,
            "checkpoint_stall_seconds": round(stalled_s, 4),
            "rank_seconds": by_rank,
        }
        self._losses.clear()
        self.meter.restart()
        self._write(line)
        self._tell_stragglers(by_rank["work"])

    def log_skipped(self, step: int, found: str) -> None:
        """Writes that a train step was skipped, and why."""
        if self._mesh.rank == 0:
            _log.warning("%s: the step is skipped", found)
        self._write({"train_step": step, "skipped": found})

    def log_validation(self, step: int, scores: ValidationScores, seconds: float) -> None:
        """Writes the scores of a validation."""
        line = {
            "train_step": step,
            "validation_loss": scores.loss,
            "validation_error": scores.error,
            "rmse": scores.rmse,
            **scores.references,
            "seconds": round(seconds, 4),
        }
        self._write(line)
        if self._mesh.rank == 0:
            errors = f"; {scores.text()}" if scores.rmse else ""  # of headline fields, if any
            _log.info("train step %d: validation loss %.4f%s", step, scores.loss, errors)

    @contextmanager
    def timed(self) -> Iterator[Timer]:
        """A running timer."""
        yield Timer()

    def _write(self, line: dict[str, Any]) -> None:
        if self._mesh.rank != 0:
            return
        self._unwritten.append(line)
        try:
            while self._unwritten:
                self._output.append_metrics(self._unwritten[0])
                self._unwritten.popleft()
        except OSError as error:
            if len(self._unwritten) == 1:  # once, not at every line until there is room again
                _log.warning(
                    "%s cannot be written: %s; training goes on, the lines follow once there is "
                    "room",
                    *(self._output.metrics, error.strerror),
                )
        for board in self._boards:
            board.add(line)

    def _tell_stragglers(self, work_s: list[float]) -> None:
        """Names ranks that are much slower than most at work that is alike on all."""
        median = float(np.median(work_s))
        slow = [
            f"rank {rank} {seconds:.3g} s"
            for rank, seconds in enumerate(work_s)
            if seconds > SLOW_RATIO * median and seconds - median > _SHORTEST_TOLD_S
        ]
        if slow and self._mesh.rank == 0:
            _log.warning(
                "slow ranks: %s of work that takes %.3g s on most; `jigsaw-forecast selfcheck "
                "--mesh` measures each",
                ", ".join(slow),
                median,
            )


@contextmanager
def all_of(*contexts: Any) -> Iterator[list[Any]]:
    """Enters several contexts; leaves them in reverse."""
    with ExitStack() as stack:
        yield [stack.enter_context(context) for context in contexts]
