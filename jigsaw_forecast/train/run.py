"""Training: from a recipe to checkpoints."""

import logging
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from jigsaw_forecast.checkpoint.save import save_checkpoint
from jigsaw_forecast.data.forcings import ForcingMaps, static_fields
from jigsaw_forecast.data.statistics import Statistics
from jigsaw_forecast.data.training_set import Batch, ReadAhead, SampleOrder, TrainingSet
from jigsaw_forecast.data.weather_store import Period, WeatherStore
from jigsaw_forecast.errors import MeshError, StoppedError
from jigsaw_forecast.log import Progress
from jigsaw_forecast.model.weather_mixer import WeatherMixer
from jigsaw_forecast.parallel.collectives import all_reduce_sum, gather_texts, together
from jigsaw_forecast.parallel.mesh import Mesh, choose_device, make_mesh
from jigsaw_forecast.parallel.watch import note
from jigsaw_forecast.recipe import load_recipe
from jigsaw_forecast.train.loss import loss_weights
from jigsaw_forecast.train.meter import Meter
from jigsaw_forecast.train.optimizer import (
    AveragedWeights,
    learning_rate,
    local_gradient_square,
    make_optimizer,
    phase_at,
)
from jigsaw_forecast.train.output import TrainOutput, load_progress, save_progress
from jigsaw_forecast.train.replicas import RolloutLoss, over_replicas
from jigsaw_forecast.train.schema import TrainRecipe
from jigsaw_forecast.train.validation import Validation

_log = logging.getLogger(__name__)


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of the products that a recipe's precision means on a device.

    `auto` is bfloat16 on GPUs and on CPUs with instructions for it (measured 2.5 to 3 times as
    fast there, see docs/log.md; slower than float32 elsewhere).
    """
    if precision == "auto":
        # older versions of torch cannot tell: then float32 is the safe answer
        found: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        has_bfloat16 = device.type == "cuda" or any(
            found.get(name, False) for name in ("avx512_bf16", "amx_bf16")
        )
        precision = "bfloat16" if has_bfloat16 else "float32"
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]


def train_recipe(
    recipe: Path,
    settings: Sequence[str],
    mesh: dict[str, int],
    output: Path | None,
    resume: bool,
    max_steps: int | None,
    device: str = "auto",
) -> None:
    """Trains a model as a recipe says and leaves metrics and checkpoints in a folder.

    Args:
        recipe: TOML file.
        settings: `key=value` changes to it.
        mesh: Degree by axis name; every rank of the run calls this.
        output: Folder; `outputs/` and the recipe's name by default.
        resume: Go on with what the folder holds; start where it is empty.
        max_steps: Stop after so many train steps, schedules unchanged, and save.
        device: `cpu`, `cuda`, or `auto`: GPUs where every rank of a machine has its own.

    Raises:
        ForecastError: The recipe, the data, the mesh or the folder is wrong.
        StoppedError: A signal ended the run, or the loss is no number; it can go on by `resume`.
    """
    checked = load_recipe(recipe, TrainRecipe, settings)
    folder = TrainOutput(output or Path("outputs") / recipe.stem)
    plan = {"recipe": checked.model_dump_json(), "output": str(folder.folder)}
    ranks = make_mesh(mesh, choose_device(device), plan)
    _check_batches(checked, ranks)
    together(ranks, lambda: folder.check(resume=resume))  # all look before the first one writes
    fields = (*checked.model.prognostic_fields, *checked.model.diagnostic_fields)
    together(ranks, lambda: WeatherStore(checked.data.path, fields))  # refused before a folder is
    with _stop_on_signal() as stop:
        _first_rank(ranks, lambda: folder.start(checked))
        last = min(checked.train.num_steps, max_steps or checked.train.num_steps)
        done = folder.last_step()
        if done >= last:
            total = checked.train.num_steps
            _log.info("%s has %d of %d train steps: nothing to do", folder.folder, done, total)
            return
        try:
            run = _prepare(checked, folder, ranks, stop)
        except StoppedError:
            _first_rank(ranks, folder.requeue.touch)
            raise
        _train(run, last, stop)


@dataclass
class _Run:
    """Everything that the loop holds."""

    recipe: TrainRecipe
    output: TrainOutput
    mesh: Mesh
    model: WeatherMixer
    loss: Callable[[Batch], torch.Tensor]
    data: TrainingSet
    validation: Validation
    statistics: Statistics
    statics: dict[str, npt.NDArray[np.float32]]
    optimizer: torch.optim.AdamW
    average: AveragedWeights
    notice: str  # of the training data; goes with the weights
    step: int  # train steps done
    parameters: list[nn.Parameter]


@dataclass
class _Stop:
    """Whether to stop.

    Attributes:
        signal_name: The signal that this rank got.
        is_agreed: Whether any rank got one; known to all ranks after each train step.
    """

    signal_name: str = ""
    is_agreed: bool = False

    def check(self) -> None:
        """Ends the preparation where this rank got a signal: there is nothing to save.

        Raises:
            StoppedError: It got one.
        """
        if self.signal_name:
            raise StoppedError(
                f"stopped by {self.signal_name} while reading the data; go on with --resume"
            )


def _first_rank(mesh: Mesh, action: Callable[[], object]) -> None:
    """Runs an action on the first rank only; where it fails, every rank raises."""
    together(mesh, lambda: action() if mesh.rank == 0 else None)


def _is_there(mesh: Mesh, path: Path) -> bool:
    """Whether the first rank sees a path: one answer for all ranks, whenever each of them asks."""
    return bool(gather_texts(mesh, "there" if mesh.rank == 0 and path.exists() else "")[0])


def _prepare(recipe: TrainRecipe, output: TrainOutput, mesh: Mesh, stop: _Stop) -> _Run:
    """Opens the data, normalises it, makes the model and takes up an earlier run."""
    config = recipe.model
    model = WeatherMixer(config, mesh, seed=recipe.seed)
    model.compute_dtype = compute_dtype(recipe.train.precision, mesh.device)
    model.num_chunks = recipe.train.num_chunks
    model.recompute_hidden = recipe.train.recompute_hidden
    all_fields = (*config.prognostic_fields, *config.diagnostic_fields)
    store = together(mesh, lambda: WeatherStore(recipe.data.path, all_fields))
    model_rows = slice(0, config.grid_object.num_model_lat)
    statics = {name: store.static(name)[model_rows] for name in static_fields(config.forcings)}
    pieces = model.pieces
    maps = ForcingMaps(
        config.forcings[pieces.forcings], config.grid_object, statics, rows=pieces.rows
    )
    train, validation = (
        TrainingSet(store, config, pieces, Period.parse(text), maps)
        for text in (recipe.data.train, recipe.data.validation)
    )
    if recipe.data.in_memory:
        _load(train, mesh, stop)
    statistics = _statistics(recipe, output, train, mesh, stop)
    train.normalise(statistics)
    validation.normalise(statistics)
    model.set_tendency_scale(statistics.std, statistics.tendency_std)
    weights = loss_weights(
        config, pieces, recipe.train.field_weights, recipe.train.diagnostic_weight, mesh.device
    )
    for index, phase in enumerate(recipe.train.phases):
        SampleOrder(train.num_samples(phase.rollout_steps), (recipe.seed, index))  # refuses none
    num_inits = recipe.train.num_validation_inits
    run = _Run(
        recipe=recipe,
        output=output,
        mesh=mesh,
        model=model,
        loss=over_replicas(
            RolloutLoss(model, weights, recompute=recipe.train.recompute_activations), mesh
        ),
        data=train,
        validation=together(
            mesh, lambda: Validation(validation, statistics, num_inits, model, weights)
        ),
        statistics=statistics,
        statics=statics,
        optimizer=make_optimizer(model, recipe.train),
        average=AveragedWeights(model, recipe.train.ema_decay),
        notice=store.notice,
        step=output.last_step(),
        parameters=list(model.parameters()),
    )
    if run.step:
        together(
            mesh,
            lambda: load_progress(output, run.step, model, run.optimizer, run.average, mesh),
        )
    _first_rank(mesh, lambda: output.forget_after(run.step))
    together(mesh, stop.check)
    return run


def _load(data: TrainingSet, mesh: Mesh, stop: _Stop) -> None:
    """Reads the training set into memory; a signal ends it between two parts."""
    with Progress("reading the training set", len(data.times), "times") as progress:

        def advance(num_times: int) -> None:
            progress.advance(num_times)
            stop.check()

        together(mesh, lambda: data.load(advance))


def _statistics(
    recipe: TrainRecipe, output: TrainOutput, data: TrainingSet, mesh: Mesh, stop: _Stop
) -> Statistics:
    """The training set's statistics: those of this run where it has some, else made."""
    if _is_there(mesh, output.statistics):
        return Statistics.from_arrays(load_file(output.statistics))
    statistics = data.build_statistics(recipe.model, mesh, lambda num_times: stop.check())

    def write() -> None:
        partial = output.statistics.with_suffix(".partial")
        save_file(statistics.to_arrays(), partial)
        partial.rename(output.statistics)

    _first_rank(mesh, write)
    return statistics


def _check_batches(recipe: TrainRecipe, mesh: Mesh) -> None:
    sizes = {recipe.train.batch_size(phase) for phase in recipe.train.phases}
    wrong = sorted(size for size in sizes if size % mesh.data.size)
    if wrong:
        raise MeshError(
            f"data={mesh.data.size} does not divide the recipe's global batch sizes "
            f"{', '.join(map(str, wrong))}"
        )


def _train(run: _Run, last: int, stop: _Stop) -> None:
    """Phase after phase until `last` train steps are done or a signal comes."""
    train = run.recipe.train
    with Progress("training", last - run.step, "train steps") as progress:
        while run.step < last and not stop.is_agreed:
            index, place = phase_at(train, run.step)
            phase_end = min(run.step - place + train.phases[index].num_steps, last)
            _train_phase(run, index, phase_end, stop, progress)
    _save(run)
    if stop.is_agreed and run.step < train.num_steps:
        _first_rank(run.mesh, run.output.requeue.touch)
        name = stop.signal_name or "a signal to another rank"
        raise StoppedError(f"stopped by {name} after {run.step} train steps; go on with --resume")


def _train_phase(run: _Run, index: int, end: int, stop: _Stop, progress: Progress) -> None:
    """Train steps of one phase; validates, logs and saves on the way."""
    train = run.recipe.train
    phase = train.phases[index]
    batch_size = train.batch_size(phase)
    order = SampleOrder(run.data.num_samples(phase.rollout_steps), (run.recipe.seed, index))
    begin = run.step - phase_at(train, run.step)[1]

    def make_batch(step: int) -> Batch:
        starts = order.starts(step - begin, batch_size, run.mesh)
        batch = run.data.batch(starts, phase.rollout_steps)
        return batch.pinned() if run.mesh.device.type == "cuda" else batch

    batches = ReadAhead(make_batch, run.step, end)
    meter = Meter(run.mesh)
    try:
        while run.step < end and not stop.is_agreed:
            waited = time.perf_counter()
            batch = batches.take().to(run.mesh.device)
            meter.data_wait_s += time.perf_counter() - waited
            rate = learning_rate(phase, train.warmup(phase), run.step - begin)
            with meter.counting_flops():
                _train_step(run, batch, rate, meter, stop)
            meter.samples += batch_size
            progress.advance(note=f"loss {meter.last_loss:.4f}")
            is_last = run.step == train.num_steps
            if run.step % train.log_every == 0 or is_last:
                _log_metrics(run, meter, batch_size, rate)
            with meter.paused():
                if run.step % train.validate_every == 0 or is_last:
                    _validate(run)
                if run.step % train.checkpoint_every == 0 and not is_last:
                    _save(run)
    finally:
        batches.close()


def _train_step(run: _Run, batch: Batch, rate: float, meter: Meter, stop: _Stop) -> None:
    """Forward, backward and one AdamW step.

    Communication:
        The model's own and that of `over_replicas`; one all-reduce of three numbers (squared
        gradient norm, loss, whether a rank was signalled) over each axis.
    """
    train, mesh = run.recipe.train, run.mesh
    note(f"train step {run.step + 1}")
    loss = run.loss(batch)
    loss.backward()  # type: ignore[no-untyped-call]
    shared = torch.stack(
        [
            local_gradient_square(run.parameters) / mesh.data.size,
            loss.detach() / mesh.data.size,
            loss.new_tensor(float(bool(stop.signal_name))),
        ]
    ).double()
    all_reduce_sum(shared, (mesh.domain, mesh.tensor, mesh.data))
    square, mean_loss, num_signalled = shared.tolist()
    if not np.isfinite(square) or not np.isfinite(mean_loss):
        raise StoppedError(
            f"the loss is {mean_loss:g} and the gradient norm {square**0.5:g} at train step "
            f"{run.step + 1}; lower train.phases learning_rate, or go on from the last "
            "checkpoint with --resume"
        )
    norm = square**0.5
    nn.utils.clip_grads_with_norm_(run.parameters, train.clip_norm, torch.tensor(norm))
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    run.step += 1
    run.average.update(run.step)
    meter.add(mean_loss, norm)
    stop.is_agreed = num_signalled > 0


def _log_metrics(run: _Run, meter: Meter, batch_size: int, rate: float) -> None:
    if not meter.losses:
        return
    measured = meter.line()
    meter.restart()
    if run.mesh.rank != 0:
        return
    samples = _samples_until(run.recipe, run.step)
    line = {"train_step": run.step, "samples": samples, "learning_rate": rate, **measured}
    run.output.append_metrics(line)


def _samples_until(recipe: TrainRecipe, step: int) -> int:
    total = 0
    for phase in recipe.train.phases:
        total += min(step, phase.num_steps) * recipe.train.batch_size(phase)
        step -= min(step, phase.num_steps)
    return total


def _validate(run: _Run) -> None:
    """Scores the averaged weights and writes a line of metrics."""
    start = time.perf_counter()
    with run.average.applied():
        scores = run.validation.score()
    if run.mesh.rank != 0:
        return
    line = {
        "train_step": run.step,
        "validation_loss": scores.loss,
        "rmse": scores.rmse,
        "seconds": round(time.perf_counter() - start, 4),
    }
    run.output.append_metrics(line)
    shown = ", ".join(
        f"{name} {'/'.join(f'{value:.4g}' for value in by_lead.values())}"
        for name, by_lead in scores.rmse.items()
    )
    _log.info("train step %d: validation loss %.4f; %s", run.step, scores.loss, shown)


def _save(run: _Run) -> None:
    """Saves the averaged weights for inference, and what it takes to go on."""
    folder = run.output.checkpoint(run.step)
    provenance = {
        "train_step": run.step,
        "samples": _samples_until(run.recipe, run.step),
        "weights": f"exponential moving average, decay {run.recipe.train.ema_decay}",
        "recipe": run.recipe.model_dump(mode="json", exclude_none=True),
        "torch": torch.__version__,
    }
    if not _is_there(run.mesh, folder):
        with run.average.applied():
            save_checkpoint(
                folder,
                run.model,
                run.statistics,
                run.statics,
                provenance,
                dtype=torch.bfloat16,
                notice=run.notice,
            )
    save_progress(run.output, run.step, run.model, run.optimizer, run.average, run.mesh)
    keep = run.recipe.train.keep_checkpoints
    _first_rank(run.mesh, lambda: run.output.forget_older(run.step, keep))


@contextmanager
def _stop_on_signal() -> Iterator[_Stop]:
    """Within, SIGTERM and SIGINT ask for a stop after the train step in progress."""
    stop = _Stop()

    def note(number: int, frame: FrameType | None) -> None:
        stop.signal_name = signal.Signals(number).name

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
