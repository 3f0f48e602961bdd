"""What a training run leaves behind: metrics, checkpoints, and what it needs to go on."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jigsaw_forecast.errors import CheckpointError, OutputError, RecipeError
from jigsaw_forecast.parallel.collectives import together
from jigsaw_forecast.parallel.mesh import Mesh
from jigsaw_forecast.recipe import dump_recipe, load_recipe
from jigsaw_forecast.train.optimizer import AveragedWeights, phase_at
from jigsaw_forecast.train.schema import TrainRecipe

# a run may go on with another value of these
CHANGEABLE = ("log_every", "validate_every", "checkpoint_every", "keep_checkpoints")


@dataclass(frozen=True)
class TrainOutput:
    """The folder of a training run.

    Attributes:
        folder: `recipe.toml`, `metrics.jsonl`, `statistics.safetensors`, `checkpoints/`,
            `resume/`, and `REQUEUE` after a stop by signal.
    """

    folder: Path

    @property
    def statistics(self) -> Path:
        """The training set's statistics."""
        return self.folder / "statistics.safetensors"

    @property
    def requeue(self) -> Path:
        """Marks a run that was stopped by a signal and wants to go on."""
        return self.folder / "REQUEUE"

    def checkpoint(self, step: int) -> Path:
        """The inference checkpoint after so many train steps."""
        return self.folder / "checkpoints" / f"step-{step:08d}"

    def resume_folder(self, step: int) -> Path:
        """What every rank needs to go on from so many train steps."""
        return self.folder / "resume" / f"step-{step:08d}"

    def last_step(self) -> int:
        """The last train step from which the run can go on, 0 where there is none."""
        return max((step for step in self._steps("resume")), default=0)

    def check(self, *, resume: bool) -> None:
        """Refuses a folder with something in it unless the run goes on there.

        Raises:
            OutputError: It exists already, or is not a training run's.
        """
        if not self.folder.exists() or (self.folder.is_dir() and not any(self.folder.iterdir())):
            return
        if not resume:
            raise OutputError(
                f"output {self.folder} exists already; go on with it by --resume, choose another "
                "--output or delete it"
            )
        if not (self.folder / "recipe.toml").is_file():
            raise OutputError(f"output {self.folder} is no training run: missing recipe.toml")

    def start(self, recipe: TrainRecipe) -> None:
        """Makes the folder and writes the recipe as run; on one rank.

        Raises:
            OutputError: It cannot be written.
            RecipeError: The folder holds a run of another recipe; the keys are named.
        """
        path = self.folder / "recipe.toml"
        if path.is_file():
            _check_same(recipe, load_recipe(path, TrainRecipe), path, self.last_step())
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            dump_recipe(recipe, path)
            self.requeue.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"output {self.folder} cannot be written: {error}") from error

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Adds one line to `metrics.jsonl`."""
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def forget_after(self, step: int) -> None:
        """Drops the metrics and checkpoints of steps after `step`; they will be made again."""
        path = self.folder / "metrics.jsonl"
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            # a last line without its end was cut off by a crash
            whole = [line for line in lines if line.endswith("\n")]
            kept = [line for line in whole if json.loads(line)["train_step"] <= step]
            if kept != lines:
                partial = path.with_name("metrics.jsonl.partial")
                partial.write_text("".join(kept), encoding="utf-8")
                partial.rename(path)
        for later in (later for later in self._steps("checkpoints") if later > step):
            shutil.rmtree(self.checkpoint(later))

    def forget_older(self, step: int, keep: int) -> None:
        """Deletes all but the last `keep` checkpoints, and what older steps needed to go on."""
        for old in sorted(self._steps("checkpoints"))[:-keep]:
            shutil.rmtree(self.checkpoint(old))
        for old in self._steps("resume"):
            if old < step:
                shutil.rmtree(self.resume_folder(old))

    def _steps(self, kind: str) -> list[int]:
        return [
            int(path.name.removeprefix("step-"))
            for path in (self.folder / kind).glob("step-*")
            if path.name.removeprefix("step-").isdigit()
        ]


def save_progress(
    output: TrainOutput,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.AdamW,
    average: AveragedWeights,
    mesh: Mesh,
) -> None:
    """Writes what every rank needs to go on; it appears under its name when all of it is there.

    Raises:
        OutputError: A rank cannot write; the same on every rank.

    Communication:
        The ranks agree before and after the renaming.
    """
    folder = output.resume_folder(step)
    partial = folder.with_name(folder.name + ".partial")
    path = _rank_file(partial, mesh)
    tensors = {"step": torch.tensor(step), "degrees": torch.tensor(list(mesh.degrees.values()))}
    for (name, parameter), value in zip(model.named_parameters(), average.values, strict=True):
        tensors[f"weight.{name}"] = parameter.detach()
        tensors[f"average.{name}"] = value
        for key, moment in optimizer.state[parameter].items():
            tensors[f"{key}.{name}"] = moment

    def write() -> None:
        try:
            partial.mkdir(parents=True, exist_ok=True)
            torch.save(tensors, path)
            with path.open("rb") as file:
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:  # torch.save raises either where a disk is full
            raise OutputError(f"{path} cannot be written: {error}") from error

    def name_it() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)

    together(mesh, write)
    together(mesh, lambda: name_it() if mesh.rank == 0 else None)


def load_progress(
    output: TrainOutput,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.AdamW,
    average: AveragedWeights,
    mesh: Mesh,
) -> None:
    """Takes up a run after `step` train steps; without unpickling code.

    Raises:
        CheckpointError: It was saved on another mesh or is not readable.
    """
    path = _rank_file(output.resume_folder(step), mesh)
    try:
        tensors = torch.load(path, map_location=mesh.device, weights_only=True)
    except (OSError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    degrees = dict(zip(mesh.degrees, tensors["degrees"].tolist(), strict=True))
    if degrees != mesh.degrees:
        saved = ",".join(f"{name}={degree}" for name, degree in degrees.items())
        raise CheckpointError(f"{path}: saved on mesh {saved}; --resume needs the same")
    with torch.no_grad():
        for (name, parameter), value in zip(model.named_parameters(), average.values, strict=True):
            parameter.copy_(tensors[f"weight.{name}"])
            value.copy_(tensors[f"average.{name}"])
            optimizer.state[parameter] = {
                key: tensors[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")
            }


def _rank_file(folder: Path, mesh: Mesh) -> Path:
    return folder / f"rank-{mesh.rank:05d}.pt"


def _check_same(recipe: TrainRecipe, saved: TrainRecipe, path: Path, step: int) -> None:
    """Refuses to go on with another recipe; phases that have not begun may change."""
    begun = phase_at(saved.train, step - 1)[0] if step else -1
    new, old = _flat(recipe.model_dump(mode="json")), _flat(saved.model_dump(mode="json"))
    changeable = {f"train.{name}" for name in CHANGEABLE}
    different = [
        f"{key} is {old.get(key)!r} there, {new.get(key)!r} here"
        for key in sorted(new.keys() | old.keys())
        if new.get(key) != old.get(key)
        and key not in changeable
        and not _is_later_phase(key, begun)
    ]
    if different:
        raise RecipeError(f"{path} is of another recipe: {'; '.join(different)}")


def _is_later_phase(key: str, begun: int) -> bool:
    parts = key.split(".")
    return parts[:2] == ["train", "phases"] and int(parts[2]) > begun


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, list) and any(isinstance(entry, dict) for entry in tree):
        items = dict(enumerate(tree)).items()
    else:
        return {prefix: tree}
    result: dict[str, Any] = {}
    for key, value in items:
        result |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return result
