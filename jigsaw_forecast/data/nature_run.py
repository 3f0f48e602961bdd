"""Starts the nature run's script in the environment that holds jcm, and shows its progress."""

import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jigsaw_forecast.errors import ForecastError, StoppedError

INTERPRETER_VARIABLE = "JIGSAW_NATURE_PYTHON"
SCRIPT = Path(__file__).with_name("nature_run_script.py")
_ENVIRONMENT_PYTHON = Path(".venv-nature") / "bin" / "python"
_EXIT_RESUMABLE = 3  # of the script: stopped, and the same command goes on
_NUM_LAST_LINES = 15


@dataclass(frozen=True)
class NatureRunProgress:
    """Says how far a nature run is.

    Attributes:
        done_months: finished months of 30 days; each is a point to resume from.
        total_months: months of the whole run, the last one shorter.
        label: what is going on, for a person.
    """

    done_months: int
    total_months: int
    label: str


def find_interpreter() -> Path:
    """Finds the Python that can import jcm.

    Returns:
        The path in JIGSAW_NATURE_PYTHON, else `.venv-nature/bin/python` under the current folder,
        else beside the package.

    Raises:
        ForecastError: none is there; the message says what makes it.
    """
    named = os.environ.get(INTERPRETER_VARIABLE)
    if named:
        if os.access(named, os.X_OK) and Path(named).is_file():
            return Path(named)
        raise ForecastError(f"{INTERPRETER_VARIABLE}={named} is not a program; unset or correct it")
    folders = (Path.cwd(), Path(__file__).resolve().parents[2])
    for folder in folders:
        if os.access(folder / _ENVIRONMENT_PYTHON, os.X_OK):
            return folder / _ENVIRONMENT_PYTHON
    raise ForecastError(
        "missing the environment of the nature run: no "
        + " and no ".join(str(folder / _ENVIRONMENT_PYTHON) for folder in dict.fromkeys(folders))
        + f"; `make nature` makes it, or set {INTERPRETER_VARIABLE} to a Python that has jcm 3.0.0"
    )


def parse_progress(line: str) -> NatureRunProgress | None:
    """Reads one line of the script's output; anything else than its JSON is None."""
    try:
        fields = json.loads(line)
        done, total = int(fields["done_months"]), int(fields["total_months"])
    except (ValueError, KeyError, TypeError):
        return None
    label = str(fields.get("valid_time") or fields.get("phase") or "")
    return NatureRunProgress(done, total, label)


def run_nature_run(
    output: Path,
    *,
    num_years: int,
    end_year: int,
    grid: str,
    seed: int,
    spinup_days: int,
    num_days: int | None = None,
) -> None:
    """Simulates years of weather into a WeatherBench 2 zarr store, or goes on with a stopped run.

    Args:
        output: the store; it appears under this name once it is complete.
        num_years: years to simulate; the last ends on 31 December, 18 h.
        end_year: the last year.
        grid: target grid as WxH, regular without poles, e.g. `64x32`.
        seed: of the initial perturbation; another seed is other weather.
        spinup_days: days simulated and thrown away before the first year.
        num_days: of the first year on, where not all of the years are wanted.

    Raises:
        ForecastError: no environment, a refusal, or a fault, with the script's last lines.
        StoppedError: stopped by a signal or by a fault that it can resume from.
    """
    command = [str(find_interpreter()), str(SCRIPT), str(output)]
    command += ["--years", str(num_years), "--end-year", str(end_year), "--grid", grid]
    command += ["--seed", str(seed), "--spinup-days", str(spinup_days)]
    command += ["--days", str(num_days)] if num_days is not None else []
    with tempfile.TemporaryFile("w+") as errors:
        # A session of its own: a Ctrl-C then reaches the child once, forwarded, not twice.
        with (
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
            ) as child,
            _forwarded_signals(child),
        ):
            assert child.stdout is not None
            others = _show_progress(child.stdout)
            exit_code = child.wait()
        errors.seek(0)
        last_lines = (others + errors.read().splitlines())[-_NUM_LAST_LINES:]
    if exit_code:
        _raise_failure(exit_code, last_lines)


def _raise_failure(exit_code: int, last_lines: list[str]) -> None:
    """Turns the script's exit code and last lines into an exception."""
    told = [line.removeprefix("error: ") for line in last_lines if line.startswith("error: ")]
    detail = told[-1] if told else "\n".join(last_lines)
    if exit_code == _EXIT_RESUMABLE:
        raise StoppedError(f"nature run: {detail}")
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        raise StoppedError(
            f"nature run: its process ended by {name}; the same command goes on from the last month"
        )
    raise ForecastError(f"nature run failed (exit code {exit_code}): {detail}")


@contextmanager
def _forwarded_signals(child: subprocess.Popen[str]) -> Iterator[None]:
    """Hands SIGINT and SIGTERM on to the child, which stops at once and can be resumed."""
    # Python delivers signals to the main thread only.
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def forward(signum: int, frame: FrameType | None) -> None:
        child.send_signal(signum)

    before = {signum: signal.signal(signum, forward) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _show_progress(lines: IO[str]) -> list[str]:
    """Draws a bar on a terminal and a line per month elsewhere; gives the lines it cannot read."""
    console = Console(stderr=True)
    others: list[str] = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("months, left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("nature run", total=None)
        for line in lines:
            progress = parse_progress(line)
            if progress is None:
                others.append(line.rstrip("\n"))
                continue
            bar.update(
                task,
                description=f"nature run {progress.label}",
                completed=progress.done_months,
                total=progress.total_months,
            )
            if not console.is_terminal:
                console.print(
                    f"nature run: month {progress.done_months} of {progress.total_months}"
                    f" {progress.label}".rstrip(),
                    soft_wrap=True,
                    highlight=False,
                )
    return others
