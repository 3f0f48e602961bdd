"""The folder that a training run leaves behind: recipe, metrics, checkpoints."""

import json
import logging
import math
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jigsaw_forecast.checkpoint.training import (
    TRAINING_FOLDER,
    is_training_checkpoint,
    read_training_manifest,
    sync_folder,
)
from jigsaw_forecast.errors import CheckpointError, OutputError
from jigsaw_forecast.forecast.staging import ProductLock
from jigsaw_forecast.recipe import dump_recipe
from jigsaw_forecast.train.schema import TrainRecipe

_log = logging.getLogger(__name__)

LATEST, BEST = "latest", "best"
_PARTIAL = ".partial"


@dataclass(frozen=True)
class TrainOutput:
    """The folder of a training run.

    Attributes:
        folder: `recipe.toml`, `metrics.jsonl`, `statistics.safetensors`, `checkpoints/` with
            `step-XXXXXXXX/` and links `latest` and `best`, and `REQUEUE` after a stop by signal.
    """

    folder: Path

    @property
    def recipe(self) -> Path:
        """The recipe as run."""
        return self.folder / "recipe.toml"

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.folder / "metrics.jsonl"

    @property
    def statistics(self) -> Path:
        """The training set's statistics."""
        return self.folder / "statistics.safetensors"

    @property
    def requeue(self) -> Path:
        """Marks a run that was stopped by a signal and wants to go on."""
        return self.folder / "REQUEUE"

    @property
    def checkpoints(self) -> Path:
        """The folder of all checkpoints."""
        return self.folder / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """The checkpoint after so many train steps."""
        return self.checkpoints / f"step-{step:08d}"

    def last_step(self) -> int:
        """The last train step from which the run can go on, 0 where there is none.

        A step's folder has its name only since all of it is on disk.
        """
        return max(self._training_steps(), default=0)

    def lock(self) -> ProductLock:
        """Keeps other runs out of the folder until it is released; on one rank.

        Raises:
            OutputError: Another run is at work in it, or the lock cannot be made.
        """
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            return ProductLock(self.folder.absolute(), joins=False)
        except OSError as error:
            raise OutputError(f"output {self.folder} cannot be written: {error}") from error

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
        if not self.recipe.is_file():
            raise OutputError(f"output {self.folder} is no training run: missing recipe.toml")
        if self._steps() and not self._training_steps():
            raise OutputError(
                f"output {self.folder} cannot go on: missing {TRAINING_FOLDER}/ in each of its "
                "checkpoints; choose another --output"
            )

    def ask_to_go_on(self) -> None:
        """Leaves `REQUEUE`; on one rank."""
        try:
            self.requeue.touch()
        except OSError as error:
            text = "cannot write %s, which would queue the run again: %s"
            _log.warning(text, self.requeue, error)

    def forget_request(self) -> None:
        """Removes the `REQUEUE` of an earlier run: this one may be refused, or crash."""
        with suppress(OSError):
            if self.recipe.is_file():
                self.requeue.unlink(missing_ok=True)

    def start(self, recipe: TrainRecipe) -> None:
        """Makes the folder, writes the recipe as run, and clears what a crash left; on one rank.

        Raises:
            OutputError: It cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = self.recipe.with_name(self.recipe.name + _PARTIAL)
            dump_recipe(recipe, partial)
            partial.rename(self.recipe)
            for torn in self.checkpoints.glob(f"step-*{_PARTIAL}"):
                shutil.rmtree(torn)
        except OSError as error:
            raise OutputError(f"output {self.folder} cannot be written: {error}") from error

    def discard(self) -> None:
        """Takes away what a run that is refused has left in a folder of its own; on one rank."""
        self.recipe.unlink(missing_ok=True)
        self.statistics.unlink(missing_ok=True)
        with suppress(OSError):  # something else is in it, or it is a mount point
            self.folder.rmdir()

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Adds one line to `metrics.jsonl`; what is no number becomes null, as JSON has it.

        Raises:
            OSError: It cannot be written; the file is as it was.
        """
        rest = memoryview((json.dumps(_finite(line), allow_nan=False) + "\n").encode())
        with self.metrics.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:
                file.truncate(before)  # half a line would make the file unreadable
                raise

    def forget_after(self, step: int) -> None:
        """Drops the metrics and checkpoints of steps after `step`; they will be made again."""
        if self.metrics.is_file():
            lines = self.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
            # a last line without its end was cut off by a crash
            whole = [line for line in lines if line.endswith("\n")]
            kept = [line for line in whole if json.loads(line)["train_step"] <= step]
            if kept != lines:
                partial = self.metrics.with_name(self.metrics.name + _PARTIAL)
                partial.write_text("".join(kept), encoding="utf-8")
                partial.rename(self.metrics)
        for later in (later for later in self._steps() if later > step):
            shutil.rmtree(self.checkpoint(later))
        if step:
            self.point_to(LATEST, step)

    def publish(self, step: int, keep: int, *, keep_best: bool) -> None:
        """Makes a checkpoint that is on disk the latest, and deletes what need not be kept.

        Args:
            step: Of the checkpoint; its folder has its final name.
            keep: How many of the last to keep.
            keep_best: Whether to keep the one with the lowest validation error too.
        """
        sync_folder(self.checkpoints)
        self.point_to(LATEST, step)
        kept = set(sorted(self._steps())[-keep:])
        best = self._best() if keep_best else None
        if best is not None:
            kept.add(best)
            self.point_to(BEST, best)
        else:
            (self.checkpoints / BEST).unlink(missing_ok=True)
        for old in set(self._steps()) - kept:
            shutil.rmtree(self.checkpoint(old), ignore_errors=True)

    def point_to(self, name: str, step: int) -> None:
        """Sets a link to a checkpoint, which never points nowhere in between."""
        partial = self.checkpoints / (name + _PARTIAL)
        partial.unlink(missing_ok=True)
        partial.symlink_to(self.checkpoint(step).name)
        os.replace(partial, self.checkpoints / name)
        sync_folder(self.checkpoints)

    def _best(self) -> int | None:
        """The step with the lowest validation error of those that were validated."""
        validation_errors = {}
        for step in self._training_steps():
            try:
                found = read_training_manifest(self.checkpoint(step)).validation_error
            except CheckpointError:
                continue  # damaged since: told when somebody goes on from it
            if found is not None:
                validation_errors[found, step] = step
        return validation_errors[min(validation_errors)] if validation_errors else None

    def _training_steps(self) -> list[int]:
        return [step for step in self._steps() if is_training_checkpoint(self.checkpoint(step))]

    def _steps(self) -> list[int]:
        return [
            int(path.name.removeprefix("step-"))
            for path in self.checkpoints.glob("step-*")
            if path.name.removeprefix("step-").isdigit()
        ]


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
