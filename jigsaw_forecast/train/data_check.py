"""What a training run refuses before it makes anything: data that its recipe cannot train on."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from jigsaw_forecast.data.bad_maps import read_static
from jigsaw_forecast.data.forcings import static_fields
from jigsaw_forecast.data.sample_times import SampleTimes
from jigsaw_forecast.data.statistics import StatisticsOrigin, load_statistics
from jigsaw_forecast.data.store import Period, Store
from jigsaw_forecast.data.stores import open_store
from jigsaw_forecast.errors import DataError
from jigsaw_forecast.train.schema import TrainRecipe


def check_data(recipe: TrainRecipe, made: Path) -> None:
    """Compares a recipe with its store; reads coordinates and static fields, no weather.

    Args:
        recipe: To train.
        made: Where the run keeps its statistics; once there, they stand for the recipe's.

    Raises:
        DataError: Fields, static fields or times are missing, the grid is another, a period has no
            sample, or the statistics are of another data set: all that is wrong in one message.
        GridError: The store's grid is not a global regular one.
    """
    config, path = recipe.model, recipe.data.path
    problems: list[str] = []

    def attempt(check: Callable[[], object]) -> None:
        try:
            check()
        except DataError as error:
            problems.append(str(error))

    try:
        store = open_store(path, (*config.prognostic_fields, *config.diagnostic_fields))
        statistics = made if made.exists() else recipe.data.statistics
        if statistics is not None:
            origin = statistics_origin(recipe, store.digest)
            attempt(partial(load_statistics, statistics, origin))
    except DataError as error:
        problems.append(str(error))
        try:
            store = open_store(path, ())  # the fields apart, is there more?
        except DataError:
            raise error from None
    for name in static_fields(config.forcings):
        attempt(partial(_check_static, store, name))
    if store.grid != config.grid_object:
        problems.append(
            f"{path}: grid {store.grid.name}, but the recipe's model has {config.grid}; set "
            "model.grid, or convert the data with `jigsaw-forecast data convert --grid`"
        )
    for key, steps in _longest_rollouts(recipe).items():
        attempt(partial(_check_period, store, recipe, key, steps))
    if problems:
        raise DataError(_join(problems, f"{path}: "))


def _join(problems: list[str], prefix: str) -> str:
    """Problems in one text; those of the store come first, after its name."""
    of_store = [text.removeprefix(prefix) for text in problems if text.startswith(prefix)]
    others = [text for text in problems if not text.startswith(prefix)]
    first = [prefix + "; ".join(of_store)] if of_store else []
    return "; ".join(first + others)


def statistics_origin(recipe: TrainRecipe, digest: str) -> StatisticsOrigin:
    """What statistics must say of themselves to be those of a recipe.

    Args:
        recipe: To train.
        digest: Of its store.
    """
    config = recipe.model
    return StatisticsOrigin(
        digest=digest,
        fields=(*config.fields, *config.diagnostics),
        period=recipe.data.train,
        grid=config.grid,
        step_hours=config.step_hours,
        num_diagnostics=len(config.diagnostics),
    )


def _check_static(store: Store, name: str) -> None:
    try:
        read_static(store, name)
    except DataError as error:
        raise DataError(
            f"{error}; leave it out of model.forcings, or convert the data with --statics FILE"
        ) from None


def _longest_rollouts(recipe: TrainRecipe) -> dict[str, int]:
    """Steps of the longest rollout that each period must hold."""
    hours = recipe.model.step_hours
    return {
        "train": max(phase.rollout_steps for phase in recipe.train.phases),
        "validation": max(recipe.train.validation_leads(hours)) // hours,
    }


def _check_period(store: Store, recipe: TrainRecipe, key: str, num_steps: int) -> None:
    """Refuses a period with gaps that are not allowed, or without a sample.

    Raises:
        DataError: As it says.
    """
    text: str = getattr(recipe.data, key)
    hours = recipe.model.step_hours
    try:
        times = SampleTimes(store, Period.parse(text), hours, allow_gaps=recipe.data.allow_gaps)
    except DataError as error:
        prefix = f"{store.path}: "
        raise DataError(f"{prefix}data.{key}: {str(error).removeprefix(prefix)}") from None
    if not times.starts(num_steps).size:
        whole = " whole" if times.gaps else ""
        raise DataError(
            f"{store.path}: data.{key} {text} is shorter than one{whole} rollout of {num_steps} "
            f"steps of {hours} h; lengthen it, or shorten "
            + ("train.phases rollout_steps" if key == "train" else "train.validation_hours")
        )
