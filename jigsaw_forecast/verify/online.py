"""Scores a run while it goes on, from the whole maps that its ranks hold anyway.

The plan, the sums and what is written are those of scoring files, so the scores of a run equal
those of what it writes. One lead time of one variable gives one piece; all pieces together give
the statistics, whoever made them and in whatever order.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jigsaw_forecast.errors import DataError
from jigsaw_forecast.verify.archive import AnyMaps, ArchiveGrid, ArchiveVariable, Mask
from jigsaw_forecast.verify.cache import ArrayCache
from jigsaw_forecast.verify.exact_sum import ExactSum
from jigsaw_forecast.verify.pieces import COUNT, Piece, statistic_names
from jigsaw_forecast.verify.planning import plan_open_sources
from jigsaw_forecast.verify.request import FORECAST, ModelPlan, ScorePlan, ScoreRequest
from jigsaw_forecast.verify.scoring import Scorer
from jigsaw_forecast.verify.sources import Sources, open_sources
from jigsaw_forecast.verify.units import implausible_units

_NOTE = "scored while it was made"


class MadeMaps:
    """What a run will make as an archive; it holds one lead time of one variable at a time."""

    def __init__(
        self,
        path: Path,
        grid: ArchiveGrid,
        variables: Mapping[str, ArchiveVariable],
        attributes: Mapping[str, str],
    ) -> None:
        """Holds no maps yet.

        Args:
            path: Names the forecast in the scores.
            grid: Of all maps.
            variables: Everything that will be made.
            attributes: Provenance.
        """
        self.path = path
        self.grid = grid
        self.variables = dict(variables)
        self.attributes = attributes
        self.members: tuple[int, ...] = ()
        self.skipped: Mapping[str, str] = {}
        self._maps: AnyMaps | None = None

    def hold(self, maps: AnyMaps | None) -> None:
        """Hands out these maps, shape [levels, Y, X], from now on."""
        self._maps = maps

    def static(self, name: str) -> AnyMaps | None:
        """None: a run makes no fields without time."""
        return None

    def read(self, name: str, init: int, leads: Sequence[int], levels: Sequence[int]) -> AnyMaps:
        """The maps that are held, NaN where none are: see `Archive.read`."""
        if self._maps is None:
            return np.full((len(leads), 1, len(levels), *self.grid.shape), np.nan)
        maps: AnyMaps = self._maps[None, None, list(levels)]
        return maps

    def read_series(
        self, name: str, inits: Sequence[int], lead: int, levels: Sequence[int]
    ) -> AnyMaps:
        """The same for several initial times: see `Archive.read_series`."""
        return np.stack([self.read(name, init, [lead], levels)[0, 0] for init in inits])

    def preferred_leads(self, name: str) -> int:
        """One: they come one by one."""
        return 1

    def absent(self, name: str) -> Mask | None:
        """None: all that is announced will be made."""
        return None


class OnlineScorer:
    """Scores maps as they come, against truth and climatology that are read as they are needed.

    Attributes:
        plan: What is scored: the same as when the finished forecast is scored from disk.
    """

    def __init__(self, request: ScoreRequest, made: MadeMaps, num_processes: int = 1) -> None:
        """Opens the truth and the climatology and plans the score.

        Args:
            request: What is asked for; its forecast names what the run makes.
            made: What the run makes.
            num_processes: How many share the memory for caches.

        Raises:
            ForecastError: Something is wrong with the files or does not go together; all of it
                is listed.
        """
        sources = open_sources(request.truth, request.climatology, {}, request.resolution)
        sources.forecasts[FORECAST] = made
        self.plan = _with_note(plan_open_sources(request, sources))
        self._made = made
        self._sources = sources
        self._scorer = _MapScorer(self.plan, sources, num_processes)
        self._compared: set[str] = set()

    def score(
        self,
        variable: str,
        init_time: np.datetime64,
        lead_time: np.timedelta64,
        maps: AnyMaps,
    ) -> Piece | None:
        """Scores one variable at one time, and the baselines beside it.

        Args:
            variable: WeatherBench name.
            init_time: Initial time.
            lead_time: Lead time.
            maps: All levels of the variable that the run makes, ascending, physical units, shape
                [levels, Y, X].

        Returns:
            The statistics of this time, for `join_pieces`; None where the variable is not scored.

        Raises:
            DataError: The truth cannot be read, or is in other units.
        """
        if variable not in self.plan.levels:
            return None
        i, j = _place(self.plan, init_time, lead_time)
        self._made.hold(maps)
        try:
            self._compare_units(variable, i, j, maps)
            return self._scorer.score_maps(_narrowed(self.plan, i, j), variable)
        finally:
            self._made.hold(None)

    def _compare_units(self, variable: str, i: int, j: int, maps: AnyMaps) -> None:
        """Refuses a truth whose numbers are those of another unit, at the first maps.

        Raises:
            DataError: They are.
        """
        plan, truth = self.plan, self._sources.truth
        valid = plan.init_times[i] + plan.lead_times[j]
        if variable in self._compared or not plan.models[0].pairs[variable][i, j]:
            return
        self._compared.add(variable)
        held = truth.archive.variables[variable].levels
        own = self._made.variables[variable].levels
        level = plan.levels[variable][0] if plan.levels[variable] else 0.0
        place = held.index(level) if held else 0
        expected = truth.read(variable, valid, [place])[0]
        found = maps[own.index(level) if own else 0]
        if why := implausible_units(variable, level, found, expected):
            raise DataError(
                f"units of {variable} differ between the forecast and the truth "
                f"{truth.archive.path}: {why}; convert the truth"
            )


def join_pieces(
    plan: ScorePlan, parts: Iterable[tuple[np.datetime64, np.timedelta64, Piece]]
) -> Piece:
    """The statistics of a whole run from those of its lead times.

    Args:
        plan: What they belong to.
        parts: Initial time, lead time and what `OnlineScorer.score` gave.
    """
    whole = Piece(tuple(range(plan.init_times.size)))
    for model in plan.models:
        names = statistic_names(plan, model)
        for variable, levels in plan.levels.items():
            shape = (
                len(names), plan.init_times.size, len(plan.regions), plan.lead_times.size,
                max(1, len(levels)),
            )  # fmt: skip
            table = np.full(shape, np.nan)
            table[names.index(COUNT)] = 0.0
            whole.statistics[(model.name, variable)] = table
    for init_time, lead_time, piece in parts:
        i, j = _place(plan, init_time, lead_time)
        for key, values in piece.statistics.items():
            whole.statistics[key][:, i, :, j] = values[:, 0, :, 0]
        if j in plan.map_leads:
            at = plan.map_leads.index(j)
            _add_sums(whole.maps, whole.map_counts, piece.maps, piece.map_counts, at,
                      len(plan.map_leads))  # fmt: skip
        if j in plan.spectra_leads:
            at = plan.spectra_leads.index(j)
            _add_sums(whole.spectra, whole.spectra_counts, piece.spectra, piece.spectra_counts, at,
                      len(plan.spectra_leads))  # fmt: skip
    return whole


class _MapScorer(Scorer):
    """A scorer that is handed one time after the other, with all variables in one cache."""

    def __init__(self, plan: ScorePlan, sources: Sources, num_processes: int) -> None:
        super().__init__(plan, sources, num_processes)
        self._shared = self._cache

    def score_maps(self, plan: ScorePlan, variable: str) -> Piece:
        """Scores one variable of a plan of one initial and one lead time."""
        self._plan = plan
        self._cache = _CacheOfVariable(self._shared, variable)
        piece = Piece((0,))
        for model in plan.models:
            self._score_init(piece, model, variable, 0, 0)
        return piece


class _CacheOfVariable(ArrayCache):
    """One variable's share of a cache: the keys of a scorer do not name the variable."""

    def __init__(self, shared: ArrayCache, variable: str) -> None:
        self.num_bytes = shared.num_bytes
        self._shared = shared
        self._variable = variable

    def get(self, key: Hashable, make: Callable[[], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """See `ArrayCache.get`."""
        return self._shared.get((self._variable, key), make)


def _with_note(plan: ScorePlan) -> ScorePlan:
    first = plan.models[0]
    own = replace(first, notes=(*first.notes, _NOTE))
    return replace(plan, models=(own, *plan.models[1:]))


def _place(plan: ScorePlan, init_time: np.datetime64, lead_time: np.timedelta64) -> tuple[int, int]:
    i = int(np.searchsorted(plan.init_times, init_time.astype("datetime64[s]")))
    j = int(np.searchsorted(plan.lead_times, lead_time.astype("timedelta64[s]")))
    assert plan.init_times[i] == init_time, "planned"
    assert plan.lead_times[j] == lead_time, "planned"
    return i, j


def _narrowed(plan: ScorePlan, i: int, j: int) -> ScorePlan:
    """The plan of one initial and one lead time."""

    def one_pair(model: ModelPlan) -> ModelPlan:
        pairs = {name: mask[i : i + 1, j : j + 1] for name, mask in model.pairs.items()}
        return replace(model, pairs=pairs)

    return replace(
        plan,
        models=tuple(one_pair(model) for model in plan.models),
        init_times=plan.init_times[i : i + 1],
        lead_times=plan.lead_times[j : j + 1],
        map_leads=(0,) if j in plan.map_leads else (),
        spectra_leads=(0,) if j in plan.spectra_leads else (),
    )


def _add_sums(
    totals: dict[tuple[str, str], ExactSum],
    counts: dict[tuple[str, str], npt.NDArray[np.int64]],
    more: Mapping[tuple[str, str], ExactSum],
    more_counts: Mapping[tuple[str, str], npt.NDArray[np.int64]],
    place: int,
    size: int,
) -> None:
    """Adds the sums of one lead time to those of all."""
    for key, one in more.items():
        if key not in totals:
            totals[key] = ExactSum((size, *one.high.shape[1:]))
            counts[key] = np.zeros(size, dtype=np.int64)
        totals[key].add(one.high[0], one.low[0], place)
        counts[key][place] += more_counts[key][0]
