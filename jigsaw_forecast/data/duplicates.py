"""Whether two records of one field say the same."""

import numpy as np

from jigsaw_forecast.data.records import Float32Array

# Two codings of one field may differ by a step of 16 bit packing, relative to its range.
_TOLERANCE = 2e-5


def agree(first: Float32Array, second: Float32Array) -> bool:
    """Whether two maps [Y, X] of a field are the same but for how they were packed."""
    if first.shape != second.shape:
        return False
    spread = float(np.nanmax(first) - np.nanmin(first)) if np.isfinite(first).any() else 0.0
    return bool(np.allclose(first, second, rtol=0.0, atol=_TOLERANCE * spread, equal_nan=True))
