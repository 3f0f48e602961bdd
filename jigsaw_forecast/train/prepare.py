"""From a recipe to everything that the loop needs: data, model, loss, checkpoints."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from numpy.random import SeedSequence

from jigsaw_forecast.data.forcings import ForcingMaps, static_fields
from jigsaw_forecast.data.statistics import Statistics, load_statistics, save_statistics
from jigsaw_forecast.data.stores import open_store
from jigsaw_forecast.data.training_set import Batch, SampleOrder, TrainingSet
from jigsaw_forecast.data.weather_store import Period
from jigsaw_forecast.log import Progress
from jigsaw_forecast.model.weather_mixer import WeatherMixer
from jigsaw_forecast.parallel.mesh import Mesh
from jigsaw_forecast.parallel.together import gather_texts, together
from jigsaw_forecast.train.bench import blank_batch
from jigsaw_forecast.train.checkpointing import Checkpoints, Origin, go_on
from jigsaw_forecast.train.data_check import statistics_origin
from jigsaw_forecast.train.loss import LossWeights, loss_weights
from jigsaw_forecast.train.optimizer import AveragedWeights, make_optimizer
from jigsaw_forecast.train.output import TrainOutput
from jigsaw_forecast.train.precision import compute_dtype, in_precision, master_dtype
from jigsaw_forecast.train.replicas import ReplicatedLoss, RolloutLoss
from jigsaw_forecast.train.schema import TrainRecipe
from jigsaw_forecast.train.state import TrainState
from jigsaw_forecast.train.stopping import Stop
from jigsaw_forecast.train.validation import Validation

_log = logging.getLogger(__name__)


@dataclass
class Run:
    """Everything that the loop holds.

    Attributes:
        recipe: As checked.
        output: The run's folder.
        mesh: This rank's mesh.
        state: What a train step changes.
        loss: With gradients averaged over data.
        data: The training period.
        validation: The validation period.
        checkpoints: Of the run.
    """

    recipe: TrainRecipe
    output: TrainOutput
    mesh: Mesh
    state: TrainState
    loss: ReplicatedLoss
    data: TrainingSet
    validation: Validation
    checkpoints: Checkpoints

    def order(self, index: int) -> SampleOrder:
        """The order of samples in the phase with this index."""
        phase = self.recipe.train.phases[index]
        num_samples = self.data.num_samples(phase.rollout_steps)
        return SampleOrder(num_samples, (self.recipe.seed, index))


def on_first_rank(mesh: Mesh, action: Callable[[], object]) -> None:
    """Runs an action on the first rank only; where it fails, every rank raises."""
    together(mesh, lambda: action() if mesh.rank == 0 else None)


def prepare(recipe: TrainRecipe, output: TrainOutput, mesh: Mesh, stop: Stop) -> Run:
    """Opens the data, normalises it, makes the model and takes up an earlier run.

    Raises:
        ForecastError: The data or the checkpoint is wrong; the same on every rank.
        StoppedError: A signal came.
    """
    config, train = recipe.model, recipe.train
    # a checkpoint holds the state of torch's generator, which starts anywhere: replicas differ in
    # it, the ranks of one model group do not
    torch.manual_seed(int(SeedSequence((recipe.seed, mesh.data.index)).generate_state(1)[0]))
    model = _make_model(recipe, mesh)
    all_fields = (*config.prognostic_fields, *config.diagnostic_fields)
    store = together(
        mesh, lambda: open_store(recipe.data.path, all_fields, recipe.data.read_threads)
    )
    model_rows = slice(0, config.grid_object.num_model_lat)
    statics = {name: store.static(name)[model_rows] for name in static_fields(config.forcings)}
    pieces = model.pieces
    maps = ForcingMaps(
        config.forcings[pieces.forcings], config.grid_object, statics, rows=pieces.rows
    )
    data, validation_data = (
        TrainingSet(
            store, config, pieces, Period.parse(text), maps, allow_gaps=recipe.data.allow_gaps
        )
        for text in (recipe.data.train, recipe.data.validation)
    )
    for part, text in ((data, recipe.data.train), (validation_data, recipe.data.validation)):
        if part.gaps and mesh.rank == 0:  # every rank finds the same
            _log.warning(
                "%s: %d gaps within %s, trained on the whole sequences between them: %s",
                *(store.path, len(part.gaps), text, ", ".join(part.gaps)),
            )
    if recipe.data.in_memory:
        _load(data, mesh, stop)
    statistics = _statistics(recipe, output, data, store.digest, mesh, stop)
    data.normalise(statistics)
    validation_data.normalise(statistics)
    model.set_tendency_scale(statistics.std, statistics.tendency_std)
    weights = loss_weights(config, pieces, train.loss_weighting(), mesh.device)
    weights = LossWeights(*(part.to(master_dtype(train.precision)) for part in weights))
    state = TrainState(model, make_optimizer(model, train), AveragedWeights(model, train.ema_decay))
    rollout_loss = RolloutLoss(model, weights, recompute=train.recompute_activations)
    loss = ReplicatedLoss(rollout_loss, mesh)
    loss.settle_buckets(_blank(model))
    mesh.traffic.reset()
    sample_order = go_on(output, state)
    on_first_rank(mesh, lambda: output.forget_after(state.step))
    run = Run(
        recipe=recipe,
        output=output,
        mesh=mesh,
        state=state,
        loss=loss,
        data=data,
        validation=together(
            mesh,
            lambda: Validation(validation_data, statistics, model, weights, train),
        ),
        checkpoints=Checkpoints(recipe, output, state, Origin(statistics, statics, store.notice)),
    )
    if sample_order.get("position"):
        together(mesh, lambda: run.order(int(sample_order["phase"])).check(sample_order))
    run.validation.make_references(data, in_memory=recipe.data.in_memory)
    together(mesh, stop.check)
    return run


def _make_model(recipe: TrainRecipe, mesh: Mesh) -> WeatherMixer:
    train = recipe.train
    model = WeatherMixer(recipe.model, mesh, seed=recipe.seed).to(master_dtype(train.precision))
    model.compute_dtype = compute_dtype(train.precision, mesh.device)
    model.num_chunks = train.num_chunks
    model.recompute_hidden = train.recompute_hidden
    return model


def _blank(model: WeatherMixer) -> Batch:
    dtype = next(model.parameters()).dtype
    return in_precision(blank_batch(model, 1, 1).to(model.mesh.device), dtype)


def _load(data: TrainingSet, mesh: Mesh, stop: Stop) -> None:
    """Reads the training set into memory; a signal ends it between two parts."""
    with Progress("reading the training set", len(data.times), "times") as progress:

        def advance(num_times: int) -> None:
            progress.advance(num_times)
            stop.check()

        together(mesh, lambda: data.load(advance))


def _statistics(
    recipe: TrainRecipe,
    output: TrainOutput,
    data: TrainingSet,
    digest: str,
    mesh: Mesh,
    stop: Stop,
) -> Statistics:
    """The training set's statistics: those that the recipe or this run has, else made.

    Raises:
        DataError: They are of another data set.
    """
    origin = statistics_origin(recipe, digest)
    is_there = "there" if mesh.rank == 0 and output.statistics.exists() else ""
    if gather_texts(mesh, is_there)[0]:  # one answer for all, whenever each of them asks
        return together(mesh, lambda: load_statistics(output.statistics, origin))
    if recipe.data.statistics is not None:
        path = recipe.data.statistics
        statistics = together(mesh, lambda: load_statistics(path, origin))
    else:
        statistics = data.build_statistics(
            recipe.model, mesh, lambda num_times: stop.check(), recipe.data.statistics_times
        )
    on_first_rank(mesh, lambda: save_statistics(output.statistics, statistics, origin))
    return statistics
