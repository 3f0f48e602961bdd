"""What a run needs of its input, and the tasks that fetch it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jigsaw_forecast.fields import Field
from jigsaw_forecast.grid import Grid


@dataclass(frozen=True)
class InputRequest:
    """What a run needs of its input.

    Attributes:
        spec: The text of `--input`; None for the default.
        default: Path of the default input.
        fields: Fields of an initial state.
        grid: The model's grid, which archives are asked for.
        init_times: UTC.
        members: Ensemble members, empty where there are none.
    """

    spec: str | None
    default: Path
    fields: Sequence[Field]
    grid: Grid
    init_times: Sequence[np.datetime64]
    members: Sequence[int] = ()
