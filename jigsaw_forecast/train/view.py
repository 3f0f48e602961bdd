"""How a run shows on the terminal: a live table where one can be drawn, else lines now and then."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from jigsaw_forecast import log
from jigsaw_forecast.checkpoint.progress import format_bytes
from jigsaw_forecast.parallel.memory import peak_memory_bytes
from jigsaw_forecast.parallel.mesh import Mesh
from jigsaw_forecast.parallel.rates import matrix_rate
from jigsaw_forecast.train.meter import Meter
from jigsaw_forecast.train.reporting import Display, StepReport

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

SMOOTHING = 0.9  # of the loss that is shown, a train step
_TERA = 1e12


class PlainLines:
    """Lines every few seconds, by `log.Progress`."""

    def __init__(self, progress: log.Progress) -> None:
        """Takes what prints them."""
        self._progress = progress

    def show(self, report: StepReport, meter: Meter) -> None:
        """Counts a train step."""
        self._progress.advance(note=f"loss {report.loss:.4f}")


class LiveTable:
    """A table that is drawn again twice a second; log lines appear above it."""

    def __init__(self, mesh: Mesh, last: int, dtype: torch.dtype, console: "Console") -> None:
        """Measures the device's rate of matrix products in this dtype.

        Args:
            mesh: This rank's mesh; all ranks are taken to be alike.
            last: Train step at which the run ends.
            dtype: Of the products.
            console: Where to draw.
        """
        # rich is imported where it draws: it would cost every --help a tenth of a second
        from rich.live import Live

        self._device = mesh.device
        self._rate = matrix_rate(mesh.device, dtype) * mesh.size
        self._last = last
        self._loss: float | None = None
        self._step_s: float | None = None
        self._before_s = time.perf_counter()
        self._live = Live(console=console, refresh_per_second=2, redirect_stdout=False)

    def __enter__(self) -> "LiveTable":
        """Begins to draw."""
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves the last table standing."""
        self._live.stop()

    def show(self, report: StepReport, meter: Meter) -> None:
        """Shows a train step."""
        now_s = time.perf_counter()
        self._step_s = _smoothed(self._step_s, now_s - self._before_s)
        self._before_s = now_s
        if not report.is_skipped:
            self._loss = _smoothed(self._loss, report.loss)
        self._live.update(self._table(report, meter))

    def _table(self, report: StepReport, meter: Meter) -> "RenderableType":
        from rich.table import Table  # as in __init__

        table = Table.grid(padding=(0, 2))
        for name, value in self.rows(report, meter):
            table.add_row(name, value)
        return table

    def rows(self, report: StepReport, meter: Meter) -> list[tuple[str, str]]:
        """Names and values of what is shown."""
        flops = meter.flops_per_second
        left_s = (self._step_s or 0.0) * (self._last - report.step)
        loss = "-" if self._loss is None else f"{self._loss:.4f}"
        return [
            ("train step", f"{report.step} of {self._last}"),
            ("loss", loss),
            ("learning rate", f"{report.rate:.3g}"),
            ("gradient norm", f"{report.norm:.3g}"),
            ("samples per second", f"{meter.samples / meter.seconds:.3g}"),
            (
                "share of the device's rate",
                f"{100 * flops / self._rate:.0f} % ({flops / _TERA:.3g} of "
                f"{self._rate / _TERA:.3g} TFLOP/s)",
            ),
            ("waiting for data", f"{100 * meter.data_wait_s / meter.seconds:.1f} %"),
            ("peak memory", format_bytes(peak_memory_bytes(self._device))),
            ("time left", log.format_seconds(left_s)),
        ]


def _smoothed(before: float | None, value: float) -> float:
    return value if before is None else SMOOTHING * before + (1.0 - SMOOTHING) * value


@contextmanager
def display(mesh: Mesh, done: int, last: int, dtype: torch.dtype) -> Iterator[Display]:
    """Shows a run from train step `done` to `last`."""
    terminal = _terminal()
    if mesh.rank != 0 or terminal is None or not terminal.can_draw:
        with log.Progress("training", last - done, "train steps") as progress:
            yield PlainLines(progress)
        return
    from rich.console import Console  # as in LiveTable

    with LiveTable(mesh, last, dtype, Console(stderr=True)) as table:
        yield table


def _terminal() -> log.TerminalHandler | None:
    handlers = logging.getLogger(log.PACKAGE).handlers
    return next((each for each in handlers if isinstance(each, log.TerminalHandler)), None)
