"""Scores a run while it goes on, on the ranks, from the maps or bands that each of them holds.

The sums are those of `kernels`, which are additive over bands, so the result equals scoring the
same fields from disk, but for the rounding of the sum over bands.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from jigsaw_forecast.verify.archive import AnyMaps, Mask
from jigsaw_forecast.verify.kernels import ANOMALIES, ERRORS, Kernel, Sums
from jigsaw_forecast.verify.pieces import COUNT, Piece, statistic_names
from jigsaw_forecast.verify.regions import REGIONS, RegionWeights
from jigsaw_forecast.verify.request import FORECAST, Missing, ModelPlan, ScorePlan

Array64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class OnlineSetting:
    """What a run scores.

    Attributes:
        latitudes: Degrees north of the whole grid, north to south, shape [Y].
        longitudes: Degrees east, shape [X].
        levels: By variable, in hPa; empty for a single level.
        units: By variable.
        init_times: Initial times of the run.
        lead_times: Lead times that are scored.
        truth: Where the truth comes from.
        forecast: Name of what is scored.
        land: Fraction of land, shape [Y, X].
        climatology: Where the climatology comes from, None without one.
        regions: Names, all by default.
        skipna: Policy on missing values.
        notice: What must be said wherever the scores are shown.
    """

    latitudes: Array64
    longitudes: Array64
    levels: Mapping[str, tuple[float, ...]]
    units: Mapping[str, str]
    init_times: Sequence[np.datetime64]
    lead_times: Sequence[np.timedelta64]
    truth: Path
    forecast: Path
    land: Array64 | None = None
    climatology: Path | None = None
    regions: tuple[str, ...] | None = None
    skipna: bool = False
    notice: str = ""

    def plan(self) -> ScorePlan:
        """The same as a plan, with every pair; without maps and spectra."""
        inits = np.array(sorted(self.init_times), dtype="datetime64[s]")
        leads = np.array(sorted(self.lead_times), dtype="timedelta64[s]")
        every = np.ones((inits.size, leads.size), dtype=bool)
        regions = self.regions
        if regions is None:
            regions = tuple(n for n, r in REGIONS.items() if self.land is not None or not r.is_land)
        model = ModelPlan(
            name=FORECAST,
            kind="forecast",
            paths=(self.forecast,),
            pairs=dict.fromkeys(self.levels, every),
            notes=("scored while it was made, without bias maps and spectra",),
        )
        return ScorePlan(
            models=(model,),
            truth=(self.truth,),
            climatology=self.climatology,
            resolution=None,
            grid_name=f"{self.longitudes.size}x{self.latitudes.size}",
            latitudes=self.latitudes,
            longitudes=self.longitudes,
            land=self.land,
            levels=dict(self.levels),
            units=dict(self.units),
            init_times=inits,
            lead_times=leads,
            regions=regions,
            with_acc=tuple(self.levels) if self.climatology is not None else (),
            with_seeps=(),
            spectra_leads=(),
            map_leads=(),
            map_levels={},
            skipna=self.skipna,
            notice=self.notice,
        )


@dataclass
class _Table:
    """Sums of one variable, shape [S, I, L, Z, R], and which pairs were added, [I, L, Z]."""

    values: Array64
    weights: Array64
    count: Array64


@dataclass
class OnlineScorer:
    """Takes forecast and truth of one lead time after the other; adds up over ranks in the end.

    Attributes:
        setting: What is scored; the same on all ranks.
        rows: Rows of the grid that this rank holds.
    """

    setting: OnlineSetting
    rows: slice = field(default_factory=lambda: slice(None))

    def __post_init__(self) -> None:
        """Makes the weights of this rank's rows."""
        self.plan = self.setting.plan()
        plan = self.plan
        regions = RegionWeights(
            plan.latitudes, plan.longitudes, plan.regions, plan.land, rows=self.rows
        )
        self._kernel = Kernel(regions, plan.skipna)
        self._holds_first_row = self.rows.indices(plan.latitudes.size)[0] == 0
        self._names = [*ERRORS, *(ANOMALIES if plan.with_acc else ())]
        self._tables = {}
        for name, held in plan.levels.items():
            pairs = (plan.init_times.size, plan.lead_times.size, max(1, len(held)))
            shape = (len(self._names), *pairs, len(plan.regions))
            self._tables[name] = _Table(np.zeros(shape), np.zeros(shape), np.zeros(pairs))

    def add(
        self,
        variable: str,
        init_time: np.datetime64,
        lead_time: np.timedelta64,
        forecast: AnyMaps,
        truth: AnyMaps,
        climatology: AnyMaps | None = None,
        levels: Sequence[int] | None = None,
    ) -> None:
        """Adds the maps of one variable, or this rank's levels of it, at one time.

        A pair that the truth lacks is not added; it is then reported as missing.

        Args:
            variable: WeatherBench name.
            init_time: Initial time.
            lead_time: Lead time.
            forecast: This rank's rows, physical units, shape [levels, Y_i, X].
            truth: Likewise.
            climatology: Likewise, where the setting has a climatology.
            levels: Places of these levels among the variable's, all by default.
        """
        plan, table = self.plan, self._tables[variable]
        assert (climatology is None) == (self.setting.climatology is None), "as the setting says"
        i = int(np.searchsorted(plan.init_times, init_time.astype("datetime64[s]")))
        j = int(np.searchsorted(plan.lead_times, lead_time.astype("timedelta64[s]")))
        places = list(range(table.count.shape[2])) if levels is None else list(levels)
        sums = Sums()
        sums.add(self._kernel.errors(forecast, truth, climatology))
        if climatology is not None:
            sums.add(self._kernel.truth_anomaly(truth, climatology))
        for number, name in enumerate(self._names):
            table.values[number, i, j, places] = sums.values[name]
            table.weights[number, i, j, places] = sums.weights[name]
        if self._holds_first_row:
            table.count[i, j, places] = 1.0

    def reduce(self, add_up: Callable[[Array64], Array64]) -> None:
        """Sums over the ranks that hold other rows, fields or initial times.

        Args:
            add_up: The sum of an array over these ranks, such as an all-reduce.

        Communication:
            One sum of each variable's tables: 16 bytes for each statistic, region, initial and
            lead time and level.
        """
        for table in self._tables.values():
            table.values = add_up(table.values)
            table.weights = add_up(table.weights)
            table.count = add_up(table.count)

    def piece(self) -> Piece:
        """The statistics of all initial times, as scoring from disk makes them."""
        plan = self.plan
        model = plan.models[0]
        names = statistic_names(plan, model)
        piece = Piece(tuple(range(plan.init_times.size)))
        for variable, table in self._tables.items():
            sums = Sums(
                dict(zip(self._names, table.values, strict=True)),
                dict(zip(self._names, table.weights, strict=True)),
            )
            means = self._kernel.means(sums)  # [I, L, Z, R]
            count = np.broadcast_to(table.count[..., None], table.values.shape[1:])
            stored = [
                count if name == COUNT else np.where(count > 0, means[name], np.nan)
                for name in names
            ]
            piece.statistics[(model.name, variable)] = np.stack(
                [one.transpose(0, 3, 1, 2) for one in stored]
            )
        return piece

    def final_plan(self) -> ScorePlan:
        """The plan with the pairs that were not added as missing."""
        plan = self.plan
        missing = []
        pairs: dict[str, Mask] = {}
        for variable, table in self._tables.items():
            pairs[variable] = np.asarray((table.count > 0).any(axis=2))
            for i, j in np.argwhere(~pairs[variable]):
                init, lead = plan.init_times[i], plan.lead_times[j]
                missing.append(Missing(variable, init, lead, f"the truth lacks {init + lead}"))
        model = plan.models[0]
        made = ModelPlan(
            name=model.name,
            kind=model.kind,
            paths=model.paths,
            pairs=pairs,
            missing=tuple(missing),
            notes=model.notes,
        )
        return replace(plan, models=(made,))
