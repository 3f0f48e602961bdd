"""Logging and progress: what a run tells its terminal and its log file.

The commands call `configure` once. Until then the package's loggers have no handler and stay
silent below WARNING, as in any library.
"""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO, TypeVar

from jigsaw_forecast.errors import OutputError

PACKAGE = "jigsaw_forecast"
PROGRESS_LINE_PERIOD_S = 10.0  # between plain progress lines, where no bar can be drawn

Item = TypeVar("Item")
_progress_logger = logging.getLogger(f"{PACKAGE}.progress")


def configure(
    *, quiet: bool = False, log_file: Path | None = None, rank: int = 0, num_ranks: int = 1
) -> None:
    """Sends the package's log to stderr and, where asked, to a file; replaces earlier settings.

    Rank 0 shows INFO and above, or WARNING and above where quiet; the other ranks show warnings
    and errors only. With more than one rank, warnings name their rank. The file gets plain lines
    with the time in UTC: INFO from rank 0, warnings from all ranks, whether quiet or not.

    Args:
        quiet: Whether the terminal shows only warnings and errors.
        log_file: File to append to, or None.
        rank: This process's rank.
        num_ranks: Number of ranks of the run.

    Raises:
        OutputError: The log file cannot be opened.
    """
    logger = logging.getLogger(PACKAGE)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(logging.INFO)
    logger.propagate = False
    terminal = TerminalHandler()
    terminal.setLevel(logging.WARNING if quiet or rank != 0 else logging.INFO)
    terminal.setFormatter(_PlainFormatter(rank, num_ranks))
    logger.addHandler(terminal)
    if log_file is not None:
        logger.addHandler(_file_handler(log_file, rank, num_ranks))


class TerminalHandler(logging.Handler):
    """Writes to the stderr of the moment, so that lines land above a bar that is being drawn."""

    bar_is_live = False

    @property
    def can_draw(self) -> bool:
        """Whether this process may draw a progress bar: it shows INFO, and on a terminal."""
        return self.level <= logging.INFO and sys.stderr.isatty()

    def emit(self, record: logging.LogRecord) -> None:
        """Writes the record's line; progress lines only where no bar shows the same."""
        if self.bar_is_live and record.name == _progress_logger.name:
            return
        stream: TextIO = sys.stderr
        stream.write(self.format(record) + "\n")
        stream.flush()


class Progress:
    """Reports a long loop: a bar with the time left on a terminal, else a line now and then.

    Use as a context manager; call `advance` after each piece. Log files always get lines.

    Attributes:
        description: What is going on, `rollout`.
        total: Pieces in all.
        unit: Name of a piece in the plural, `steps`.
        done: Pieces done so far.
    """

    def __init__(self, description: str, total: int, unit: str = "steps") -> None:
        self.description = description
        self.total = total
        self.unit = unit
        self.done = 0
        self._start_s = self._last_line_s = time.monotonic()
        self._first: tuple[float, int] | None = None  # end of the first piece, and its size
        self._bar: _Bar | None = None

    def __enter__(self) -> Self:
        """Starts the clock and draws the bar where there is a terminal for it."""
        self._start_s = self._last_line_s = time.monotonic()
        terminal = _terminal_handler()
        if terminal is not None and terminal.can_draw:
            self._bar = _Bar(self, terminal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Removes the bar and says how long the pieces took."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        took = format_seconds(time.monotonic() - self._start_s)
        logging.getLogger(PACKAGE).info("%s: %s in %s", self.description, self._count(), took)

    def advance(self, num_pieces: int = 1, note: str = "") -> None:
        """Counts pieces as done.

        Args:
            num_pieces: How many.
            note: What was done last, such as `lead time 6 h` or `loss 0.312`.
        """
        self.done += num_pieces
        if self._bar is not None:
            self._bar.update(self.done, note)
        now_s = time.monotonic()
        if now_s - self._last_line_s >= PROGRESS_LINE_PERIOD_S:
            self._last_line_s = now_s
            parts = [f"{self.description}: {self._count()}", self._describe_rest(now_s), note]
            _progress_logger.info("%s", ", ".join(part for part in parts if part))
        self._first = self._first or (now_s, self.done)

    def _describe_rest(self, now_s: float) -> str:
        """How long the rest takes, empty as long as only the first piece is known.

        The first takes longer: much is made ready in it.
        """
        if self._first is None or self.done <= self._first[1]:
            return ""
        first_s, num_first = self._first
        left_s = (now_s - first_s) / (self.done - num_first) * max(self.total - self.done, 0)
        return f"{format_seconds(left_s)} left"

    def _count(self) -> str:
        if self.done == self.total:
            return f"{self.total} {self.unit}"
        return f"{self.done} of {self.total} {self.unit}"


def track(
    items: Iterable[Item], description: str, total: int, unit: str = "steps"
) -> Iterator[Item]:
    """Yields the items while a `Progress` counts them; each counts as done when the next is asked.

    Args:
        items: What to loop over.
        description: What is going on, `rollout`.
        total: How many items there are.
        unit: Name of an item in the plural.
    """
    with Progress(description, total, unit) as progress:
        for item in items:
            yield item
            progress.advance()


def count(number: int, unit: str) -> str:
    """`1 rank`, `2 ranks`, `0 GPUs`."""
    return f"{number} {unit}{'' if number == 1 else 's'}"


def format_seconds(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3:05 min` or `2:03 h`: as one would say it."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


class _Bar:
    """A rich progress bar on stderr; log lines of the meantime appear above it."""

    def __init__(self, progress: Progress, terminal: TerminalHandler) -> None:
        # rich is imported where a bar is drawn: it would cost every --help a tenth of a second
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._rich = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("left"),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,
        )
        self._task = self._rich.add_task(progress.description, total=progress.total, note="")
        self._terminal = terminal
        self._rich.start()
        terminal.bar_is_live = True

    def update(self, done: int, note: str) -> None:
        self._rich.update(self._task, completed=done, note=note)

    def close(self) -> None:
        self._terminal.bar_is_live = False
        self._rich.stop()


class _PlainFormatter(logging.Formatter):
    """`message`, `warning: message`, or `warning: rank 3: message` among several ranks."""

    def __init__(self, rank: int, num_ranks: int, *, with_time: bool = False) -> None:
        super().__init__()
        self._rank_prefix = f"rank {rank}: " if num_ranks > 1 else ""
        self._with_time = with_time

    def format(self, record: logging.LogRecord) -> str:
        line = record.getMessage()
        if record.levelno >= logging.WARNING:
            line = f"{record.levelname.lower()}: {self._rank_prefix}{line}"
        if record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        if self._with_time:
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
            line = f"{now} {line}"
        return line


def _file_handler(log_file: Path, rank: int, num_ranks: int) -> logging.Handler:
    try:
        handler = logging.FileHandler(log_file, encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"cannot write the log file {log_file}: {error.strerror}; give --log-file a path in a "
            "folder that exists and can be written"
        ) from error
    handler.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    handler.setFormatter(_PlainFormatter(rank, num_ranks, with_time=True))
    return handler


def _terminal_handler() -> TerminalHandler | None:
    for handler in logging.getLogger(PACKAGE).handlers:
        if isinstance(handler, TerminalHandler):
            return handler
    return None
