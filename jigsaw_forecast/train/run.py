"""Training: from a recipe to checkpoints."""

import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from jigsaw_forecast.checkpoint.save import count_parameters
from jigsaw_forecast.checkpoint.training import read_training_manifest
from jigsaw_forecast.errors import ForecastError, MeshError, SignalledError
from jigsaw_forecast.parallel.mesh import Mesh, choose_device, make_mesh
from jigsaw_forecast.parallel.together import gather_texts, together
from jigsaw_forecast.recipe import load_recipe
from jigsaw_forecast.train.data_check import check_data
from jigsaw_forecast.train.loop import train
from jigsaw_forecast.train.output import TrainOutput
from jigsaw_forecast.train.precision import compute_dtype
from jigsaw_forecast.train.prepare import Run, on_first_rank, prepare
from jigsaw_forecast.train.profiling import profiled
from jigsaw_forecast.train.reporting import Reporter, all_of
from jigsaw_forecast.train.same_recipe import check_same_recipe
from jigsaw_forecast.train.schema import TrainRecipe
from jigsaw_forecast.train.stopping import Stop, stop_on_signal
from jigsaw_forecast.train.tensorboard import TensorBoard, check_installed
from jigsaw_forecast.train.view import display

# torchrun counts how often it has started the ranks again after one of them ended
_RESTARTS = "TORCHELASTIC_RESTART_COUNT"

_log = logging.getLogger(__name__)


def train_recipe(
    recipe: Path,
    settings: Sequence[str],
    mesh: dict[str, int],
    output: Path | None,
    resume: bool,
    max_steps: int | None,
    device: str = "auto",
    profile: bool = False,
) -> None:
    """Trains a model as a recipe says and leaves metrics and checkpoints in a folder.

    Where torchrun has started the ranks again, it goes on with what there is.

    Args:
        recipe: TOML file.
        settings: `key=value` changes to it.
        mesh: Degree by axis name; every rank of the run calls this.
        output: Folder; `outputs/` and the recipe's name by default.
        resume: Go on with what the folder holds; start where it is empty.
        max_steps: Stop after so many train steps, schedules unchanged, and save.
        device: `cpu`, `cuda`, or `auto`: GPUs where every rank of a machine has its own.
        profile: Trace a few train steps into `OUTPUT/profile/`.

    Raises:
        ForecastError: The recipe, the data, the mesh or the folder is wrong.
        StoppedError: A signal ended the run, or the loss is no number; it can go on by `resume`.
    """
    folder = TrainOutput(output or Path("outputs") / recipe.stem)
    folder.forget_request()  # on any rank, before they meet
    checked = load_recipe(recipe, TrainRecipe, settings)
    chosen = choose_device(device)
    plan = {
        "recipe": checked.model_dump_json(),
        "output": str(folder.folder),
        "precision": str(compute_dtype(checked.train.precision, torch.device(chosen))),
    }
    ranks = make_mesh(mesh, chosen, plan)
    _check_batches(checked, ranks)
    resume = resume or int(os.environ.get(_RESTARTS, "0")) > 0
    is_new = not folder.recipe.exists()
    together(ranks, lambda: folder.check(resume=resume))  # all look before the first one writes
    if checked.train.tensorboard:
        on_first_rank(ranks, check_installed)
    together(ranks, lambda: check_data(checked, folder.statistics))
    together(ranks, lambda: _check_recipe_of(folder, checked))
    with stop_on_signal() as stop, ExitStack() as held:
        on_first_rank(ranks, lambda: held.callback(folder.lock().release))
        on_first_rank(ranks, lambda: folder.start(checked))
        last = min(checked.train.num_steps, max_steps or checked.train.num_steps)
        done = int(gather_texts(ranks, str(folder.last_step()))[0])
        if done >= last:
            total = checked.train.num_steps
            _log.info("%s has %d of %d train steps: nothing to do", folder.folder, done, total)
            return
        try:
            run = prepare(checked, folder, ranks, stop)
        except SignalledError:
            on_first_rank(ranks, folder.ask_to_go_on)
            raise
        except ForecastError:
            if is_new and ranks.rank == 0:  # it began with nothing: leave nothing in the way
                folder.discard()
            raise
        _train(run, last, stop, folder.folder / "profile" if profile else None)


def _train(run: Run, last: int, stop: Stop, profile_folder: Path | None) -> None:
    """Trains with everything that reports on it."""
    state, mesh = run.state, run.mesh
    _tell_what_is_trained(run)
    boards = []
    if run.recipe.train.tensorboard and mesh.rank == 0:
        boards.append(TensorBoard(run.output.folder / "tensorboard", state.step))
    contexts = all_of(
        display(mesh, state.step, last, state.model.compute_dtype), profiled(profile_folder, mesh)
    )
    try:
        with contexts as (shown, after_step):
            reporter = Reporter(mesh, run.output, state.losses, shown, boards, [after_step])
            train(run, last, stop, reporter)
        if mesh.rank == 0:
            _log.info("train step %d is saved: %s", state.step, run.output.checkpoint(state.step))
    finally:
        for board in boards:
            board.close()


def _tell_what_is_trained(run: Run) -> None:
    """Says on the first rank how large the model is, where it computes and what will be left."""
    model, mesh = run.state.model, run.mesh
    if mesh.rank == 0:
        degrees = ",".join(f"{name}={degree}" for name, degree in mesh.degrees.items())
        dtype = str(model.compute_dtype).removeprefix("torch.")
        _log.info(
            "%s parameters, products in %s on %s, mesh %s; metrics and checkpoints in %s",
            *(f"{count_parameters(model.layouts()):,}", dtype, mesh.device.type, degrees),
            run.output.folder,
        )


def _check_recipe_of(output: TrainOutput, recipe: TrainRecipe) -> None:
    """Compares with the recipe of the last checkpoint, or of an output that has none yet.

    Raises:
        RecipeError: It is another; the keys are named.
        CheckpointError: The checkpoint's manifest is damaged.
    """
    step = output.last_step()
    if step:
        folder = output.checkpoint(step)
        check_same_recipe(recipe, read_training_manifest(folder).recipe, folder, step)
    elif output.recipe.is_file():
        saved = load_recipe(output.recipe, TrainRecipe).model_dump(mode="json", exclude_none=True)
        check_same_recipe(recipe, saved, output.recipe, 0)


def _check_batches(recipe: TrainRecipe, mesh: Mesh) -> None:
    """Refuses batches that replicas and micro-batches do not divide.

    Raises:
        MeshError: Names the sizes.
    """
    train = recipe.train
    sizes = {(train.batch_size(phase), train.micro_batches_of(phase)) for phase in train.phases}
    uneven = sorted({size for size, _ in sizes if size % mesh.data.size})
    problems = []
    if uneven:
        problems.append(
            f"data={mesh.data.size} does not divide the recipe's global batch sizes "
            f"{', '.join(map(str, uneven))}"
        )
    problems += [
        f"micro_batches={count} does not divide the {size // mesh.data.size} samples that each of "
        f"data={mesh.data.size} replicas has of a batch of {size}"
        for size, count in sorted(sizes)
        if size % mesh.data.size == 0 and size // mesh.data.size % count
    ]
    if problems:
        raise MeshError("; ".join(problems))
