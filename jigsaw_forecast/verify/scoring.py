"""Scores units of work: reads each truth map once, every forecast map once."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from jigsaw_forecast.verify.archive import AnyMaps, Archive
from jigsaw_forecast.verify.baselines import (
    CLIMATOLOGY,
    PERSISTENCE,
    PROBABILISTIC,
    YearsAsMembers,
)
from jigsaw_forecast.verify.cache import ArrayCache
from jigsaw_forecast.verify.kernels import (
    ANOMALIES,
    DRY_THRESHOLDS_M,
    ERRORS,
    Kernel,
    rank_counts,
)
from jigsaw_forecast.verify.memory import (
    BLOCK_BYTES,
    Places,
    cache_bytes,
    group_lead_times,
)
from jigsaw_forecast.verify.pieces import (
    COUNT,
    TRUTH,
    Piece,
    Unit,
    add_term,
    statistic_names,
)
from jigsaw_forecast.verify.regions import RegionWeights
from jigsaw_forecast.verify.request import ModelPlan, ScorePlan
from jigsaw_forecast.verify.sources import Sources, reopen_sources
from jigsaw_forecast.verify.spectra import zonal_energy_spectrum

Array64 = npt.NDArray[np.float64]
Statistics = dict[str, Array64]  # by statistic, shape [pairs, Z, R]

_TOGETHER_BYTES = 1 << 20  # maps that are scored in one call: few calls for small ones, no copies


class Scorer:
    """Scores the units of a plan in this process."""

    def __init__(
        self, plan: ScorePlan, sources: Sources | None = None, num_processes: int = 1
    ) -> None:
        """Opens the files, or takes those that are open.

        Args:
            plan: What to do.
            sources: Its files.
            num_processes: How many share the memory for caches.
        """
        self._plan = plan
        self._sources = sources or reopen_sources(plan)
        self._truth = self._sources.truth
        regions = RegionWeights(plan.latitudes, plan.longitudes, plan.regions, plan.land)
        self._kernel = Kernel(regions, plan.skipna)
        self._cache = ArrayCache(cache_bytes(plan, num_processes))
        self._years = YearsAsMembers(self._truth, plan.years) if plan.years else None
        self._dry: dict[str, Array64] = {}

    def score(self, unit: Unit, advance: Callable[[int], None] | None = None) -> Piece:
        """Scores one unit.

        Args:
            unit: Its variables and initial times.
            advance: Called with the number of pairs of initial and lead time done now and then.
        """
        piece = Piece(unit.inits)
        for variable in unit.variables:
            self._cache.clear()
            per_time = self._bytes_a_time(variable, unit.inits)
            for leads in self._lead_groups(variable, per_time):
                self._score_leads(piece, variable, unit.inits, leads, per_time, advance)
        return piece

    def _score_leads(
        self,
        piece: Piece,
        variable: str,
        inits: Sequence[int],
        leads: Places,
        per_time: int,
        advance: Callable[[int], None] | None,
    ) -> None:
        """Scores some lead times of one variable from one initial time after the other."""
        # half of the cache for the initial times to come
        ahead = max(1, self._cache.num_bytes // (2 * per_time * leads.size))
        fits = leads.size * per_time <= self._cache.num_bytes
        for place, init in enumerate(inits):
            if fits and place % ahead == 0:
                self._read_ahead(variable, inits[place : place + ahead], leads, per_time)
            for model in self._plan.models:
                self._score_init(piece, model, variable, place, init, leads)
            if advance is not None:
                advance(int(leads.size))

    def _bytes_a_time(self, variable: str, inits: Sequence[int]) -> int:
        """Size of the truth and climatology of one valid time; reads one."""
        plan = self._plan
        for model in plan.models:
            for init in inits:
                leads = np.flatnonzero(model.pairs[variable][init])
                if leads.size:
                    time = plan.init_times[init] + plan.lead_times[leads[0]]
                    size = self._truth_at(variable, time).nbytes
                    if variable in plan.with_acc:
                        size += self._climatology_at(variable, time).nbytes
                    return size
        return 1

    def _lead_groups(self, variable: str, per_time: int) -> list[Places]:
        """Lead times in groups whose valid times fit into the cache together.

        From one initial time to the next most valid times stay the same, so each is read once a
        group; where a forecast's chunk has many lead times, none is cut.
        """
        plan = self._plan
        in_chunk = max([1, *(self._archive(m).preferred_leads(variable)
                             for m in plan.models
                             if m.paths and variable in self._archive(m).variables)])  # fmt: skip
        return group_lead_times(plan.lead_times.size, self._cache.num_bytes // per_time, in_chunk)

    def _read_ahead(
        self, variable: str, inits: Sequence[int], leads: Places, per_time: int
    ) -> None:
        """Reads the truth and climatology of some initial times in few accesses."""
        plan = self._plan
        times: set[np.datetime64] = set()
        for model in plan.models:
            for init in inits:
                there = leads[model.pairs[variable][init][leads]]
                times.update(plan.init_times[init] + plan.lead_times[there])
        climatology = self._sources.climatology if variable in plan.with_acc else None
        places, levels = self._truth_places(variable), plan.levels[variable]
        count = max(1, BLOCK_BYTES // per_time)
        for kind in ("truth", "climatology"):
            wanted = [time for time in sorted(times) if not self._cache.holds((kind, time))]
            for start in range(0, len(wanted), count):
                some = wanted[start : start + count]
                if kind == "truth":
                    found = self._truth.read_many(variable, some, places)
                elif climatology is not None:
                    found = climatology.read_many(variable, some, levels)
                else:
                    break
                for time, maps in found.items():
                    self._cache.put((kind, time), np.ascontiguousarray(maps))

    def _score_init(
        self,
        piece: Piece,
        model: ModelPlan,
        variable: str,
        place: int,
        init: int,
        leads: Places | None = None,
    ) -> None:
        """Scores one variable of a model from one initial time, at some lead times or all."""
        plan = self._plan
        names = statistic_names(plan, model)
        num_levels = max(1, len(plan.levels[variable]))
        shape = (
            len(names), len(piece.inits), len(plan.regions), plan.lead_times.size, num_levels
        )  # fmt: skip
        key = (model.name, variable)
        if key not in piece.statistics:
            piece.statistics[key] = np.full(shape, np.nan)
            piece.statistics[key][names.index(COUNT)] = 0.0
        table = piece.statistics[key]
        there = np.flatnonzero(model.pairs[variable][init])
        if leads is not None:
            there = there[np.isin(there, leads)]
        for block in self._lead_blocks(model, variable, there):
            for some, found in self._score_block(piece, model, variable, init, block):
                for name, values in found.items():
                    # [pairs, Z, R] into [R, L, Z]
                    table[names.index(name), place][:, some] = values.transpose(2, 0, 1)
                table[names.index(COUNT), place][:, some] = 1.0

    def _lead_blocks(self, model: ModelPlan, variable: str, leads: Places) -> list[list[int]]:
        """Lead times that are read together: whole chunks where they fit into a block."""
        if not leads.size:  # a comparison may lack the variable
            return []
        plan = self._plan
        maps = max(1, len(plan.levels[variable])) * max(1, model.num_members)
        per_lead = plan.latitudes.size * plan.longitudes.size * 4 * maps
        count = max(1, BLOCK_BYTES // per_lead)
        if model.paths:
            count = max(count, min(self._archive(model).preferred_leads(variable), 8 * count))
        return [leads[a : a + count].tolist() for a in range(0, leads.size, count)]

    def _archive(self, model: ModelPlan) -> Archive:
        return self._sources.forecasts[model.name]

    def _score_block(
        self, piece: Piece, model: ModelPlan, variable: str, init: int, block: list[int]
    ) -> Iterator[tuple[list[int], Statistics]]:
        """Reads the forecast of a block; lead times that are scored together, and their scores."""
        plan = self._plan
        times = [plan.init_times[init] + plan.lead_times[lead] for lead in block]
        if model.baseline == CLIMATOLOGY:
            self._add_climatology_maps(piece, model, variable, block, times)
            yield block, self._score_climatology(variable, times)
            return
        forecast = self._forecast(model, variable, init, block, times)
        count = max(1, _TOGETHER_BYTES // forecast[0].nbytes)
        for start in range(0, len(block), count):
            some = slice(start, start + count)
            pairs = (block[some], times[some], forecast[some])
            yield block[some], self._score_pairs(piece, model, variable, *pairs)

    def _score_pairs(
        self,
        piece: Piece,
        model: ModelPlan,
        variable: str,
        leads: list[int],
        times: Sequence[np.datetime64],
        forecast: AnyMaps,
    ) -> Statistics:
        """Scores lead times together, forecast of shape [leads, members, Z, Y, X]."""
        truth = _stack([self._truth_at(variable, time) for time in times])
        mean = forecast[:, 0] if forecast.shape[1] == 1 else self._member_mean(forecast)
        found = self._errors(variable, mean, truth, times)
        if model.num_members:
            found |= self._members(piece, model, variable, leads, forecast, truth)
        self._add_maps(piece, model, variable, leads, mean, truth)
        self._add_spectra(piece, model, variable, leads, times, forecast)
        return found

    def _forecast(
        self,
        model: ModelPlan,
        variable: str,
        init: int,
        leads: list[int],
        times: Sequence[np.datetime64],
    ) -> AnyMaps:
        """Forecast maps, shape [leads, members, Z, Y, X]."""
        plan = self._plan
        start = plan.init_times[init]
        if model.baseline == PERSISTENCE:
            initial = self._truth_at(variable, start)
            return np.broadcast_to(initial, (len(leads), 1, *initial.shape))
        if model.baseline == PROBABILISTIC:
            assert self._years is not None
            levels = self._truth_places(variable)
            return np.stack([self._years.read(variable, time, levels) for time in times])
        archive = self._archive(model)
        one = archive.variables[variable]
        own_init = int(np.searchsorted(one.init_times, start))
        own_leads = np.searchsorted(one.lead_times, plan.lead_times[leads]).tolist()
        held = one.levels or (0.0,)
        wanted = plan.levels[variable] or (0.0,)
        if all(level in held for level in wanted):
            places = [held.index(level) for level in wanted]
            return archive.read(variable, own_init, own_leads, places)
        places = [held.index(level) for level in wanted if level in held]
        maps = archive.read(variable, own_init, own_leads, places)
        full = np.full((*maps.shape[:2], len(wanted), *maps.shape[3:]), np.nan)
        full[:, :, [i for i, level in enumerate(wanted) if level in held]] = maps
        return full

    def _member_mean(self, forecast: AnyMaps) -> Array64:
        values = forecast.astype(np.float64)
        if not self._plan.skipna:
            return np.asarray(values.mean(axis=1))
        present = np.isfinite(values)
        with np.errstate(divide="ignore", invalid="ignore"):
            total = np.where(present, values, 0.0).sum(axis=1)
            return np.asarray(total / present.sum(axis=1))

    def _errors(
        self, variable: str, forecast: AnyMaps, truth: AnyMaps, times: Sequence[np.datetime64]
    ) -> Statistics:
        """Errors, anomalies and SEEPS, shape [pairs, Z, R]; inputs [pairs, Z, Y, X]."""
        leading = forecast.shape[:2]
        flat = [one.reshape(-1, *one.shape[2:]) for one in (forecast, truth)]
        has_acc = variable in self._plan.with_acc
        if has_acc:
            climatology = _stack([self._climatology_at(variable, time) for time in times])
            flat.append(climatology.reshape(flat[0].shape))
        found = self._kernel.means(self._kernel.errors(*flat))
        if variable in self._plan.with_seeps:
            found |= self._seeps(variable, flat[0], flat[1], times)
        shaped = {name: one.reshape(*leading, -1) for name, one in found.items()}
        if has_acc:
            anomalies = [self._truth_anomaly(variable, time) for time in times]
            shaped["truth_anomaly_square"] = np.stack(anomalies)
        return shaped

    def _seeps(
        self, variable: str, forecast: AnyMaps, truth: AnyMaps, times: Sequence[np.datetime64]
    ) -> Statistics:
        climatology = self._sources.climatology
        assert climatology is not None
        if variable not in self._dry:
            self._dry[variable] = climatology.dry_fraction(variable)
        wet = np.concatenate(
            [
                self._cache.get(("wet", time), partial(climatology.wet_threshold, variable, time))
                for time in times
            ]
        )
        dry = self._dry[variable]
        return self._kernel.means(self._kernel.seeps(variable, forecast, truth, wet, dry))

    def _members(
        self,
        piece: Piece,
        model: ModelPlan,
        variable: str,
        leads: list[int],
        forecast: AnyMaps,
        truth: AnyMaps,
    ) -> Statistics:
        """Statistics of members, and the ranks."""
        members = np.moveaxis(forecast, 1, 2)  # [pairs, Z, M, Y, X]
        leading = members.shape[:2]
        members = members.reshape(-1, *members.shape[2:])
        flat_truth = truth.reshape(-1, *truth.shape[2:])
        found = self._kernel.means(self._kernel.ensemble(members, flat_truth))
        key = (model.name, variable)
        num_bins = members.shape[1] + 1
        shape = (self._plan.lead_times.size, leading[1], num_bins)
        ranks = piece.ranks.setdefault(key, np.zeros(shape, dtype=np.int64))
        ranks[leads] += rank_counts(members, flat_truth).reshape(*leading, num_bins)
        return {name: one.reshape(*leading, -1) for name, one in found.items()}

    def _score_climatology(self, variable: str, times: Sequence[np.datetime64]) -> Statistics:
        """The climatology as a forecast: the same for every lead time of a valid time."""
        found = [
            self._cache.get(("as forecast", time), partial(self._at_once, variable, time))
            for time in times
        ]
        names = self._climatology_names(variable)
        together = np.stack(found)  # [pairs, S, Z, R]
        return {name: together[:, place] for place, name in enumerate(names)}

    def _climatology_names(self, variable: str) -> list[str]:
        seeps = [DRY_THRESHOLDS_M[variable][0]] if variable in self._plan.with_seeps else []
        return [*ERRORS, *ANOMALIES, *seeps]

    def _at_once(self, variable: str, time: np.datetime64) -> Array64:
        mean = self._climatology_at(variable, time)[None]
        truth = self._truth_at(variable, time)[None]
        found = self._errors(variable, mean, truth, [time])
        return np.stack([found[name][0] for name in self._climatology_names(variable)])

    def _add_climatology_maps(
        self,
        piece: Piece,
        model: ModelPlan,
        variable: str,
        leads: list[int],
        times: Sequence[np.datetime64],
    ) -> None:
        if variable not in self._plan.map_levels:
            return
        for lead, time in zip(leads, times, strict=True):
            if lead in self._plan.map_leads:
                mean = self._climatology_at(variable, time)[None]
                truth = self._truth_at(variable, time)[None]
                self._add_maps(piece, model, variable, [lead], mean, truth)

    def _add_maps(
        self,
        piece: Piece,
        model: ModelPlan,
        variable: str,
        leads: list[int],
        forecast: AnyMaps,
        truth: AnyMaps,
    ) -> None:
        plan = self._plan
        level = plan.map_levels.get(variable)
        if level is None:
            return
        for row, lead in enumerate(leads):
            if lead in plan.map_leads:
                error = forecast[row, level].astype(np.float64) - truth[row, level]
                at = (plan.map_leads.index(lead), len(plan.map_leads))
                add_term(piece.maps, piece.map_counts, (model.name, variable), at, error)

    def _add_spectra(
        self,
        piece: Piece,
        model: ModelPlan,
        variable: str,
        leads: list[int],
        times: Sequence[np.datetime64],
        forecast: AnyMaps,
    ) -> None:
        """Spectra of forecasts from files, and of the truth beside the scored one."""
        plan = self._plan
        if not model.paths:
            return
        rows = [row for row, lead in enumerate(leads) if lead in plan.spectra_leads]
        if not rows:
            return

        def add(name: str, row: int, spectrum: Array64) -> None:
            at = (plan.spectra_leads.index(leads[row]), len(plan.spectra_leads))
            add_term(piece.spectra, piece.spectra_counts, (name, variable), at, spectrum)

        for start in range(0, len(rows), 8):  # a few at a time: they are as large as the maps
            some = rows[start : start + 8]
            spectra = zonal_energy_spectrum(forecast[some], plan.latitudes).mean(axis=1)
            for row, spectrum in zip(some, spectra, strict=True):
                add(model.name, row, spectrum)
        if model is plan.models[0]:
            for row in rows:
                add(TRUTH, row, self._truth_spectrum(variable, times[row]))

    def _truth_spectrum(self, variable: str, time: np.datetime64) -> Array64:
        def make() -> Array64:
            return zonal_energy_spectrum(self._truth_at(variable, time), self._plan.latitudes)

        return self._cache.get(("spectrum", time), make)

    def _truth_places(self, variable: str) -> list[int]:
        held = self._truth.archive.variables[variable].levels
        return [held.index(level) for level in self._plan.levels[variable]] or [0]

    def _truth_at(self, variable: str, time: np.datetime64) -> AnyMaps:
        """Truth maps, shape [Z, Y, X]."""
        places = self._truth_places(variable)

        def read() -> AnyMaps:
            return np.ascontiguousarray(self._truth.read(variable, time, places))

        return self._cache.get(("truth", time), read)

    def _climatology_at(self, variable: str, time: np.datetime64) -> AnyMaps:
        climatology = self._sources.climatology
        assert climatology is not None
        levels = self._plan.levels[variable]

        def read() -> AnyMaps:
            return np.ascontiguousarray(climatology.read(variable, time, levels))

        return self._cache.get(("climatology", time), read)

    def _truth_anomaly(self, variable: str, time: np.datetime64) -> Array64:
        """Mean square of the truth's anomaly, shape [Z, R]."""

        def make() -> Array64:
            truth = self._truth_at(variable, time)
            mean = self._climatology_at(variable, time)
            sums = self._kernel.truth_anomaly(truth, mean)
            return self._kernel.means(sums)["truth_anomaly_square"]

        return self._cache.get(("anomaly", time), make)


def _stack(maps: Sequence[AnyMaps]) -> AnyMaps:
    """Maps along a new first dim, without a copy where there is one."""
    return maps[0][None] if len(maps) == 1 else np.stack(maps)
