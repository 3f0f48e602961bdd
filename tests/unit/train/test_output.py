"""The folder of a run: which checkpoints stay, where the links point, what a crash leaves."""

import os
from pathlib import Path

import pytest

from jigsaw_forecast.checkpoint.training import (
    TrainingManifest,
    find_training_checkpoint,
    read_training_manifest,
    write_training_manifest,
)
from jigsaw_forecast.errors import CheckpointError, OutputError
from jigsaw_forecast.train.output import TrainOutput


def _manifest(step: int, error: float | None = None) -> TrainingManifest:
    return TrainingManifest(
        train_step=step,
        num_updates=step,
        samples=step,
        validation_error=error,
        mesh={"data": 1, "domain": 1, "tensor": 1},
        sample_order={},
        recipe={},
        versions={},
    )


def _save(output: TrainOutput, step: int, error: float | None = None) -> None:
    (output.checkpoint(step) / "training").mkdir(parents=True)
    write_training_manifest(output.checkpoint(step), _manifest(step, error))
    output.publish(step, keep=2, keep_best=True)


def _links(output: TrainOutput) -> dict[str, str]:
    return {
        path.name: os.readlink(path) for path in output.checkpoints.iterdir() if path.is_symlink()
    }


def _steps(output: TrainOutput) -> list[str]:
    return sorted(path.name for path in output.checkpoints.glob("step-*"))


def test_the_last_and_the_best_are_kept(tmp_path: Path) -> None:
    output = TrainOutput(tmp_path)
    for step, error in [(10, 0.5), (20, 0.3), (30, None), (40, 0.4), (50, 0.4)]:
        _save(output, step, error)
    assert _steps(output) == ["step-00000020", "step-00000040", "step-00000050"]
    assert _links(output) == {"latest": "step-00000050", "best": "step-00000020"}


def test_best_is_no_link_where_it_is_not_kept(tmp_path: Path) -> None:
    output = TrainOutput(tmp_path)
    _save(output, 10, 0.5)
    output.publish(10, keep=2, keep_best=False)
    assert _links(output) == {"latest": "step-00000010"}


def test_a_checkpoint_is_found_by_its_own_name_not_by_a_link_that_moves(tmp_path: Path) -> None:
    output = TrainOutput(tmp_path)
    _save(output, 10)
    latest = output.checkpoints / "latest"
    assert find_training_checkpoint(latest) == output.checkpoint(10).resolve()


def test_without_validation_there_is_no_best(tmp_path: Path) -> None:
    output = TrainOutput(tmp_path)
    for step in (10, 20, 30):
        _save(output, step)
    assert _steps(output) == ["step-00000020", "step-00000030"]
    assert _links(output) == {"latest": "step-00000030"}


def test_a_link_moves_in_one_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = TrainOutput(tmp_path)
    _save(output, 10)

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        _save(output, 20)
    assert os.readlink(output.checkpoints / "latest") == "step-00000010"
    assert output.last_step() == 20  # it is whole: only the link is behind


def test_going_back_forgets_what_came_after(tmp_path: Path) -> None:
    output = TrainOutput(tmp_path)
    _save(output, 10)
    _save(output, 20)
    output.append_metrics({"train_step": 10, "loss": 1.0})
    output.append_metrics({"train_step": 20, "loss": 1.0})
    output.forget_after(10)
    assert _steps(output) == ["step-00000010"]
    assert _links(output) == {"latest": "step-00000010"}
    assert output.metrics.read_text() == '{"train_step": 10, "loss": 1.0}\n'


def test_metrics_are_json_where_numbers_are_none(tmp_path: Path) -> None:
    output = TrainOutput(tmp_path)
    output.append_metrics({"train_step": 1, "rmse": {"z500": float("nan")}, "x": [float("inf")]})
    assert output.metrics.read_text() == '{"train_step": 1, "rmse": {"z500": null}, "x": [null]}\n'


def test_checkpoints_of_another_layout_are_not_trained_over(tmp_path: Path) -> None:
    output = TrainOutput(tmp_path)
    output.checkpoint(10).mkdir(parents=True)
    output.recipe.write_text("")
    with pytest.raises(OutputError, match="missing training/ in each"):
        output.check(resume=True)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"train_step": 10', '"train_step": 11', "is altered"),
        ('"format_version": 1', '"format_version": 2', "format version 2, this program reads 1"),
        ("{", "", "cannot be read"),
    ],
)
def test_a_manifest_that_was_altered_is_named(
    tmp_path: Path, old: str, new: str, expected: str
) -> None:
    output = TrainOutput(tmp_path)
    _save(output, 10)
    path = output.checkpoint(10) / "training" / "manifest.json"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(CheckpointError, match=expected) as caught:
        read_training_manifest(output.checkpoint(10))
    assert str(path) in str(caught.value)


def test_a_manifest_may_not_name_files_outside(tmp_path: Path) -> None:
    (tmp_path / "training").mkdir()
    files = {"../secret": {"sha256": "0", "num_bytes": 1}}
    manifest = TrainingManifest.model_validate(_manifest(1).model_dump() | {"files": files})
    write_training_manifest(tmp_path, manifest)
    with pytest.raises(CheckpointError, match=r"outside of the folder: \.\./secret"):
        read_training_manifest(tmp_path)
