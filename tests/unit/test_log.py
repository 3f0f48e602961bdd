"""The log: who says what on the terminal and in the file, and how progress looks."""

import contextlib
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jigsaw_forecast import log
from jigsaw_forecast.errors import OutputError

logger = logging.getLogger("jigsaw_forecast.data.somewhere")


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    package = logging.getLogger(log.PACKAGE)
    before = (package.level, package.propagate)
    yield
    for handler in list(package.handlers):
        package.removeHandler(handler)
        handler.close()
    package.setLevel(before[0])
    package.propagate = before[1]


def test_rank_0_shows_messages_plainly_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure()
    logger.info("read %d fields", 69)
    captured = capsys.readouterr()
    assert captured.err == "read 69 fields\n"
    assert captured.out == ""


def test_warnings_are_called_so(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure()
    logger.warning("padding of 4 bytes")
    assert capsys.readouterr().err == "warning: padding of 4 bytes\n"


def test_quiet_shows_warnings_only(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(quiet=True)
    logger.info("read 69 fields")
    logger.warning("padding")
    assert capsys.readouterr().err == "warning: padding\n"


def test_other_ranks_show_warnings_only_and_say_who_they_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log.configure(rank=3, num_ranks=4)
    logger.info("read 69 fields")
    logger.warning("slow disk")
    assert capsys.readouterr().err == "warning: rank 3: slow disk\n"


def test_debug_messages_are_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure()
    logger.debug("detail")
    assert capsys.readouterr().err == ""


def test_the_file_gets_lines_with_the_time_even_where_quiet(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    log.configure(quiet=True, log_file=path)
    logger.info("read 69 fields")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ read 69 fields\n", path.read_text())


def test_the_file_gets_warnings_from_all_ranks_and_messages_from_rank_0(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    for rank in (0, 1):
        log.configure(log_file=path, rank=rank, num_ranks=2)
        logger.info("message of %d", rank)
        logger.warning("warning of %d", rank)
    lines = [line.partition("Z ")[2] for line in path.read_text().splitlines()]
    assert lines == [
        "message of 0",
        "warning: rank 0: warning of 0",
        "warning: rank 1: warning of 1",
    ]


def test_a_second_setting_replaces_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure()
    log.configure()
    logger.info("once")
    assert capsys.readouterr().err == "once\n"


def test_a_log_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "missing-folder" / "run.log"
    with pytest.raises(OutputError, match="cannot write the log file .*run.log: No such file"):
        log.configure(log_file=path)


def test_progress_ends_with_one_line_where_no_bar_can_be_drawn(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log.configure()
    assert list(log.track(iter("abc"), "rollout", 3)) == ["a", "b", "c"]
    assert re.fullmatch(r"rollout: 3 steps in 0\.\d s\n", capsys.readouterr().err)


def test_progress_writes_a_line_with_the_time_left_when_the_period_is_over(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock_s = [0.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: clock_s[0])
    log.configure()
    with log.Progress("rollout", 40) as progress:
        for _ in range(10):
            clock_s[0] += 6.0
            progress.advance(note="lead time 6 h")
    lines = capsys.readouterr().err.splitlines()
    # a line at 12 s, 24 s, ... since pieces of 6 s pass a period of 10 s at every second one
    assert lines[0] == "rollout: 2 of 40 steps, 3:48 min left, lead time 6 h"
    assert len(lines) == 5 + 1
    assert lines[-1] == "rollout: 10 of 40 steps in 1:00 min"


def test_time_left_does_not_take_the_first_piece_for_all_others(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock_s = [0.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: clock_s[0])
    log.configure()
    with log.Progress("rollout", 40) as progress:
        for seconds in (60.0, 10.0, 10.0):
            clock_s[0] += seconds
            progress.advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "rollout: 1 of 40 steps"
    assert lines[1] == "rollout: 2 of 40 steps, 6:20 min left"
    assert lines[2] == "rollout: 3 of 40 steps, 6:10 min left"


def test_progress_that_fails_says_how_far_it_came(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure()
    with contextlib.suppress(ZeroDivisionError), log.Progress("rollout", 40) as progress:
        progress.advance()
        progress.advance(1 // 0)
    assert capsys.readouterr().err.startswith("rollout: 1 of 40 steps in")


def test_a_terminal_gets_a_bar_with_the_time_left_and_the_log_above_it(tmp_path: Path) -> None:
    script = (
        "import logging\n"
        "from jigsaw_forecast import log\n"
        "log.configure()\n"
        "for step in log.track(range(40), 'rollout', 40):\n"
        "    logging.getLogger('jigsaw_forecast.x').warning('hello') if step == 3 else None\n"
    )
    shown = run_on_terminal(script)
    assert "0/40" in shown
    assert "left" in shown
    assert "warning: hello" in shown
    assert "rollout: 40 steps in" in shown


def test_quiet_draws_no_bar() -> None:
    script = (
        "from jigsaw_forecast import log\n"
        "log.configure(quiet=True)\n"
        "list(log.track(range(40), 'rollout', 40))\n"
    )
    assert run_on_terminal(script) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (12.4, "12 s"), (185, "3:05 min"), (7380, "2:03 h")],
)
def test_times_are_said_in_the_unit_that_fits(seconds: float, text: str) -> None:
    assert log.format_seconds(seconds) == text


def test_the_log_needs_neither_torch_nor_rich() -> None:
    script = (
        "import sys, jigsaw_forecast.log\n"
        "print([m for m in ('torch', 'rich', 'numpy') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "[]\n"


def run_on_terminal(script: str) -> str:
    """What a Python script shows on a pseudo-terminal as its stderr."""
    parent, child = os.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen([sys.executable, "-c", script], stderr=child, env=environment)
    os.close(child)
    shown = b""
    try:
        while piece := os.read(parent, 4096):
            shown += piece
    except OSError:  # Linux reports the end of a terminal so
        pass
    os.close(parent)
    assert process.wait() == 0
    return shown.decode()
