"""Training as a whole on mock weather: it learns, stops, goes on and refuses."""

import itertools
import json
import logging
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from jigsaw_forecast.checkpoint.load import load_checkpoint
from jigsaw_forecast.checkpoint.writer import CheckpointWriter
from jigsaw_forecast.data.training_set import ReadAhead
from jigsaw_forecast.data.weather_store import WeatherStore
from jigsaw_forecast.errors import DataError, MeshError, OutputError, RecipeError, StoppedError
from jigsaw_forecast.parallel.mesh import single_rank_mesh
from jigsaw_forecast.train import run as training
from jigsaw_forecast.train.checkpointing import Checkpoints
from jigsaw_forecast.train.output import TrainOutput
from jigsaw_forecast.train.replicas import ReplicatedLoss
from jigsaw_forecast.train.run import train_recipe
from tests.unit.train.made_up import read_tensors, write_recipe, write_store

METRICS = {
    "train_step",
    "samples",
    "loss",
    "learning_rate",
    "gradient_norm",
    "seconds",
    "data_wait_seconds",
    "samples_per_second",
    "flops_per_second",
    "peak_memory_bytes",
    "bytes_received",
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("weather"))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _train(
    recipe: Path,
    output: Path,
    *settings: str,
    resume: bool = False,
    max_steps: int | None = None,
) -> None:
    train_recipe(recipe, settings, {}, output, resume, max_steps, "cpu")


def _lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def _shards(output: Path, step: int) -> dict[str, bytes]:
    folder = output / "checkpoints" / f"step-{step:08d}"
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


@pytest.fixture(scope="module")
def whole(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    torch.set_num_threads(1)
    _train(write_recipe(folder, store), folder / "out")
    return folder / "out"


def test_each_logged_step_has_the_metrics_of_the_contract(whole: Path) -> None:
    lines = [line for line in _lines(whole) if "loss" in line]
    assert [line["train_step"] for line in lines] == [2, 4, 6, 8, 10]
    assert [line["samples"] for line in lines] == [8, 16, 24, 28, 32]
    for line in lines:
        assert set(line) >= METRICS
        assert line["flops_per_second"] > 0
        assert line["peak_memory_bytes"] > 0


def test_validation_lines_carry_loss_and_errors_by_lead(whole: Path) -> None:
    lines = [line for line in _lines(whole) if "validation_loss" in line]
    assert [line["train_step"] for line in lines] == [5, 10]
    assert set(lines[0]["rmse"]) == {"z500", "2t"}
    assert set(lines[0]["rmse"]["z500"]) == {"6", "24", "72", "120"}


def test_training_lowers_the_loss(store: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, store)
    settings = ["train.phases.0.num_steps=80", "train.validate_every=100"]
    _train(recipe, tmp_path / "out", *settings, "train.log_every=10")
    losses = [line["loss"] for line in _lines(tmp_path / "out") if "loss" in line]
    assert losses[0] > 0.9  # a fresh model persists the state: one tendency deviation
    assert losses[7] < 0.5 * losses[0]


def test_the_checkpoint_loads_with_the_training_sets_statistics(whole: Path) -> None:
    loaded = load_checkpoint(whole / "checkpoints" / "step-00000010", single_rank_mesh())
    assert loaded.manifest.provenance["train_step"] == 10
    assert loaded.normalisation.mean.shape == (3, 8, 16)
    assert set(loaded.statics) == {"land_sea_mask"}
    average = read_tensors(whole, 10)["average.embed.position"]
    torch.testing.assert_close(loaded.model.embed.position.data, average, rtol=0, atol=0)


def test_older_checkpoints_are_deleted(whole: Path) -> None:
    names = sorted(path.name for path in (whole / "checkpoints").iterdir())
    assert names == ["best", "latest", "step-00000008", "step-00000010"]
    assert os.readlink(whole / "checkpoints" / "latest") == "step-00000010"


@pytest.mark.parametrize("first", [3, 6, 8])
def test_a_run_in_two_parts_is_the_same_to_the_last_bit(
    whole: Path, store: Path, tmp_path: Path, first: int
) -> None:
    recipe = write_recipe(tmp_path, store)
    torch.seed()  # a process of its own starts with random numbers of its own
    _train(recipe, tmp_path / "out", max_steps=first)
    torch.seed()
    _train(recipe, tmp_path / "out", resume=True)
    one, two = read_tensors(whole, 10), read_tensors(tmp_path / "out", 10)
    assert one.keys() == two.keys()
    different = [name for name in one if not torch.equal(one[name], two[name])]
    assert different == []
    assert _shards(whole, 10) == _shards(tmp_path / "out", 10)


def test_a_run_in_two_parts_has_each_metric_once(store: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, store)
    out = tmp_path / "out"
    _train(recipe, out, max_steps=4)
    with (out / "metrics.jsonl").open("a") as file:  # a crash after step 4 left more, half a line
        file.write('{"train_step": 6, "loss": 1.0}\n{"train_st')
    _train(recipe, out, resume=True)
    steps = [line["train_step"] for line in _lines(out) if "loss" in line]
    assert steps == [2, 4, 6, 8, 10]


def test_streamed_data_train_to_the_same_bits(whole: Path, store: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, store)
    _train(recipe, tmp_path / "out", "data.in_memory=false")
    assert _shards(whole, 10) == _shards(tmp_path / "out", 10)


def test_resume_of_a_whole_run_does_nothing(store: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, store)
    _train(recipe, tmp_path / "out", max_steps=2)
    before = (tmp_path / "out" / "metrics.jsonl").read_bytes()
    _train(recipe, tmp_path / "out", resume=True, max_steps=2)
    assert (tmp_path / "out" / "metrics.jsonl").read_bytes() == before


def test_resume_starts_where_nothing_is(store: Path, tmp_path: Path) -> None:
    _train(write_recipe(tmp_path, store), tmp_path / "out", resume=True, max_steps=1)
    assert (tmp_path / "out" / "checkpoints" / "step-00000001" / "model.json").is_file()


def test_an_existing_output_is_refused_without_resume(whole: Path, store: Path) -> None:
    recipe = write_recipe(whole.parent, store)
    with pytest.raises(OutputError, match=r"exists already.*--resume"):
        _train(recipe, whole)


def test_resume_with_another_recipe_names_the_keys(whole: Path, store: Path) -> None:
    recipe = write_recipe(whole.parent, store)
    settings = ["train.phases.1.learning_rate=0.5", "train.log_every=7"]
    with pytest.raises(RecipeError, match=r"another recipe: train.phases.1.learning_rate is 0.001"):
        _train(recipe, whole, *settings, resume=True)


def test_a_phase_that_has_not_begun_may_change(store: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, store)
    _train(recipe, tmp_path / "out", max_steps=6)
    _train(recipe, tmp_path / "out", "train.phases.1.num_steps=2", resume=True)
    assert (tmp_path / "out" / "checkpoints" / "step-00000008").is_dir()


def test_a_signal_saves_and_asks_to_be_queued_again(
    whole: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path, store)
    out = tmp_path / "out"
    backward = ReplicatedLoss.backward
    num_steps = 0

    def signalled(self: ReplicatedLoss, *arguments: Any) -> Any:
        nonlocal num_steps
        num_steps += 1
        if num_steps == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return backward(self, *arguments)

    monkeypatch.setattr(ReplicatedLoss, "backward", signalled)
    with pytest.raises(StoppedError, match="stopped by SIGTERM after 5 train steps"):
        _train(recipe, out)
    assert (out / "REQUEUE").is_file()
    monkeypatch.undo()
    _train(recipe, out, resume=True)
    assert not (out / "REQUEUE").exists()
    assert _shards(whole, 10) == _shards(out, 10)


def test_the_run_asks_to_go_on_before_it_saves(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, seen = tmp_path / "out", []
    backward, save = ReplicatedLoss.backward, Checkpoints.save_last

    def signalled(self: ReplicatedLoss, *arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return backward(self, *arguments)

    def looked_at(self: Checkpoints, *arguments: Any) -> None:
        seen.append((out / "REQUEUE").is_file())
        save(self, *arguments)

    monkeypatch.setattr(ReplicatedLoss, "backward", signalled)
    monkeypatch.setattr(Checkpoints, "save_last", looked_at)
    recipe = write_recipe(tmp_path, store)
    with pytest.raises(StoppedError, match="stopped by SIGTERM after 1 train steps"):
        _train(recipe, out)
    assert seen == [True]
    with pytest.raises(DataError):
        _train(recipe, out, f"data.path={tmp_path / 'nope.zarr'}", resume=True)
    assert not (out / "REQUEUE").exists()  # or a job would be queued again for ever


def test_a_rank_that_crashes_while_it_prepares_asks_for_nothing(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*arguments: Any) -> Any:
        raise StoppedError("rank 1 has ended")

    monkeypatch.setattr(training, "prepare", lost)
    with pytest.raises(StoppedError, match="rank 1"):
        _train(write_recipe(tmp_path, store), tmp_path / "out")
    assert not (tmp_path / "out" / "REQUEUE").exists()


def test_a_second_run_in_one_folder_is_refused(whole: Path, store: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, store)
    before = sorted(whole.rglob("*"))
    lock = TrainOutput(whole).lock()
    with pytest.raises(OutputError, match="is being written by another run"):
        _train(recipe, whole, resume=True)
    lock.release()
    assert sorted(whole.rglob("*")) == before
    _train(recipe, whole, resume=True)  # nothing to do


def test_data_that_fail_do_not_cost_the_save_under_way(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, has_failed, num_taken = tmp_path / "out", threading.Event(), itertools.count(1)
    take, write = ReadAhead.take, CheckpointWriter.begin

    def failing(self: ReadAhead) -> Any:
        if next(num_taken) == 3:
            has_failed.set()
            raise DataError("the disk is gone")
        return take(self)

    def late(self: CheckpointWriter) -> None:
        has_failed.wait(60)
        write(self)

    monkeypatch.setattr(ReadAhead, "take", failing)
    monkeypatch.setattr(CheckpointWriter, "begin", late)
    with pytest.raises(DataError, match="the disk is gone"):
        _train(write_recipe(tmp_path, store), out, "train.checkpoint_every=2")
    assert (out / "checkpoints" / "latest" / "model.json").is_file()


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_signal_while_the_data_are_read_stops_between_two_parts(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: bool
) -> None:
    num_reads = 0
    read = WeatherStore.read_into

    def signalled(self: WeatherStore, *arguments: Any) -> Any:
        nonlocal num_reads
        num_reads += 1
        os.kill(os.getpid(), signal.SIGTERM)
        return read(self, *arguments)

    monkeypatch.setattr(WeatherStore, "read_into", signalled)
    monkeypatch.setattr("jigsaw_forecast.data.training_set.TIMES_PER_READ", 10)
    out = tmp_path / "out"
    with pytest.raises(StoppedError, match="stopped by SIGTERM while reading the data"):
        _train(write_recipe(tmp_path, store), out, f"data.in_memory={str(in_memory).lower()}")
    assert num_reads == 1
    assert sorted(path.name for path in out.iterdir()) == ["REQUEUE", "recipe.toml"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(store: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, store)
    with pytest.raises(MeshError, match="torch finds no GPU"):
        train_recipe(recipe, [], {}, tmp_path / "out", False, None, "cuda")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_trains_as_the_cpu_does(whole: Path, store: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, store)
    train_recipe(recipe, [], {}, tmp_path / "out", False, None, "cuda")
    losses = [
        [line["loss"] for line in _lines(out) if "loss" in line]
        for out in (whole, tmp_path / "out")
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)  # sums in another order


def _full(*arguments: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_full_disk_at_the_end_stops_the_run(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "save", _full)
    with pytest.raises(StoppedError, match=r"step 1 cannot be saved: .*No space left.* --resume"):
        _train(write_recipe(tmp_path, store), tmp_path / "out", max_steps=1)
    assert list((tmp_path / "out" / "checkpoints").iterdir()) == []


def test_a_full_disk_on_the_way_is_warned_of_and_training_goes_on(
    whole: Path,
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    usage, looks = shutil.disk_usage, iter([10**12, 1000, 10**12])

    def full_at_the_second_look(path: Path) -> Any:
        return usage(path)._replace(free=next(looks))

    monkeypatch.setattr(
        "jigsaw_forecast.train.checkpointing.shutil.disk_usage", full_at_the_second_look
    )
    monkeypatch.setattr(logging.getLogger("jigsaw_forecast"), "propagate", True)
    _train(write_recipe(tmp_path, store), tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out" / "checkpoints").glob("step-*"))
    assert names == ["step-00000004", "step-00000010"]
    assert "step 8 was not saved" in caplog.text
    assert "the disk has 1 kB left" in caplog.text
    assert _shards(whole, 10) == _shards(tmp_path / "out", 10)


def test_a_loss_that_is_no_number_stops_without_saving(store: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, store)
    settings = ["train.phases.0.learning_rate=1e30", "train.warmup_steps=0"]
    with pytest.raises(StoppedError, match="at train step"):
        _train(recipe, tmp_path / "out", *settings)
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_a_batch_in_parts_gives_the_gradient_of_the_whole(
    whole: Path, store: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, store)
    _train(recipe, tmp_path / "out", "train.micro_batches=2")
    for name in ("loss", "gradient_norm"):
        found, expected = (
            [line[name] for line in _lines(out) if "loss" in line]
            for out in (tmp_path / "out", whole)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-4)  # sums in another order, ten steps


def test_parts_that_do_not_divide_a_batch_are_refused(store: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, store)
    with pytest.raises(MeshError, match=r"micro_batches=3 does not divide the 2 .*; micro_bat"):
        _train(recipe, tmp_path / "out", "train.micro_batches=3")


def test_steps_that_are_no_numbers_are_skipped_and_told(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _break_steps(monkeypatch, {2, 5})
    out = tmp_path / "out"
    _train(write_recipe(tmp_path, store), out, "train.on_non_finite=skip")
    skipped = [line for line in _lines(out) if "skipped" in line]
    assert [line["train_step"] for line in skipped] == [2, 5]
    assert "the loss is nan" in skipped[0]["skipped"]
    manifest = json.loads((out / "checkpoints/latest/training/manifest.json").read_text())
    assert (manifest["train_step"], manifest["num_updates"]) == (10, 8)


def test_too_many_skipped_in_a_row_stop_the_run(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _break_steps(monkeypatch, {6, 7, 8})
    settings = ("train.on_non_finite=skip", "train.max_skipped=2")
    with pytest.raises(StoppedError, match=r"at train step 8, 3 in a row"):
        _train(write_recipe(tmp_path, store), tmp_path / "out", *settings)
    assert os.readlink(tmp_path / "out" / "checkpoints" / "latest") == "step-00000004"


def _break_steps(monkeypatch: pytest.MonkeyPatch, broken: set[int]) -> None:
    """Makes the losses of some train steps no numbers."""
    backward, num_steps = ReplicatedLoss.backward, 0

    def broken_backward(self: ReplicatedLoss, *arguments: Any) -> Any:
        nonlocal num_steps
        num_steps += 1
        return backward(self, *arguments) * (float("nan") if num_steps in broken else 1.0)

    monkeypatch.setattr(ReplicatedLoss, "backward", broken_backward)


def test_persistence_and_climatology_stand_beside_the_forecast(whole: Path, store: Path) -> None:
    (line, _) = (line for line in _lines(whole) if "validation_loss" in line)
    weather = xr.open_zarr(store, consolidated=False)
    temperature = weather["2m_temperature"].transpose("time", "latitude", "longitude")
    times = temperature.time.values
    validation = np.flatnonzero(times >= np.datetime64("2020-01-21"))
    # three starts, spread over those with five days after them
    starts = validation[np.linspace(0, len(validation) - 1 - 20, 3).astype(int)]
    values = temperature.values.astype(np.float64)
    assert weather.latitude.values[0] == 78.75  # rows of equal height, none on a pole
    bounds = np.sin(np.deg2rad(np.linspace(90, -90, 9)))
    area = (bounds[:-1] - bounds[1:]) / (bounds[:-1] - bounds[1:]).sum()
    for name, hours in (("6", 6), ("120", 120)):
        error = values[starts] - values[starts + hours // 6]
        mean_square = (np.square(error).mean(-1) * area).sum(-1).mean()
        assert line["rmse_persistence"]["2t"][name] == pytest.approx(mean_square**0.5, rel=1e-4)
    training = values[times < np.datetime64("2020-01-21")]
    days = (times.astype("datetime64[D]") - np.datetime64("2020-01-01", "D")).astype(int)
    errors = []
    for start in starts + 20:
        distance = np.abs(days[: len(training)] - days[start])
        same_hour = (np.arange(len(training)) - start) % 4 == 0
        weight = np.where(same_hour & (distance <= 30), 1 - distance / 30, 0.0)
        mean = np.tensordot(weight, training, 1) / weight.sum()
        errors.append((np.square(values[start] - mean).mean(-1) * area).sum())
    assert line["rmse_climatology"]["2t"]["120"] == pytest.approx(np.mean(errors) ** 0.5, rel=1e-4)


def test_bfloat16_products_train_too(whole: Path, store: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, store)
    _train(recipe, tmp_path / "out", "train.precision=bfloat16")
    losses = [
        [line["loss"] for line in _lines(out) if "loss" in line]
        for out in (whole, tmp_path / "out")
    ]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.02)


def test_a_period_shorter_than_a_rollout_is_refused(store: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, store)
    settings = ["train.phases.1.rollout_steps=90"]
    with pytest.raises(DataError, match="shorter than one rollout"):
        _train(recipe, tmp_path / "out", *settings)


def test_overlapping_periods_are_refused(store: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, store)
    with pytest.raises(RecipeError, match="overlap"):
        _train(recipe, tmp_path / "out", "data.validation=2020-01-20/2020-01-31")
    assert not (tmp_path / "out").exists()


def test_batches_that_the_replicas_cannot_share_are_refused(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh = single_rank_mesh()
    replicated = type(mesh)(
        type(mesh.data)("data", 3, 0, None), mesh.domain, mesh.tensor, mesh.model, mesh.device
    )
    monkeypatch.setattr(training, "make_mesh", lambda degrees, device, plan: replicated)
    with pytest.raises(MeshError, match="data=3 does not divide .* 2, 4"):
        _train(write_recipe(tmp_path, store), tmp_path / "out")
