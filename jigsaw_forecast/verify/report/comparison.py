"""The forecast against the others: relative RMSE differences and whether they are real."""

import numpy as np
import numpy.typing as npt

from jigsaw_forecast.verify.report.draw_scorecard import Card
from jigsaw_forecast.verify.report.quantities import Quantity
from jigsaw_forecast.verify.report.read import Model, Scoring
from jigsaw_forecast.verify.report.significance import CONFIDENCE, paired_test

FloatArray = npt.NDArray[np.float64]

# vector errors are sums of what is stored for the components
COMPONENTS = {
    "wind_vector": ("u_component_of_wind", "v_component_of_wind"),
    "10m_wind_vector": ("10m_u_component_of_wind", "10m_v_component_of_wind"),
}


def compare(scoring: Scoring, other: Model, region: str) -> Card:
    """The card of the forecast against another model.

    Differences are those of RMSE over the initial times that both have, where the statistics of
    each initial time are there, and else those of the scores, untested. The test is one of the
    differences of mean square errors, whose sign is that of the RMSE difference.
    """
    hours, quantities = scoring.hours, scoring.quantities
    percent = np.full((len(quantities), hours.size), np.nan)
    p_value = np.full_like(percent, np.nan)
    with (
        _SquaredErrors(scoring, scoring.main, region) as mains,
        _SquaredErrors(scoring, other, region) as others,
    ):
        mains.keep_times_of(others)
        others.keep_times_of(mains)
        for row, quantity in enumerate(quantities):
            main_rmse = scoring.main.values(quantity, "rmse", region, hours)
            other_rmse = other.values(quantity, "rmse", region, hours)
            series = mains.get(quantity), others.get(quantity)
            if series[0] is not None and series[1] is not None:
                paired, p_value[row] = _pair(series[0], series[1], mains.times)
                # NaN in the scores is the NaN policy's and stays
                keep = np.isfinite(main_rmse) & np.isfinite(other_rmse)
                main_rmse, other_rmse = np.where(keep, paired, np.nan)
            percent[row] = relative_difference(main_rmse, other_rmse)
    rows = np.flatnonzero(np.isfinite(percent).any(1))
    columns = np.flatnonzero(np.isfinite(percent).any(0))
    place = np.ix_(rows, columns)
    is_tested = np.isfinite(p_value) & np.isfinite(percent)
    is_significant = is_tested & (np.where(is_tested, p_value, 1.0) < 1.0 - CONFIDENCE)
    return Card(
        other.title,
        region,
        tuple(quantities[row] for row in rows),
        hours[columns],
        percent[place],
        is_significant[place],
        is_tested[place],
    )


def relative_difference(main_rmse: FloatArray, other_rmse: FloatArray) -> FloatArray:
    """Per cent of the other's RMSE; NaN where that is zero or either is absent."""
    with np.errstate(divide="ignore", invalid="ignore"):
        percent = 100.0 * (main_rmse / other_rmse - 1.0)
    return np.where(np.isfinite(percent), percent, np.nan)


def _pair(
    main: FloatArray, other: FloatArray, times: npt.NDArray[np.datetime64]
) -> tuple[FloatArray, FloatArray]:
    """RMSE of both over common initial times, shape [2, leads], and p values, [leads]."""
    is_both = np.isfinite(main) & np.isfinite(other)
    count = is_both.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        rmse = np.sqrt([np.where(is_both, one, 0.0).sum(0) / count for one in (main, other)])
    return rmse, paired_test(np.where(is_both, main - other, np.nan), times).p_value


class _SquaredErrors:
    """Mean square errors of each initial time, read by variable as the files can be large.

    Attributes:
        times: Initial times of what is returned, ascending; empty without statistics.
    """

    def __init__(self, scoring: Scoring, model: Model, region: str) -> None:
        self._region, self._hours = region, scoring.hours
        self._data = scoring.open(model.statistics) if model.statistics else None
        self._name, self._held = "", np.empty(0)
        self.times = np.empty(0, dtype="datetime64[ns]")
        self._places = np.empty(0, dtype=np.int64)
        if self._data is not None:
            all_times = self._data["init_time"].values
            self._places = np.argsort(all_times)
            self.times = all_times[self._places]

    def __enter__(self) -> "_SquaredErrors":
        return self

    def __exit__(self, *_: object) -> None:
        if self._data is not None:
            self._data.close()

    def keep_times_of(self, other: "_SquaredErrors") -> None:
        """Leaves out initial times that the other lacks."""
        is_common = np.isin(self.times, other.times)
        self.times, self._places = self.times[is_common], self._places[is_common]

    def get(self, quantity: Quantity) -> FloatArray | None:
        """Shape [times, lead times of the forecast]; None where they are not stored."""
        if not self._holds(quantity):
            return None
        assert self._data is not None
        if self._name != quantity.variable:
            self._name = quantity.variable
            self._held = np.sum([self._read(name) for name in _parts(quantity)], axis=0)
        if quantity.level is None:
            return self._held
        return self._held[:, :, list(self._data["level"].values).index(quantity.level)]

    def _holds(self, quantity: Quantity) -> bool:
        if self._data is None or not set(_parts(quantity)) <= set(map(str, self._data.data_vars)):
            return False
        wanted = {"statistic": "mse", "region": self._region} | quantity.place()
        coordinates = self._data.coords
        return all(
            name in coordinates and value in coordinates[name].values
            for name, value in wanted.items()
        )

    def _read(self, name: str) -> FloatArray:
        """One variable, shape [times, lead times, ...]."""
        assert self._data is not None
        part = self._data[name].sel(statistic="mse", region=self._region)
        part = part.transpose("init_time", "lead_time", ...)
        stored = {float(hour): place for place, hour in enumerate(part["lead_time"].values)}
        values = part.values.astype(np.float64)[self._places]
        found = np.full((len(self.times), len(self._hours), *values.shape[2:]), np.nan)
        for place, hour in enumerate(self._hours):
            if float(hour) in stored:
                found[:, place] = values[:, stored[float(hour)]]
        return found


def _parts(quantity: Quantity) -> tuple[str, ...]:
    return COMPONENTS.get(quantity.variable, (quantity.variable,))
