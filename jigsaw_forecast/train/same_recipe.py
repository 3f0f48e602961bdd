"""Whether a run may go on with a recipe: what may change, and what differs, key by key."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jigsaw_forecast.errors import RecipeError
from jigsaw_forecast.train.optimizer import phase_at
from jigsaw_forecast.train.schema import TrainRecipe

# a run may go on with another value of these: none of them moves a number of the training itself
CHANGEABLE = frozenset(
    {
        "data.path",
        "data.in_memory",
        "data.read_threads",
        "data.prefetch_batches",
        "train.log_every",
        "train.validate_every",
        "train.checkpoint_every",
        "train.keep_checkpoints",
        "train.keep_best",
        "train.num_validation_inits",
        "train.validation_hours",
        "train.max_skipped",
        "train.on_non_finite",
        "train.tensorboard",
        "train.recompute_activations",
        "train.recompute_hidden",
        "train.num_chunks",
        "train.micro_batches",
    }
)
_CHANGEABLE_IN_PHASES = ("micro_batches",)


def check_same_recipe(
    recipe: TrainRecipe, saved: Mapping[str, Any], where: Path, step: int
) -> None:
    """Refuses to go on with another recipe; phases that have not begun may change.

    Args:
        recipe: Of this run.
        saved: As dumped by the run before.
        where: What holds it, for the message.
        step: Train steps done.

    Raises:
        RecipeError: Keys differ; all are named with both values.
    """
    begun = phase_at(recipe.train, step - 1)[0] if 0 < step <= recipe.train.num_steps else -1
    if step > recipe.train.num_steps:
        begun = len(recipe.train.phases)
    new, old = _flat(_dump(recipe)), _flat(_with_defaults(saved))
    different = [
        f"{key} is {_shown(old, key)} there, {_shown(new, key)} here"
        for key in sorted(new.keys() | old.keys())
        if new.get(key) != old.get(key)
        and not _is_changeable(key)
        and not _is_later_phase(key, begun)
    ]
    if different:
        raise RecipeError(
            f"{where} is of another recipe: {'; '.join(different)}; go on with the recipe that "
            "made it, or choose another --output"
        )


def _dump(recipe: TrainRecipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json", exclude_none=True)


def _with_defaults(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """A saved recipe with the keys that have come since, which say what was done before."""
    try:
        return _dump(TrainRecipe.model_validate(saved))
    except ValidationError:
        return saved  # of another version: it differs, and how is told key by key


def _is_changeable(key: str) -> bool:
    parts = key.split(".")
    is_of_phase = parts[:2] == ["train", "phases"] and parts[-1] in _CHANGEABLE_IN_PHASES
    return key in CHANGEABLE or is_of_phase


def _shown(values: Mapping[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "not set"


def _is_later_phase(key: str, begun: int) -> bool:
    parts = key.split(".")
    return parts[:2] == ["train", "phases"] and int(parts[2]) > begun


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, Mapping):
        items = tree.items()
    elif isinstance(tree, list) and any(isinstance(entry, Mapping) for entry in tree):
        items = dict(enumerate(tree)).items()
    else:
        return {prefix: tree}
    result: dict[str, Any] = {}
    for key, value in items:
        result |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return result
