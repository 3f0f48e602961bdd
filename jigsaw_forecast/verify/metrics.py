"""Metrics as functions of mean statistics.

Means over initial times come last but where weatherbench2 has it otherwise: `acc` is the mean of
the correlations of single initial times, `acc_pooled` (WeatherBench-X) the correlation of mean
moments.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Array64 = npt.NDArray[np.float64]
# reads one statistic of a variable, shape [I, R, L, Z]; None where it is not there
ReadStatistic = Callable[[str], Array64 | None]

DETERMINISTIC_METRICS = ("mse", "rmse", "mae", "bias", "acc", "acc_pooled")
SQRT_BEFORE = "rmse_sqrt_before_time_avg"
ENSEMBLE_METRICS = (
    "crps",
    "crps_skill",
    "crps_spread",
    "energy_score",
    "energy_score_skill",
    "energy_score_spread",
    "ensemble_variance",
    "ensemble_mean_mse",
    "debiased_ensemble_mean_mse",
    "spread_skill_ratio",
    "unbiased_spread_skill_ratio",
    "ensemble_mean_rmse_sqrt_before_time_avg",
    "ensemble_stddev_sqrt_before_time_avg",
)
WIND_VECTORS = {
    "wind_vector": ("u_component_of_wind", "v_component_of_wind"),
    "10m_wind_vector": ("10m_u_component_of_wind", "10m_v_component_of_wind"),
}
ACC_TEXT = (
    "uncentred anomaly correlation of each initial time, then the mean over initial times "
    "(weatherbench2)"
)
ACC_POOLED_TEXT = (
    "uncentred anomaly correlation of moments that are averaged over initial times first "
    "(WeatherBench-X)"
)


def mean_over_inits(values: Array64, count: Array64, skipna: bool = False) -> Array64:
    """Mean over the initial times that were scored, shape [R, L, Z]; NaN where there are none.

    Args:
        values: Shape [I, R, L, Z].
        count: 1 where the pair was scored, 0 where it does not exist, same shape.
        skipna: Whether NaN of scored pairs are left out; otherwise one makes the mean NaN.
    """
    counted = count > 0
    if skipna:
        counted = counted & ~np.isnan(values)
    number = counted.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(
            np.where(counted, values, 0.0).sum(axis=0) / np.where(number, number, np.nan)
        )


def compute_metrics(
    read: ReadStatistic, count: Array64, num_members: int = 0, skipna: bool = False
) -> dict[str, Array64]:
    """All metrics of one variable that its statistics allow, each of shape [R, L, Z].

    Args:
        read: Gives a statistic.
        count: Of scored pairs, shape [I, R, L, Z].
        num_members: 0 for a single forecast.
        skipna: The policy on missing values.
    """

    def mean(values: Array64) -> Array64:
        return mean_over_inits(values, count, skipna)

    found: dict[str, Array64] = {}
    squares = read("mse")
    assert squares is not None
    with np.errstate(invalid="ignore", divide="ignore"):
        found["mse"] = mean(squares)
        found["rmse"] = np.sqrt(found["mse"])
        found[SQRT_BEFORE] = mean(np.sqrt(squares))
        for name in ("mae", "bias", "seeps_24hr", "seeps_6hr"):
            values = read(name)
            if values is not None:
                found[name] = mean(values)
        found |= _correlations(read, mean)
        if num_members:
            found |= _ensemble(read, mean, squares, num_members)
    return found


def _correlations(read: ReadStatistic, mean: Callable[[Array64], Array64]) -> dict[str, Array64]:
    moments = [
        read(name)
        for name in ("anomaly_covariance", "forecast_anomaly_square", "truth_anomaly_square")
    ]
    if any(one is None for one in moments):
        return {}
    covariance, forecast, truth = (one for one in moments if one is not None)
    pooled = mean(covariance) / np.sqrt(mean(forecast) * mean(truth))
    return {"acc": mean(covariance / np.sqrt(forecast * truth)), "acc_pooled": pooled}


def _ensemble(
    read: ReadStatistic, mean: Callable[[Array64], Array64], squares: Array64, num_members: int
) -> dict[str, Array64]:
    parts = {}
    for name in ("crps_skill", "crps_spread", "energy_score_skill", "energy_score_spread",
                 "ensemble_variance"):  # fmt: skip
        values = read(name)
        assert values is not None
        parts[name] = values
    variance = parts["ensemble_variance"]
    found = {name: mean(values) for name, values in parts.items()}
    found["crps"] = mean(parts["crps_skill"] - 0.5 * parts["crps_spread"])
    found["energy_score"] = mean(parts["energy_score_skill"] - 0.5 * parts["energy_score_spread"])
    found["ensemble_mean_mse"] = mean(squares)
    if num_members > 1:  # a sample variance needs two
        debiased = mean(squares - variance / num_members)
        found["debiased_ensemble_mean_mse"] = debiased
        found["unbiased_spread_skill_ratio"] = np.sqrt(found["ensemble_variance"] / debiased)
    found["spread_skill_ratio"] = np.sqrt(found["ensemble_variance"] / found["ensemble_mean_mse"])
    found["ensemble_mean_rmse_sqrt_before_time_avg"] = mean(np.sqrt(squares))
    found["ensemble_stddev_sqrt_before_time_avg"] = mean(np.sqrt(variance))
    return found


def wind_vector_metrics(
    squares: tuple[Array64, Array64], counts: tuple[Array64, Array64], skipna: bool = False
) -> dict[str, Array64]:
    """Metrics of the vector error from the mean squares of its components, each [R, L, Z]."""
    total, count = squares[0] + squares[1], counts[0] * counts[1]
    mse = mean_over_inits(total, count, skipna)
    with np.errstate(invalid="ignore"):
        roots = mean_over_inits(np.sqrt(total), count, skipna)
        return {"mse": mse, "rmse": np.sqrt(mse), SQRT_BEFORE: roots}


def metric_names(num_members: int, with_seeps: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Names of the metrics of a model, in the order of the tables."""
    ensemble = ENSEMBLE_METRICS if num_members else ()
    return (*DETERMINISTIC_METRICS, *with_seeps, *ensemble, SQRT_BEFORE)
