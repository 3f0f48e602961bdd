"""Spatial sums of pointwise statistics, in float64, a cache-sized block at a time.

Definitions are WeatherBench 2's (weatherbench2.metrics) and, for members, Zamo and Naveau (2018,
https://doi.org/10.1007/s11004-017-9709-7). Sums are additive over rows: a band of latitudes gives
its part of each.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from jigsaw_forecast.verify.region_sums import sum_errors
from jigsaw_forecast.verify.regions import RegionWeights

Array64 = npt.NDArray[np.float64]
AnyMaps = npt.NDArray[np.floating]
Named = Iterator[tuple[str, Array64]]

BLOCK_POINTS = 1 << 16  # half a MB of float64: a few such arrays fit into a core's cache

ERRORS = ("mse", "mae", "bias")
ANOMALIES = ("anomaly_covariance", "forecast_anomaly_square", "truth_anomaly_square")
ENSEMBLE = (
    "crps_skill",
    "crps_spread",
    "energy_score_skill",
    "energy_score_spread",
    "ensemble_variance",
)
_NORMS = ("energy_score_skill", "energy_score_spread")  # roots are taken of spatial means
DRY_THRESHOLDS_M = {  # WeatherBench 2: 0.25 mm in 24 hours, 0.1 mm in 6 hours
    "total_precipitation_24hr": ("seeps_24hr", 0.25e-3),
    "total_precipitation_6hr": ("seeps_6hr", 0.1e-3),
}
SEEPS = tuple(name for name, _ in DRY_THRESHOLDS_M.values())
SEEPS_DRY_FRACTION_RANGE = (0.1, 0.85)  # exclusive; Rodwell et al. (2010), section 4


@dataclass
class Sums:
    """Weighted spatial sums by statistic; those of bands add up.

    Attributes:
        values: Sums over the points that have a value, shape [..., R].
        weights: Weight of the points that count where missing ones are left out, otherwise of
            the points that lack a value, shape [..., R].
    """

    values: dict[str, Array64] = field(default_factory=dict)
    weights: dict[str, Array64] = field(default_factory=dict)

    def add(self, other: "Sums") -> None:
        """Adds another band or block of rows."""
        for name, value in other.values.items():
            self.values[name] = self.values[name] + value if name in self.values else value
            weight = other.weights[name]
            self.weights[name] = self.weights[name] + weight if name in self.weights else weight


@dataclass(frozen=True)
class Kernel:
    """Sums and means over regions, with WeatherBench's policy on missing values.

    Attributes:
        regions: Where, and this rank's rows.
        skipna: Whether points without a value are left out of a mean; otherwise one of them makes
            the mean of each region that it counts in NaN. SEEPS always leaves them out.
    """

    regions: RegionWeights
    skipna: bool = False

    def errors(self, forecast: AnyMaps, truth: AnyMaps, climatology: AnyMaps | None = None) -> Sums:
        """Sums of `ERRORS` and, with a climatology, the first two of `ANOMALIES`.

        Args:
            forecast: Shape [B, Y_i, X].
            truth: Likewise.
            climatology: Likewise.
        """
        inputs = [forecast, truth] + ([climatology] if climatology is not None else [])
        names = ERRORS if climatology is None else (*ERRORS, *ANOMALIES[:2])
        # the truth in place of a climatology costs nothing, and its sums are dropped
        together = sum_errors(forecast, truth, inputs[-1], self.regions.table)
        counted = self.regions.totals if self.skipna else np.zeros_like(self.regions.totals)
        found = Sums({name: together[:, number] for number, name in enumerate(names)})
        found.weights = {name: np.tile(counted, (len(forecast), 1)) for name in names}
        spoilt = ~np.isfinite(together[:, : len(names)]).all(axis=(1, 2))
        if spoilt.any():  # by missing values: these maps again, point by point
            again = self._sum([one[spoilt] for one in inputs], _errors)
            for name in names:
                found.values[name][spoilt] = again.values[name]
                found.weights[name][spoilt] = again.weights[name]
        return found

    def truth_anomaly(self, truth: AnyMaps, climatology: AnyMaps) -> Sums:
        """Sums of `truth_anomaly_square`, inputs of shape [B, Y_i, X]."""
        return self._sum([truth, climatology], _truth_anomaly)

    def ensemble(self, members: AnyMaps, truth: AnyMaps) -> Sums:
        """Sums of `ENSEMBLE`; those of the energy score are by member, before the root.

        Args:
            members: Shape [B, M, Y_i, X].
            truth: Shape [B, Y_i, X].
        """
        compute = _ensemble_skipna if self.skipna else _ensemble
        return self._sum([members, truth], compute)

    def seeps(
        self,
        variable: str,
        forecast: AnyMaps,
        truth: AnyMaps,
        wet_threshold: AnyMaps,
        dry_fraction: Array64,
    ) -> Sums:
        """Sums of SEEPS of a variable of `DRY_THRESHOLDS_M`.

        Source: Rodwell et al. (2010), https://doi.org/10.1002/qj.656, as weatherbench2 codes it.

        Args:
            variable: Says the dry threshold.
            forecast: m, shape [B, Y_i, X].
            truth: Likewise.
            wet_threshold: Between light and heavy, for the day and hour, likewise.
            dry_fraction: Mean over the climatology's days and hours, shape [Y_i, X].
        """
        name, dry_threshold = DRY_THRESHOLDS_M[variable]
        fractions = np.broadcast_to(dry_fraction, forecast.shape)

        def compute(inputs: Sequence[Array64]) -> Named:
            amount, observed, wet, dry = inputs
            yield name, seeps(amount, observed, wet, dry, dry_threshold)

        return self._sum([forecast, truth, wet_threshold, fractions], compute, skipna=True)

    def means(self, sums: Sums) -> dict[str, Array64]:
        """Means over regions by statistic, shape [B, R], from sums over the whole globe."""
        found = {}
        totals = self.regions.totals
        with np.errstate(divide="ignore", invalid="ignore"):
            for name, value in sums.values.items():
                weight = sums.weights[name]
                if self.skipna or name in SEEPS:
                    mean = np.where(weight > 0, value / weight, np.nan)
                else:
                    mean = np.where((weight > 0) | (totals <= 0), np.nan, value / totals)
                if name in _NORMS:
                    norms = np.sqrt(mean)
                    mean = _nanmean(norms, 1) if self.skipna else norms.mean(axis=1)
                found[name] = mean
        return found

    def _sum(
        self,
        inputs: Sequence[AnyMaps],
        compute: Callable[[Sequence[Array64]], Named],
        skipna: bool | None = None,
    ) -> Sums:
        """Sums what `compute` makes of blocks of maps and rows."""
        skipna = self.skipna if skipna is None else skipna
        points = max(one[0, ..., :1, :].size for one in inputs)  # of one row, members included
        num_maps, num_rows = inputs[0].shape[0], inputs[0].shape[-2]
        maps_a_block = max(1, BLOCK_POINTS // (points * num_rows))
        rows_a_block = max(1, min(num_rows, BLOCK_POINTS // points))
        parts = []
        for first in range(0, num_maps, maps_a_block):
            part = Sums()
            for row in range(0, num_rows, rows_a_block):
                block = [
                    np.asarray(
                        one[first : first + maps_a_block, ..., row : row + rows_a_block, :],
                        dtype=np.float64,
                    )
                    for one in inputs
                ]
                part.add(self._sum_block(compute(block), row, skipna))
            parts.append(part)
        if len(parts) == 1:
            return parts[0]
        return Sums(
            {k: np.concatenate([part.values[k] for part in parts]) for k in parts[0].values},
            {k: np.concatenate([part.weights[k] for part in parts]) for k in parts[0].weights},
        )

    def _sum_block(self, named: Named, row: int, skipna: bool) -> Sums:
        found = Sums()
        for name, values in named:
            total = self.regions.sums(values, row)
            is_finite = np.isfinite(total).all()
            if skipna or not is_finite:
                present = np.isfinite(values)
                total = self.regions.sums(np.where(present, values, 0.0), row)
                counted = present if skipna else ~present
                found.weights[name] = self.regions.sums(counted.astype(np.float64), row)
            else:
                found.weights[name] = np.zeros_like(total)
            found.values[name] = total
        return found


def _errors(inputs: Sequence[Array64]) -> Named:
    forecast, truth = inputs[0], inputs[1]
    error = forecast - truth
    scratch = np.multiply(error, error)
    yield "mse", scratch
    yield "mae", np.abs(error, out=scratch)
    yield "bias", error
    if len(inputs) > 2:
        anomaly = np.subtract(forecast, inputs[2], out=scratch)
        truth_anomaly = np.subtract(truth, inputs[2], out=error)
        yield "anomaly_covariance", np.multiply(anomaly, truth_anomaly, out=truth_anomaly)
        yield "forecast_anomaly_square", np.multiply(anomaly, anomaly, out=anomaly)


def _truth_anomaly(inputs: Sequence[Array64]) -> Named:
    anomaly = inputs[0] - inputs[1]
    yield "truth_anomaly_square", np.multiply(anomaly, anomaly, out=anomaly)


def _ensemble(inputs: Sequence[Array64]) -> Named:
    members, truth = inputs
    num_members = members.shape[1]
    errors = members - truth[:, None]
    yield "crps_skill", np.abs(errors).mean(axis=1)
    yield "energy_score_skill", errors * errors
    if num_members < 2:  # no spread, as weatherbench2 has it
        nothing = members[:, 0] * 0.0
        yield "crps_spread", nothing
        yield "energy_score_spread", nothing[:, None]
        yield "ensemble_variance", nothing
        return
    yield "energy_score_spread", np.diff(members, axis=1) ** 2
    yield "ensemble_variance", members.var(axis=1, ddof=1)
    # a sum over pairs as a sum over ranks: Zamo and Naveau (2018), equation 3 of appendix B
    ranks = 2.0 * np.arange(1, num_members + 1) - num_members - 1
    spread = np.einsum("m,bmyx->byx", ranks, np.sort(members, axis=1))
    yield "crps_spread", spread * (2.0 / (num_members * (num_members - 1)))


def _ensemble_skipna(inputs: Sequence[Array64]) -> Named:
    """The same over the members that have a value at a point."""
    members, truth = inputs
    errors = members - truth[:, None]
    yield "crps_skill", _nanmean(np.abs(errors), 1)
    yield "energy_score_skill", errors * errors
    present = np.isfinite(members)
    count = present.sum(axis=1)
    steps = np.diff(members, axis=1) if members.shape[1] > 1 else members[:, :1] * 0.0
    yield "energy_score_spread", steps**2
    mean = _nanmean(members, 1)
    deviations = np.where(present, members - mean[:, None], 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        yield (
            "ensemble_variance",
            (deviations**2).sum(axis=1) / np.where(count > 1, count - 1, np.nan),
        )
        ranks = 2.0 * np.arange(1, members.shape[1] + 1)[None, :, None, None] - count[:, None] - 1
        ordered = np.nan_to_num(np.sort(members, axis=1))  # NaN come last
        is_rank = np.arange(members.shape[1])[None, :, None, None] < count[:, None]
        spread = (np.where(is_rank, ranks, 0.0) * ordered).sum(axis=1)
        yield "crps_spread", 2.0 * spread / np.where(count > 1, count * (count - 1.0), np.nan)


def seeps(
    forecast: Array64,
    truth: Array64,
    wet_threshold: Array64,
    dry_fraction: Array64,
    dry_threshold: float,
) -> Array64:
    """Stable equitable error in probability space, pointwise; NaN where it is not defined.

    Not defined where a value is missing and where the climate is too wet or too dry, that is
    outside of `SEEPS_DRY_FRACTION_RANGE`.
    """

    def categories(amount: Array64) -> tuple[Array64, ...]:
        dry = amount < dry_threshold
        light = (amount > dry_threshold) & (amount < wet_threshold)
        heavy = amount >= wet_threshold
        return tuple(one.astype(np.float64) for one in (dry, light, heavy))

    low, high = SEEPS_DRY_FRACTION_RANGE
    defined = (dry_fraction > low) & (dry_fraction < high)
    p1 = np.where(defined, dry_fraction, 0.5)
    costs = (  # by category of the forecast, then of the truth
        (None, 1 / (1 - p1), 4 / (1 - p1)),
        (1 / p1, None, 3 / (1 - p1)),
        (1 / p1 + 3 / (2 + p1), 3 / (2 + p1), None),
    )
    score = np.zeros_like(forecast)
    in_truth = categories(truth)
    for row, in_forecast in zip(costs, categories(forecast), strict=True):
        for cost, observed in zip(row, in_truth, strict=True):
            if cost is not None:
                score += 0.5 * cost * in_forecast * observed
    defined = defined & ~np.isnan(forecast) & ~np.isnan(truth)
    return np.where(defined, score, np.nan)


def rank_counts(members: AnyMaps, truth: AnyMaps) -> npt.NDArray[np.int64]:
    """Histogram of the truth's rank among the members, over all points alike.

    The rank is the number of members below the truth. Where it equals members it takes the place
    among them that numpy's default sort gives it, as weatherbench2 (RankHistogram without random
    ties) does, whose numbers these are. A missing value is above all others.

    Args:
        members: Shape [B, M, Y, X].
        truth: Shape [B, Y, X].

    Returns:
        Shape [B, M + 1].
    """
    num_bins = members.shape[1] + 1
    found = np.empty((members.shape[0], num_bins), dtype=np.int64)
    for index, one in enumerate(truth):  # a map at a time: the order takes 8 bytes a value
        together = np.concatenate([one[None], members[index]]).astype(np.float64)
        ranks = np.argsort(together, axis=0).argmin(axis=0)
        found[index] = np.bincount(ranks.ravel(), minlength=num_bins)
    return found


def _nanmean(values: Array64, axis: int) -> Array64:
    present = np.isfinite(values)
    count = present.sum(axis=axis)
    total = np.where(present, values, 0.0).sum(axis=axis)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(count > 0, total / count, np.nan))
