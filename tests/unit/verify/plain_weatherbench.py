"""WeatherBench 2's scores written plainly with xarray, independent of the package's kernels.

Follows the formulas of weatherbench2 (metrics.py, regions.py) one by one: weights from latitude
bounds, boxes by label slices, weighted means, no tricks.
"""

from collections.abc import Callable

import numpy as np
import xarray as xr

BOXES: dict[str, tuple[list[slice], list[slice]]] = {
    "global": ([slice(None)], [slice(None)]),
    "tropics": ([slice(-20, 20)], [slice(None)]),
    "extra-tropics": ([slice(None, -20), slice(20, None)], [slice(None)]),
    "northern-hemisphere": ([slice(20, None)], [slice(None)]),
    "southern-hemisphere": ([slice(None, -20)], [slice(None)]),
    "europe": ([slice(35, 75)], [slice(347.5, None), slice(0, 42.5)]),
    "north-america": ([slice(25, 60)], [slice(240, 285)]),
    "north-atlantic": ([slice(25, 65)], [slice(290, 350)]),
    "north-pacific": ([slice(25, 60)], [slice(145, 230)]),
    "east-asia": ([slice(25, 60)], [slice(102.5, 150)]),
    "ausnz": ([slice(-45, -12.5)], [slice(120, 175)]),
    "arctic": ([slice(60, 90)], [slice(None)]),
    "antarctic": ([slice(-90, -60)], [slice(None)]),
}
LAND = {"global_land": "global", "extra-tropics_land": "extra-tropics", "tropics_land": "tropics"}


def weights_of(latitude: xr.DataArray) -> xr.DataArray:
    points = np.deg2rad(latitude.values.astype(np.float64))
    bounds = np.concatenate([[-np.pi / 2], (points[1:] + points[:-1]) / 2, [np.pi / 2]])
    area = np.sin(bounds[1:]) - np.sin(bounds[:-1])
    return latitude.astype(np.float64).copy(data=area / area.mean())


def spatial_mean(
    values: xr.DataArray, region: str, land: xr.DataArray | None, skipna: bool = False
) -> xr.DataArray:
    weights = weights_of(values["latitude"])
    box = BOXES[LAND.get(region, region)]
    rows = xr.concat([values["latitude"].sel(latitude=one) for one in box[0]], "latitude")
    columns = xr.concat([values["longitude"].sel(longitude=one) for one in box[1]], "longitude")
    values = values.sel(latitude=rows, longitude=columns)
    weights = weights.sel(latitude=rows)
    if region in LAND:
        assert land is not None
        weights = weights * land.sel(latitude=rows, longitude=columns)
    values = values.where(weights > 0, 0)
    return values.weighted(weights).mean(("latitude", "longitude"), skipna=skipna)


class PlainScores:
    """Scores of one variable; latitudes ascend, dims `init`, `lead` and perhaps more."""

    def __init__(
        self,
        forecast: xr.DataArray,
        truth: xr.DataArray,
        climatology: xr.DataArray | None = None,
        land: xr.DataArray | None = None,
        skipna: bool = False,
    ) -> None:
        self.forecast, self.truth = forecast.astype(np.float64), truth.astype(np.float64)
        self.climatology = None if climatology is None else climatology.astype(np.float64)
        self.land, self.skipna = land, skipna

    def mean(self, values: xr.DataArray, region: str) -> xr.DataArray:
        return spatial_mean(values, region, self.land, self.skipna)

    def over_inits(self, values: xr.DataArray) -> xr.DataArray:
        return values.mean("init", skipna=self.skipna)

    def mse(self, region: str) -> xr.DataArray:
        return self.over_inits(self.mean((self.forecast - self.truth) ** 2, region))

    def rmse(self, region: str) -> xr.DataArray:
        return np.sqrt(self.mse(region))

    def mae(self, region: str) -> xr.DataArray:
        return self.over_inits(self.mean(abs(self.forecast - self.truth), region))

    def bias(self, region: str) -> xr.DataArray:
        return self.over_inits(self.mean(self.forecast - self.truth, region))

    def moments(self, region: str) -> tuple[xr.DataArray, ...]:
        assert self.climatology is not None
        ours, theirs = self.forecast - self.climatology, self.truth - self.climatology
        return tuple(self.mean(one, region) for one in (ours * theirs, ours**2, theirs**2))

    def acc(self, region: str) -> xr.DataArray:
        covariance, ours, theirs = self.moments(region)
        return self.over_inits(covariance / np.sqrt(ours * theirs))

    def acc_pooled(self, region: str) -> xr.DataArray:
        covariance, ours, theirs = (self.over_inits(one) for one in self.moments(region))
        return covariance / np.sqrt(ours * theirs)

    # members
    def crps_skill(self, region: str) -> xr.DataArray:
        errors = abs(self.truth - self.forecast).mean("number", skipna=self.skipna)
        return self.over_inits(self.mean(errors, region))

    def crps_spread(self, region: str) -> xr.DataArray:
        count = self.forecast.sizes["number"]
        pairs = sum(
            abs(self.forecast.isel(number=i) - self.forecast.isel(number=j))
            for i in range(count)
            for j in range(count)
        )
        return self.over_inits(self.mean(pairs / (count * (count - 1)), region))

    def crps(self, region: str) -> xr.DataArray:
        return self.crps_skill(region) - 0.5 * self.crps_spread(region)

    def ensemble_variance(self, region: str) -> xr.DataArray:
        return self.over_inits(self.mean(self.forecast.var("number", ddof=1, skipna=False), region))

    def ensemble_mean_mse(self, region: str) -> xr.DataArray:
        error = self.truth - self.forecast.mean("number", skipna=False)
        return self.over_inits(self.mean(error**2, region))

    def debiased_ensemble_mean_mse(self, region: str) -> xr.DataArray:
        count = self.forecast.sizes["number"]
        return self.ensemble_mean_mse(region) - self.ensemble_variance(region) / count

    def energy_score(self, region: str) -> xr.DataArray:
        skill = np.sqrt(self.mean((self.forecast - self.truth) ** 2, region)).mean("number")
        first = self.forecast.isel(number=slice(None, -1)).drop_vars("number", errors="ignore")
        second = self.forecast.isel(number=slice(1, None)).drop_vars("number", errors="ignore")
        spread = np.sqrt(self.mean((first - second) ** 2, region)).mean("number")
        return self.over_inits(skill - 0.5 * spread)


def metric(scores: PlainScores, name: str) -> Callable[[str], xr.DataArray]:
    found: Callable[[str], xr.DataArray] = getattr(scores, name)
    return found
