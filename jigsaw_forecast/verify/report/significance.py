"""Whether two forecasts differ: a paired t-test that knows that neighbouring days are alike."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

FloatArray = npt.NDArray[np.float64]

MIN_PAIRS = 10  # with fewer the autocorrelation is a guess, and so would be the test
CONFIDENCE = 0.95


@dataclass(frozen=True)
class PairedTest:
    """Result of the test for each column of differences; NaN where it could not be made.

    Attributes:
        mean: Mean difference.
        inflation: Factor of the standard error, at least 1.
        num_pairs: Initial times that both forecasts have.
        p_value: Two-sided probability of such a mean without a true difference.
    """

    mean: FloatArray
    inflation: FloatArray
    num_pairs: npt.NDArray[np.int64]
    p_value: FloatArray

    @property
    def is_significant(self) -> npt.NDArray[np.bool_]:
        """Whether the mean differs from zero at 95 %; false where it was not tested."""
        return np.asarray(self.p_value < 1.0 - CONFIDENCE)


def paired_test(
    differences: npt.NDArray[np.floating], times: npt.NDArray[np.datetime64]
) -> PairedTest:
    """Tests whether mean differences are zero, by Student's t with an inflated standard error.

    The series are taken as second-order autoregressive: with its autocorrelations r1 and r2,
    p1 = r1 (1 - r2) / (1 - r1^2) and p2 = (r2 - r1^2) / (1 - r1^2), the standard error of
    independent differences grows by k = sqrt((1 - r1 p1 - r2 p2) / (1 - p1 - p2)^2), never
    below 1; n - 1 degrees of freedom. A gap in the times is no pair at a lag.

    Source: Geer 2016, "Significance of changes in medium-range forecast scores", Tellus A 68,
    30229, doi:10.3402/tellusa.v68.30229.

    Args:
        differences: Score of one forecast minus that of the other, shape [T, ...], NaN where
            either lacks the initial time.
        times: Initial times, ascending, shape [T].

    Returns:
        Shapes [...]; NaN where there are fewer than 10 pairs or the times are too uneven.
    """
    series = np.asarray(differences, dtype=np.float64)
    is_there = np.isfinite(series)
    count = is_there.sum(0)
    enough = np.maximum(count, 2)
    mean = np.where(is_there, series, 0.0).sum(0) / np.maximum(count, 1)
    deviation = np.where(is_there, series - mean, 0.0)
    square = (deviation**2).sum(0)
    inflation = inflation_factor(*_autocorrelations(deviation, is_there, times))
    # equal differences to the last bit have no spread and so no autocorrelation
    is_constant = square <= enough * (1e-14 * np.abs(mean)) ** 2
    inflation = np.where(is_constant, 1.0, inflation)
    error = np.sqrt(square / (enough - 1) / enough) * inflation
    with np.errstate(divide="ignore", invalid="ignore"):
        p_value = 2.0 * stats.t.sf(np.abs(mean) / error, enough - 1)
    p_value = np.where(is_constant, np.where(mean == 0.0, 1.0, 0.0), p_value)
    is_tested = (count >= MIN_PAIRS) & np.isfinite(inflation)
    return PairedTest(
        np.where(count > 0, mean, np.nan),
        np.where(is_tested, inflation, np.nan),
        count,
        np.where(is_tested, p_value, np.nan),
    )


def inflation_factor(lag_1: FloatArray, lag_2: FloatArray) -> FloatArray:
    """Factor of the standard error of a mean of second-order autoregressive values.

    Args:
        lag_1: Autocorrelation of neighbours, shape [...].
        lag_2: Autocorrelation of the neighbours' neighbours, shape [...].

    Returns:
        At least 1; NaN where no stationary series has these autocorrelations.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        first = lag_1 * (1.0 - lag_2) / (1.0 - lag_1**2)
        second = (lag_2 - lag_1**2) / (1.0 - lag_1**2)
        square = (1.0 - lag_1 * first - lag_2 * second) / (1.0 - first - second) ** 2
        is_stationary = (np.abs(second) < 1.0) & (second + np.abs(first) < 1.0)
        return np.where(is_stationary, np.sqrt(np.maximum(square, 1.0)), np.nan)


def _autocorrelations(
    deviation: FloatArray, is_there: npt.NDArray[np.bool_], times: npt.NDArray[np.datetime64]
) -> tuple[FloatArray, FloatArray]:
    """Autocorrelations at one and two steps; NaN where fewer than half the times have a pair."""
    seconds = times.astype("datetime64[s]").astype(np.int64)
    found, how_often = np.unique(np.diff(seconds), return_counts=True)
    step = int(found[how_often.argmax()]) if found.size else 1
    count = np.maximum(is_there.sum(0), 1)
    variance = (deviation**2).sum(0) / count
    lagged = []
    for lag in (1, 2):
        later = np.searchsorted(seconds, seconds + lag * step)
        earlier = np.flatnonzero(later < seconds.size)
        earlier = earlier[seconds[later[earlier]] == seconds[earlier] + lag * step]
        later = later[earlier]
        pairs = (is_there[earlier] & is_there[later]).sum(0)
        product = (deviation[earlier] * deviation[later]).sum(0) / np.maximum(pairs, 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            # the factor makes a series without gaps the usual, always stationary estimate
            estimate = product / variance * (1.0 - lag / count)
        lagged.append(np.where(2 * pairs >= count - lag, estimate, np.nan))
    first, second = lagged
    # without pairs two steps apart: first-order
    return first, np.where(np.isnan(second), first**2, second)
