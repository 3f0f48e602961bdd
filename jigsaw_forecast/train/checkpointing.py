"""When and how a training run saves, and how it goes on."""

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from jigsaw_forecast import __version__
from jigsaw_forecast.checkpoint.background_save import BackgroundSaver
from jigsaw_forecast.checkpoint.blocks import cut_degrees, usable_degrees
from jigsaw_forecast.checkpoint.distributed import PiecesReader, save_pieces
from jigsaw_forecast.checkpoint.format import ShardRecord, damaged_shards
from jigsaw_forecast.checkpoint.pieces import Pieces
from jigsaw_forecast.checkpoint.progress import format_bytes
from jigsaw_forecast.checkpoint.save import (
    DEFAULT_LICENCE,
    count_parameters,
    input_ranges,
    normalising_tensors,
    stored_dtype,
)
from jigsaw_forecast.checkpoint.training import (
    TRAINING_FOLDER,
    TrainingManifest,
    list_inference_files,
    raise_if_torn,
    read_training_manifest,
    sync_folder,
    write_training_manifest,
)
from jigsaw_forecast.checkpoint.writer import CheckpointWriter
from jigsaw_forecast.data.statistics import Statistics
from jigsaw_forecast.errors import CheckpointError, StoppedError
from jigsaw_forecast.parallel.background import Background, gather_on_first_rank, make_background
from jigsaw_forecast.parallel.layout import split_range
from jigsaw_forecast.parallel.mesh import Mesh
from jigsaw_forecast.parallel.together import gather_texts, together
from jigsaw_forecast.train.output import TrainOutput
from jigsaw_forecast.train.schema import TrainRecipe
from jigsaw_forecast.train.state import TrainState

INFERENCE_DTYPE = torch.bfloat16

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """What goes with the weights into an inference checkpoint.

    Attributes:
        statistics: Of the training data, whole.
        statics: Static fields that the forcings need, each [model rows, X].
        notice: Of the training data.
    """

    statistics: Statistics
    statics: Mapping[str, npt.NDArray[np.floating]]
    notice: str


class Checkpoints:
    """The checkpoints of a run: staged on the CPU, written by a thread of each rank.

    Attributes:
        saved_step: Train step of the last that is whole, 0 where there is none.
        stalled_s: Seconds that training stood still for saves since they were last taken.
    """

    def __init__(
        self, recipe: TrainRecipe, output: TrainOutput, state: TrainState, origin: Origin
    ) -> None:
        """Makes room for a copy of the state.

        Communication:
            The groups of `make_background`.
        """
        self._recipe = recipe
        self._output = output
        self._state = state
        self._origin = origin
        self._mesh = state.model.mesh
        self._background = make_background(self._mesh)
        self._saver = BackgroundSaver(state.pieces())
        self.saved_step = state.step
        self._pending: int | None = None  # step of the save that is not settled
        self.stalled_s = 0.0

    def save(self, sample_order: Mapping[str, Any], validation_error: float | None) -> None:
        """Begins a save; where the one before failed, warns of it first.

        Args:
            sample_order: Where the order of samples stands.
            validation_error: Of this step, where it was validated.
        """
        start_s = time.perf_counter()
        self.settle()
        state, train = self._state, self._recipe.train
        self._pending = state.step
        facts = TrainingManifest(
            train_step=state.step,
            num_updates=state.num_updates,
            samples=samples_until(self._recipe, state.step),
            validation_error=validation_error,
            mesh=self._mesh.degrees,
            sample_order={**sample_order, "losses_since_metrics": list(state.losses)},
            recipe=self._recipe.model_dump(mode="json", exclude_none=True),
            versions={"jigsaw-forecast": __version__, "torch": str(torch.__version__)},
        )
        write = _Write(
            facts,
            self._output,
            self._background,
            state,
            self._origin,
            (train.keep_checkpoints, train.keep_best),
        )
        self._saver.save(state.pieces(), write)
        self.stalled_s += time.perf_counter() - start_s

    def save_last(self, sample_order: Mapping[str, Any], validation_error: float | None) -> None:
        """Saves and waits until it is done; does nothing where this step is saved already.

        Raises:
            StoppedError: It cannot be saved: the run can go on from the checkpoint before.
        """
        if self._pending == self._state.step:
            self.settle()
        if self.saved_step == self._state.step:
            return
        self.save(sample_order, validation_error)
        try:
            self._settle()
        except CheckpointError as error:
            saved = f"go on from step {self.saved_step}" if self.saved_step else "start again"
            raise StoppedError(
                f"train step {self._state.step} cannot be saved: {error}; make room and {saved} "
                "with --resume"
            ) from error

    def take_stalled_s(self) -> float:
        """Seconds that training stood still for saves since the last call."""
        stalled_s, self.stalled_s = self.stalled_s, 0.0
        return stalled_s

    def settle(self) -> None:
        """Waits for the save under way; its failure is told as a warning, and training goes on."""
        step = self._pending
        try:
            self._settle()
        except CheckpointError as error:
            if self._mesh.rank == 0:
                last = f"of step {self.saved_step}" if self.saved_step else "none"
                _log.warning(
                    "the checkpoint of train step %d was not saved: %s; training goes on, the "
                    "last whole checkpoint is %s",
                    *(step, error, last),
                )

    def _settle(self) -> None:
        pending, self._pending = self._pending, None
        self._saver.settle()
        if pending is not None:
            self.saved_step = pending


class _Write:
    """Writes one checkpoint, by a thread of every rank."""

    def __init__(
        self,
        facts: TrainingManifest,
        output: TrainOutput,
        background: Background,
        state: TrainState,
        origin: Origin,
        keep: tuple[int, bool],
    ) -> None:
        self._facts = facts
        self._output = output
        self._background = background
        self._config = state.model.config
        self._layouts = state.model.layouts()
        self._origin = origin
        self._keep = keep
        self._folder = output.checkpoint(facts.train_step)
        self._is_first = background.mesh.rank == 0
        self._writer = CheckpointWriter(self._folder)
        self._shards: dict[str, ShardRecord] = {}

    def __call__(self, pieces: Pieces) -> None:
        """Writes the inference checkpoint, then every rank's pieces, then names the folder.

        Raises:
            CheckpointError: A rank cannot write; the same on every rank.

        Communication:
            The averaged weights of the first replica to rank 0, and that of `save_pieces`.
        """
        try:
            failure = self._attempt(lambda: self._begin(pieces))
            failure = self._write_weights(pieces, failure)
            folder = self._writer.partial / TRAINING_FOLDER
            save_pieces(folder, pieces, self._background, self._finish, failure)
        except BaseException:
            if self._is_first:
                self._writer.abandon()
            raise

    def _begin(self, pieces: Pieces) -> None:
        num_bytes = sum(
            prod(piece.full_shape) * piece.values.element_size() for piece in pieces.values()
        )
        self._output.checkpoints.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._output.checkpoints).free
        if free < num_bytes:
            raise CheckpointError(
                f"{self._folder} needs {format_bytes(num_bytes)}, the disk has "
                f"{format_bytes(free)} left"
            )
        self._writer.begin()
        (self._writer.partial / TRAINING_FOLDER).mkdir()

    def _write_weights(self, pieces: Pieces, failure: Exception | None) -> Exception | None:
        """Gathers and writes the averaged weights; goes on gathering after a failure."""
        usable = usable_degrees(self._config)
        for name, layout in self._layouts.items():
            kept = stored_dtype(name, layout, INFERENCE_DTYPE)
            piece = pieces[f"average.{name}"].values.to(kept)
            whole = gather_on_first_rank(self._background, piece, layout)
            if whole is not None and failure is None:
                degrees = cut_degrees(layout, usable)
                failure = self._attempt(self._add_tensor(name, whole, degrees))
        return failure or self._attempt(self._seal)

    def _add_tensor(self, name: str, whole: torch.Tensor, degrees: Any) -> Callable[[], None]:
        return lambda: self._writer.add_tensor(name, whole, degrees)

    def _seal(self) -> None:
        origin, config = self._origin, self._config
        for tensor in normalising_tensors(config, origin.statistics, origin.statics):
            self._writer.add_tensor(*tensor)
        decay = self._facts.recipe["train"]["ema_decay"]
        manifest = self._writer.seal(
            architecture=config,
            dtype=str(INFERENCE_DTYPE).removeprefix("torch."),
            num_parameters=count_parameters(self._layouts),
            plausible=input_ranges(config.prognostic_fields, origin.statistics),
            statics=tuple(origin.statics),
            notice=origin.notice,
            licence=DEFAULT_LICENCE,
            provenance={
                "train_step": self._facts.train_step,
                "samples": self._facts.samples,
                "weights": f"exponential moving average, decay {decay}",
                "recipe": self._facts.recipe,
                "torch": self._facts.versions["torch"],
            },
        )
        self._shards = manifest.shards

    def _finish(self, files: dict[str, ShardRecord]) -> None:
        """All files are there: the manifest, then the name, then the links."""
        partial = self._writer.partial
        records = list_inference_files(partial, self._shards)
        records |= {f"{TRAINING_FOLDER}/{name}": record for name, record in files.items()}
        write_training_manifest(partial, self._facts.model_copy(update={"files": records}))
        sync_folder(partial)
        partial.rename(self._folder)
        keep, keep_best = self._keep
        try:
            self._output.publish(self._facts.train_step, keep, keep_best=keep_best)
        except OSError as error:  # the step is whole: it counts by its folder, not by the links
            _log.warning("%s is saved, but its links are not: %s", self._folder, error)

    def _attempt(self, action: Callable[[], None]) -> Exception | None:
        """What goes wrong in an action of the first rank; the others have none."""
        if not self._is_first:
            return None
        try:
            action()
        except (CheckpointError, OSError) as error:
            return error
        return None


def go_on(output: TrainOutput, state: TrainState) -> dict[str, Any]:
    """Takes up a run from its last checkpoint, on any mesh; a run without one starts.

    Returns:
        Where the order of samples stood; empty without a checkpoint.

    Raises:
        CheckpointError: Files are missing, torn or altered: all are named, on every rank.

    Communication:
        The ranks share the comparison of digests and agree on each stage.
    """
    mesh = state.model.mesh
    step = int(gather_texts(mesh, str(output.last_step()) if mesh.rank == 0 else "")[0])
    if not step:
        return {}
    folder = output.checkpoint(step)
    manifest = together(mesh, lambda: read_training_manifest(folder))
    _check_files(mesh, folder, manifest)
    has_same_ranks = prod(manifest.mesh.values()) == mesh.size
    pieces = state.pieces(with_random_state=has_same_ranks)
    reader = together(mesh, lambda: PiecesReader(folder / TRAINING_FOLDER))
    if "random.cuda" not in reader.dtypes:
        pieces.pop("random.cuda", None)
    together(mesh, lambda: reader.load(pieces))
    losses = [float(loss) for loss in manifest.sample_order.get("losses_since_metrics", [])]
    state.take_up(pieces, step, manifest.num_updates, losses)
    if mesh.rank == 0:
        _log.info("going on from %s, %s", folder, _describe_mesh(manifest, mesh))
    return manifest.sample_order


def _describe_mesh(manifest: TrainingManifest, mesh: Mesh) -> str:
    saved = ",".join(f"{name}={degree}" for name, degree in manifest.mesh.items())
    return "on the same mesh" if manifest.mesh == mesh.degrees else f"saved on mesh {saved}"


def _check_files(mesh: Mesh, folder: Path, manifest: TrainingManifest) -> None:
    """Compares what training needs with its digests before anything of it is opened.

    Raises:
        CheckpointError: On every rank, naming every file that is wrong.
    """
    files = manifest.training_files()
    names = sorted(files)
    own = {name: files[name] for name in names[split_range(len(names), mesh.size, mesh.rank)]}
    problems = together(mesh, lambda: damaged_shards(folder, own))
    found = [json.loads(text) for text in gather_texts(mesh, json.dumps(problems))]
    raise_if_torn(folder, [line for lines in found for line in lines])


def samples_until(recipe: TrainRecipe, step: int) -> int:
    """Samples seen by all replicas after so many train steps."""
    total = 0
    for phase in recipe.train.phases:
        total += min(step, phase.num_steps) * recipe.train.batch_size(phase)
        step -= min(step, phase.num_steps)
    return total
