"""What SEEPS needs of a climate: how often it is dry, and where heavy rain begins."""

from collections import deque
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from jigsaw_forecast.verify.climatology import DAYS, window_weights

Array64 = npt.NDArray[np.float64]

HEAVY_QUANTILE = 2.0 / 3.0  # of the wet amounts: Rodwell et al. (2010)
_POINTS_AT_ONCE = 4096  # quantiles are sorted for so many points together


def seeps_statistics(
    samples: Mapping[int, npt.NDArray[np.floating]],
    shape: tuple[int, int],
    window_days: int,
    dry_threshold: float,
) -> Iterator[tuple[int, Array64, Array64]]:
    """Day of the year from 0, threshold between light and heavy, and fraction of dry amounts.

    The fraction counts all amounts of the window alike; the threshold is the quantile of the wet
    amounts, weighted by the triangular window.

    Source: weatherbench2 scripts/compute_climatology.py, SEEPSThreshold.

    Args:
        samples: By day, amounts in m, shape [years, Y, X].
        shape: Rows and columns.
        window_days: Width of the window.
        dry_threshold: m.
    """
    weights = window_weights(window_days)
    half = window_days // 2
    nothing = np.empty((0, *shape))
    ring: deque[npt.NDArray[np.floating]] = deque(maxlen=window_days)
    for step in range(-half, DAYS + half):
        ring.append(samples.get(step % DAYS, nothing))
        if step < half:
            continue
        amounts = np.concatenate(list(ring)).astype(np.float64)
        by_sample = np.repeat(weights, [len(one) for one in ring])
        is_dry = amounts < dry_threshold
        with np.errstate(invalid="ignore"):
            fraction = is_dry.mean(axis=0)
        flat = np.where(is_dry, np.nan, amounts).reshape(len(amounts), -1)
        threshold = np.concatenate(
            [
                weighted_quantile(flat[:, a : a + _POINTS_AT_ONCE], by_sample, HEAVY_QUANTILE)
                for a in range(0, flat.shape[1], _POINTS_AT_ONCE)
            ]
        )
        yield step - half, threshold.reshape(shape), fraction


def weighted_quantile(values: Array64, weights: Array64, quantile: float) -> Array64:
    """Quantile of each column, missing values and zero weights left out; NaN where none is left.

    Linear interpolation by weights with Kish's effective sample size, as xarray's weighted
    quantile.

    Source: Akinshin (2023), https://arxiv.org/abs/2304.07265, type 7.

    Args:
        values: Shape [samples, points].
        weights: Shape [samples].
        quantile: Between 0 and 1.

    Returns:
        Shape [points].
    """
    present = ~np.isnan(values) & (weights > 0)[:, None]
    weight = np.where(present, weights[:, None], 0.0)
    order = np.argsort(np.where(present, values, np.inf), axis=0, kind="stable")
    ordered = np.take_along_axis(np.where(present, values, 0.0), order, axis=0)
    weight = np.take_along_axis(weight, order, axis=0)
    total = weight.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        effective = total**2 / (weight**2).sum(axis=0)
        weight = weight / total
        cumulative = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(weight, axis=0)])
        h = (effective - 1.0) * quantile + 1.0
        u = np.maximum((h - 1.0) / effective, np.minimum(h / effective, cumulative))
        v = u * effective - h + 1.0
        result = (ordered * np.diff(v, axis=0)).sum(axis=0)
    return np.where(total > 0, result, np.nan)
