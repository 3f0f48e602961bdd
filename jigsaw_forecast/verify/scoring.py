"""Scores units of work: reads each truth map once, every forecast map once."""

from collections.abc import Callable, Sequence
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
from jigsaw_forecast.verify.exact_sum import ExactSum
from jigsaw_forecast.verify.kernels import (
    ANOMALIES,
    DRY_THRESHOLDS_M,
    ERRORS,
    Kernel,
    rank_counts,
)
from jigsaw_forecast.verify.pieces import COUNT, TRUTH, Piece, Unit, statistic_names
from jigsaw_forecast.verify.regions import RegionWeights
from jigsaw_forecast.verify.request import ModelPlan, ScorePlan
from jigsaw_forecast.verify.sources import Sources, reopen_sources
from jigsaw_forecast.verify.spectra import zonal_energy_spectrum

Array64 = npt.NDArray[np.float64]
Statistics = dict[str, Array64]  # by statistic, shape [pairs, Z, R]

BLOCK_BYTES = 16 << 20  # of forecasts read in one access
CACHE_BYTES = 896 << 20  # of truth and climatology, in all processes together
_LARGEST_CACHE_BYTES = 448 << 20  # in one process: ten days of a field at 0.25 degrees
_SMALLEST_CACHE_BYTES = 32 << 20


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
        self._cache = ArrayCache(
            max(min(CACHE_BYTES // num_processes, _LARGEST_CACHE_BYTES), _SMALLEST_CACHE_BYTES)
        )
        self._years = YearsAsMembers(self._truth, plan.years) if plan.years else None
        self._dry: dict[str, Array64] = {}

    def score(self, unit: Unit, advance: Callable[[int], None] | None = None) -> Piece:
        """Scores one unit.

        Args:
            unit: Its variables and initial times.
            advance: Called with the number of pairs done now and then.
        """
        piece = Piece(unit.inits)
        for variable in unit.variables:
            self._cache.clear()
            ahead = self._num_ahead(variable)
            for place, init in enumerate(unit.inits):
                if place % ahead == 0:
                    self._read_ahead(variable, unit.inits[place : place + ahead])
                done = 0
                for model in self._plan.models:
                    done = max(done, self._score_init(piece, model, variable, place, init))
                if advance is not None:
                    advance(1)
        return piece

    def _num_ahead(self, variable: str) -> int:
        """Initial times whose truth and climatology are read together: half of the cache."""
        plan = self._plan
        per_time = plan.latitudes.size * plan.longitudes.size * 8
        per_time *= max(1, len(plan.levels[variable])) * (1 + (variable in plan.with_acc))
        return max(1, self._cache.num_bytes // (2 * per_time * max(1, plan.lead_times.size)))

    def _read_ahead(self, variable: str, inits: Sequence[int]) -> None:
        """Reads the truth and climatology of some initial times in few accesses."""
        plan = self._plan
        times: set[np.datetime64] = set()
        for model in plan.models:
            for init in inits:
                leads = np.flatnonzero(model.pairs[variable][init])
                times.update(plan.init_times[init] + plan.lead_times[leads])
        per_time = plan.latitudes.size * plan.longitudes.size * 8
        if per_time * len(times) * max(1, len(plan.levels[variable])) > self._cache.num_bytes // 2:
            return  # one by one, as they are needed
        climatology = self._sources.climatology
        wanted = [one for one in sorted(times) if not self._cache.holds(("truth", one))]
        found = self._truth.read_many(variable, wanted, self._truth_places(variable))
        for time, maps in found.items():
            self._cache.put(("truth", time), maps.copy())  # not a view of all of them
        if climatology is None or variable not in plan.with_acc:
            return
        wanted = [one for one in sorted(times) if not self._cache.holds(("climatology", one))]
        means = climatology.read_many(variable, wanted, plan.levels[variable])
        for time, maps in means.items():
            self._cache.put(("climatology", time), maps.copy())

    def _score_init(
        self, piece: Piece, model: ModelPlan, variable: str, place: int, init: int
    ) -> int:
        """Scores one variable of a model from one initial time; how many pairs that are."""
        plan = self._plan
        names = statistic_names(plan, model)
        num_levels = max(1, len(plan.levels[variable]))
        shape = (
            len(names), len(piece.inits), len(plan.regions), plan.lead_times.size, num_levels
        )  # fmt: skip
        table = piece.statistics.setdefault((model.name, variable), np.full(shape, np.nan))
        table[names.index(COUNT), place] = 0.0
        leads = np.flatnonzero(model.pairs[variable][init])
        for block in self._lead_blocks(model, variable, leads):
            found = self._score_block(piece, model, variable, init, block)
            for name, values in found.items():
                # [pairs, Z, R] into [R, L, Z]
                table[names.index(name), place][:, block] = values.transpose(2, 0, 1)
            table[names.index(COUNT), place][:, block] = 1.0
        return int(leads.size)

    def _lead_blocks(
        self, model: ModelPlan, variable: str, leads: npt.NDArray[np.intp]
    ) -> list[list[int]]:
        """Lead times that are read together: whole chunks where they fit into a block."""
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
        self, piece: Piece, model: ModelPlan, variable: str, init: int, leads: list[int]
    ) -> Statistics:
        plan = self._plan
        times = [plan.init_times[init] + plan.lead_times[lead] for lead in leads]
        if model.baseline == CLIMATOLOGY:
            found = self._score_climatology(variable, times)
            self._add_climatology_maps(piece, model, variable, leads, times)
            return found
        truth = np.stack([self._truth_at(variable, time) for time in times])
        forecast = self._forecast(model, variable, init, leads, times, truth)
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
        truth: AnyMaps,
    ) -> AnyMaps:
        """Forecast maps, shape [leads, members, Z, Y, X]."""
        plan = self._plan
        start = plan.init_times[init]
        if model.baseline == PERSISTENCE:
            initial = self._truth_at(variable, start)
            return np.broadcast_to(initial, truth.shape)[:, None]
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
            climatology = np.stack([self._climatology_at(variable, time) for time in times])
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
        key = (model.name, variable)
        for row, lead in enumerate(leads):
            if lead not in plan.map_leads:
                continue
            if key not in piece.maps:
                shape = (len(plan.map_leads), *forecast.shape[-2:])
                piece.maps[key] = ExactSum(shape)
                piece.map_counts[key] = np.zeros(shape[0], dtype=np.int64)
            place = plan.map_leads.index(lead)
            error = forecast[row, level].astype(np.float64) - truth[row, level]
            piece.maps[key].add(error, place=place)
            piece.map_counts[key][place] += 1

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
        places = [plan.spectra_leads.index(leads[row]) for row in rows]
        for start in range(0, len(rows), 8):  # a few at a time: they are as large as the maps
            some = rows[start : start + 8]
            spectra = zonal_energy_spectrum(forecast[some], plan.latitudes).mean(axis=1)
            for place, spectrum in zip(places[start : start + 8], spectra, strict=True):
                self._add_spectrum(piece, model.name, variable, place, spectrum)
        if model is plan.models[0]:
            for row, place in zip(rows, places, strict=True):
                spectrum = self._truth_spectrum(variable, times[row])
                self._add_spectrum(piece, TRUTH, variable, place, spectrum)

    def _add_spectrum(
        self, piece: Piece, name: str, variable: str, place: int, spectrum: Array64
    ) -> None:
        key = (name, variable)
        if key not in piece.spectra:
            count = len(self._plan.spectra_leads)
            piece.spectra[key] = ExactSum((count, *spectrum.shape))
            piece.spectra_counts[key] = np.zeros(count, dtype=np.int64)
        piece.spectra[key].add(spectrum, place=place)
        piece.spectra_counts[key][place] += 1

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
        return self._cache.get(("truth", time), lambda: self._truth.read(variable, time, places))

    def _climatology_at(self, variable: str, time: np.datetime64) -> AnyMaps:
        climatology = self._sources.climatology
        assert climatology is not None
        levels = self._plan.levels[variable]
        return self._cache.get(
            ("climatology", time), lambda: climatology.read(variable, time, levels)
        )

    def _truth_anomaly(self, variable: str, time: np.datetime64) -> Array64:
        """Mean square of the truth's anomaly, shape [Z, R]."""

        def make() -> Array64:
            truth = self._truth_at(variable, time)
            mean = self._climatology_at(variable, time)
            sums = self._kernel.truth_anomaly(truth, mean)
            return self._kernel.means(sums)["truth_anomaly_square"]

        return self._cache.get(("anomaly", time), make)
