"""How much memory a score takes, and so how many processes share it."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from jigsaw_forecast.verify.request import ScorePlan

Places = npt.NDArray[np.intp]

BLOCK_BYTES = 16 << 20  # of one access to a file
LIMIT_BYTES = 1900 << 20  # of all processes together, by default; what is measured is a tenth less
_CACHE_BYTES = 704 << 20  # of truth and climatology, in all processes together
_SMALLEST_CACHE_BYTES = 32 << 20
_PROCESS_BYTES = 180 << 20  # the interpreter and its libraries, measured
_NUM_BLOCKS = 4  # as read, as decoded, as arranged, as float64
_WINDOWS = 4  # of valid times: those of one initial time, and of some to come
_EXACT_BYTES = 16  # a sum carried as two float64


def sum_bytes(plan: ScorePlan, variables: Iterable[str]) -> int:
    """Bytes of the sums of bias maps and spectra of some variables, of all models."""
    rows, columns = plan.latitudes.size, plan.longitudes.size
    spectrum = rows * (columns // 2 + 1) * _EXACT_BYTES * len(plan.spectra_leads)
    bias = rows * columns * _EXACT_BYTES * len(plan.map_leads)
    from_files = sum(bool(model.paths) for model in plan.models)
    total = 0
    for name in variables:
        total += spectrum * max(1, len(plan.levels[name])) * (from_files + 1)  # and the truth's
        total += bias * len(plan.models) * (name in plan.map_levels)
    return total


def cache_bytes(plan: ScorePlan, num_processes: int) -> int:
    """The most that one of some processes keeps of truth and climatology."""
    share = max(_CACHE_BYTES // num_processes, _SMALLEST_CACHE_BYTES)
    fields = max((max(1, len(held)) for held in plan.levels.values()), default=1)
    num_points = plan.latitudes.size * plan.longitudes.size * fields
    window = num_points * 4 * max(1, plan.lead_times.size) * (2 if plan.with_acc else 1)
    return min(share, max(_WINDOWS * window, _SMALLEST_CACHE_BYTES))


def num_processes_that_fit(plan: ScorePlan, most: int) -> int:
    """How many processes stay below `LIMIT_BYTES` together, at least one and at most `most`."""
    largest = max((sum_bytes(plan, [name]) for name in plan.levels), default=0)
    each = _PROCESS_BYTES + _NUM_BLOCKS * BLOCK_BYTES + largest
    for count in range(most, 1, -1):
        if _PROCESS_BYTES + count * (each + cache_bytes(plan, count)) <= LIMIT_BYTES:
            return count
    return 1


def group_lead_times(num_leads: int, most: int, in_chunk: int) -> list[Places]:
    """Places of lead times in groups of about the same size.

    Args:
        num_leads: Lead times in all.
        most: The most in a group, where a chunk is not longer.
        in_chunk: Lead times in a chunk of the forecast, which no group cuts.
    """
    every = np.arange(num_leads)
    most = max(in_chunk, most - most % in_chunk)
    if num_leads <= most:
        return [every]
    size = -(-num_leads // -(-num_leads // most))
    size = -(-size // in_chunk) * in_chunk
    return [every[start : start + size] for start in range(0, num_leads, size)]
