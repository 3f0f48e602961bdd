"""Metrics for TensorBoard, an optional extra."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jigsaw_forecast.errors import RecipeError

_LEFT_OUT = ("train_step", "rank_seconds")


def check_installed() -> None:
    """Refuses to train for TensorBoard without its package.

    Raises:
        RecipeError: It is not installed.
    """
    try:
        import torch.utils.tensorboard  # noqa: F401  slow to import and not always there
    except ImportError as error:
        raise RecipeError(
            "train.tensorboard = true: missing package tensorboard; install it by `pip "
            "install 'jigsaw-forecast[tensorboard]'` or leave the key out"
        ) from error


class TensorBoard:
    """Scalars by train step."""

    def __init__(self, folder: Path, step: int) -> None:
        """Opens a folder for them.

        Args:
            folder: Made where it is missing.
            step: The run goes on after it: what an earlier run wrote of later steps is hidden.
        """
        from torch.utils.tensorboard import SummaryWriter  # slow to import and not always there

        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def add(self, line: dict[str, Any]) -> None:
        """Adds a line of metrics."""
        kind = "validation" if "validation_loss" in line else "training"
        for name, value in numbers(line):
            self._writer.add_scalar(f"{kind}/{name}", value, line["train_step"])
        self._writer.flush()

    def close(self) -> None:
        """Ends writing."""
        self._writer.close()


def numbers(line: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a line of metrics by their path, `rmse/z500/24`."""
    for name, value in line.items():
        if name in _LEFT_OUT:
            continue
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", float(value)
