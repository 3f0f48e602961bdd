"""What a field and a level count for in the loss; imports no torch, so that recipes check fast."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from jigsaw_forecast.model.config import ModelConfig


@dataclass(frozen=True)
class LossWeighting:
    """What counts for how much, besides the area.

    Attributes:
        fields: Relative weight by short name or variable; the name goes first; default 1.
        levels: Relative weight by level in hPa; default 1.
        by_pressure: Whether a level counts in proportion to its pressure too, with mean 1 over the
            levels of its variable; surface fields count 1.
        diagnostics: What the diagnostics' mean counts for against the state's.
    """

    fields: Mapping[str, float] = field(default_factory=dict)
    levels: Mapping[str, float] = field(default_factory=dict)
    by_pressure: bool = False
    diagnostics: float = 0.05


def field_weights(config: ModelConfig, weighting: LossWeighting) -> npt.NDArray[np.float64]:
    """Weight of each prognostic field: field x level, summing to 1, shape [F]."""
    fields = config.prognostic_fields
    weights = np.ones(len(fields))
    for place, each in enumerate(fields):
        by_variable = weighting.fields.get(each.variable, 1.0)
        weights[place] = weighting.fields.get(each.short_name, by_variable)
        weights[place] *= weighting.levels.get(str(each.level_hpa), 1.0)
        if weighting.by_pressure and each.level_hpa:
            levels = [other.level_hpa for other in fields if other.variable == each.variable]
            weights[place] *= each.level_hpa / np.mean(levels)
    return np.asarray(weights / weights.sum())
