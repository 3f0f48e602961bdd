"""What a run tells: the live table, stragglers, TensorBoard."""

import errno
import io
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from jigsaw_forecast.errors import RecipeError
from jigsaw_forecast.parallel.mesh import single_rank_mesh
from jigsaw_forecast.train import reporting, view
from jigsaw_forecast.train.meter import Meter
from jigsaw_forecast.train.output import TrainOutput
from jigsaw_forecast.train.profiling import profiled
from jigsaw_forecast.train.reporting import Reporter, StepReport
from jigsaw_forecast.train.run import train_recipe
from jigsaw_forecast.train.tensorboard import TensorBoard, numbers
from jigsaw_forecast.train.view import LiveTable
from tests.unit.train.made_up import write_recipe, write_store

REPORT = StepReport(step=5, loss=0.25, norm=1.5, rate=3e-4, samples=8, is_skipped=False)


class _Nothing:
    def show(self, report: StepReport, meter: Meter) -> None:
        pass


def test_the_table_shows_what_one_asks_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view, "matrix_rate", lambda device, dtype: 2e12)
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=80)
    meter = Meter(single_rank_mesh())
    meter.count(8)
    with LiveTable(single_rank_mesh(), 100, torch.float32, console) as table:
        table.show(REPORT, meter)
        rows = dict(table.rows(REPORT, meter))
    assert rows["train step"] == "5 of 100"
    assert rows["loss"] == "0.2500"
    assert rows["learning rate"] == "0.0003"
    assert rows["share of the device's rate"].endswith("of 2 TFLOP/s)")
    assert {"samples per second", "waiting for data", "peak memory", "time left"} <= rows.keys()
    assert "5 of 100" in text.getvalue()


def test_a_slow_rank_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("jigsaw_forecast"), "propagate", True)
    reporter = Reporter(single_rank_mesh(), TrainOutput(tmp_path), [0.1], _Nothing())
    seconds = {"work": [1.0, 1.1, 0.9, 2.2], "data_wait": [0.0] * 4}
    monkeypatch.setattr(reporter.meter, "rank_seconds", lambda: seconds)
    reporter.log_metrics(REPORT, 40, 0.0)
    assert "slow ranks: rank 3 2.2 s of work that takes 1.05 s on most" in caplog.text


def test_numbers_go_by_their_path() -> None:
    line = {"train_step": 3, "loss": 0.5, "rmse": {"z500": {24: 80.0}}, "skipped": "nan", "n": None}
    assert dict(numbers(line)) == {"loss": 0.5, "rmse/z500/24": 80.0}


def test_tensorboard_gets_every_number(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    board = TensorBoard(tmp_path, 2)
    board.add({"train_step": 3, "loss": 0.5})
    board.close()
    (path,) = tmp_path.glob("events.out.tfevents.*")
    assert b"training/loss" in path.read_bytes()


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    recipe = write_recipe(tmp_path, write_store(tmp_path))
    output = tmp_path / "output"
    with pytest.raises(RecipeError, match=r"missing package tensorboard; install it by `pip"):
        train_recipe(recipe, ["train.tensorboard=true"], {}, output, False, None)
    assert not output.exists()


def test_lines_wait_for_room_on_a_full_disk_and_none_is_torn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    warn = lambda text, *values: told.append(text % values)  # noqa: E731
    monkeypatch.setattr(reporting._log, "warning", warn)
    output = TrainOutput(tmp_path)
    reporter = Reporter(single_rank_mesh(), output, [], _Nothing())
    reporter.log_skipped(1, "nan")
    whole = output.metrics.read_bytes()
    room = [3, 0, 0]  # bytes that the disk still takes

    class Full(io.FileIO):
        def write(self, content: Any) -> int:
            if room and not room[0]:
                del room[0]
                raise OSError(errno.ENOSPC, "No space left on device")
            if room:
                content, room[0] = content[: room[0]], 0
            return super().write(content)

    monkeypatch.setattr(Path, "open", lambda path, *_, **__: Full(path, "a"))
    reporter.log_skipped(2, "nan")
    reporter.log_skipped(3, "nan")
    assert output.metrics.stat().st_size == len(whole)
    assert sum("cannot be written: No space left on device" in text for text in told) == 1
    room.clear()
    reporter.log_skipped(4, "nan")
    monkeypatch.undo()
    lines = output.metrics.read_text().splitlines()
    assert [json.loads(line)["train_step"] for line in lines] == [1, 2, 3, 4]


def test_a_run_too_short_for_a_profile_says_so_and_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("jigsaw_forecast"), "propagate", True)
    with profiled(tmp_path / "profile", single_rank_mesh()) as after_step:
        after_step()
    assert "no profile: the run had fewer than 5 train steps" in caplog.text
    assert not (tmp_path / "profile").exists()
