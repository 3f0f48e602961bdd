"""Turns a request into a plan: everything is found and checked before anything is computed."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from jigsaw_forecast.errors import DataError, ForecastError
from jigsaw_forecast.grid import Grid
from jigsaw_forecast.verify.archive import Spans, Times, TimeSeries
from jigsaw_forecast.verify.checks import SourceChecks
from jigsaw_forecast.verify.field_choice import choose_variables, list_hpa, list_numbers
from jigsaw_forecast.verify.kernels import DRY_THRESHOLDS_M
from jigsaw_forecast.verify.model_planning import ALLOW_TEXT, ModelPlanner
from jigsaw_forecast.verify.regions import REGIONS
from jigsaw_forecast.verify.request import (
    FORECAST,
    ModelPlan,
    ScorePlan,
    ScoreRequest,
)
from jigsaw_forecast.verify.sources import Sources, is_baseline, request_sources
from jigsaw_forecast.verify.times import describe_period, hours_of

_ZERO = np.timedelta64(0, "s")
_HOUR = np.timedelta64(1, "h")
NOTICE_ATTRIBUTE = "notice"
LAND_MASK = "land_sea_mask"
SPECTRA_BYTES = 48 << 20  # of the sums of one model
MAP_BYTES = 24 << 20
HEADLINE_LEADS_H = (24, 72, 120, 240)
HEADLINE_LEVELS_HPA = {
    "geopotential": 500,
    "temperature": 850,
    "specific_humidity": 700,
    "u_component_of_wind": 850,
    "v_component_of_wind": 850,
}
HEADLINE_SURFACE = (
    "2m_temperature",
    "10m_u_component_of_wind",
    "10m_v_component_of_wind",
    "mean_sea_level_pressure",
    "total_precipitation_24hr",
    "total_precipitation_6hr",
)


def plan_score(request: ScoreRequest) -> tuple[ScorePlan, list[ScorePlan], Sources]:
    """The plan of a request, those of comparisons set apart, and its open files.

    Raises:
        ForecastError: What is wrong with the request or its files; all of it is listed.
    """
    sources = request_sources(request)
    planner = _Planner(request, sources)
    apart = planner.set_apart()
    plan = planner.plan()
    others = [_plan_apart(request, plan, name, why) for name, why in apart.items()]
    return plan, others, sources


def plan_open_sources(request: ScoreRequest, sources: Sources) -> ScorePlan:
    """The plan of a request whose files are open already.

    Raises:
        ForecastError: What is wrong with the request or its files; all of it is listed.
    """
    return _Planner(request, sources).plan()


def _plan_apart(request: ScoreRequest, plan: ScorePlan, name: str, why: str) -> ScorePlan:
    """The plan of a comparison that is not like for like."""
    truth = request.compare_truth.get(name)
    own = replace(
        request,
        forecast=(request.compare[name],),
        truth=(truth,) if truth is not None else request.truth,
        compare={},
        compare_truth={},
        baselines=(),
        resolution=request.resolution,
        allow_missing=True,
    )
    if request.resolution is None:
        forecast = request_sources(own).forecasts[FORECAST].grid
        grids = [Grid.from_axes(list(forecast.latitudes), list(forecast.longitudes))]
        grids.append(Grid.from_axes(list(plan.latitudes), list(plan.longitudes)))
        coarser = min(grids, key=lambda grid: grid.num_lat)
        if grids[0] != grids[1]:
            own = replace(own, resolution=coarser)
    sources = request_sources(own)
    only = _Planner(own, sources).plan()
    model = replace(only.models[0], name=name, kind="compare", comparison=why)
    return replace(only, models=(model,))


class _Planner:
    """Finds variables, times and pairs; collects what is wrong on the way."""

    def __init__(self, request: ScoreRequest, sources: Sources) -> None:
        self._request = request
        self._sources = sources
        self._truth: TimeSeries = sources.truth
        self._problems: list[str] = []
        self._warnings: list[str] = []
        self._baseline = str(request.forecast[0]) if is_baseline(request.forecast) else ""
        self._archive = sources.forecasts.get(FORECAST)

    def set_apart(self) -> dict[str, str]:
        """Comparisons on another grid or truth, and why they are not like for like."""
        request, apart = self._request, {}
        for name in request.compare_truth:
            if name in request.compare:
                apart[name] = f"scored against {request.compare_truth[name]}, not the same truth"
            else:
                self._problems.append(f"--compare-truth {name}: missing --compare {name}=PATH")
        for name, archive in list(self._sources.forecasts.items()):
            if name == FORECAST or archive.grid.is_close(self._truth.archive.grid):
                continue
            apart[name] = f"scored at another resolution: {archive.grid.name}"
            del self._sources.forecasts[name]
        if apart and not request.force:
            reasons = "; ".join(f"{name} would be {why}" for name, why in apart.items())
            self._problems.append(
                f"not comparable: {reasons}; regrid all with --resolution LONxLAT, or add --force "
                "to score it all the same, labelled"
            )
        return apart

    def plan(self) -> ScorePlan:
        """The plan.

        Raises:
            ForecastError: What is wrong; all of it is listed.
        """
        request = self._request
        self._check_grids()
        levels = self._choose_fields()
        init_times, lead_times = self._choose_times(levels)
        self._stop()
        planner = ModelPlanner(self._request, self._sources, self._years(), self._baseline)
        models = planner.plan(levels, init_times, lead_times)
        self._problems += planner.problems
        self._warnings += planner.warnings
        self._check_sources(levels, models, init_times, lead_times)
        self._stop()
        land = self._truth.archive.static(LAND_MASK)
        regions = self._choose_regions(land is not None)
        self._stop()
        grid = self._truth.archive.grid
        climatology = self._sources.climatology
        with_acc = tuple(n for n in levels if climatology is not None and climatology.has(n))
        with_seeps = tuple(
            n
            for n in levels
            if n in DRY_THRESHOLDS_M and climatology is not None and climatology.has_seeps(n)
        )
        attributes = self._archive.attributes if self._archive is not None else {}
        notices = [a.attributes.get(NOTICE_ATTRIBUTE, "") for a in self._sources.forecasts.values()]
        notices += [self._truth.archive.attributes.get(NOTICE_ATTRIBUTE, "")]
        return ScorePlan(
            models=tuple(models),
            truth=request.truth,
            climatology=request.climatology,
            resolution=request.resolution,
            grid_name=grid.name,
            latitudes=grid.latitudes,
            longitudes=grid.longitudes,
            land=None if land is None else np.asarray(land, dtype=np.float64),
            levels=levels,
            units={name: self._truth.archive.variables[name].units for name in levels},
            init_times=init_times,
            lead_times=lead_times,
            regions=regions,
            with_acc=with_acc,
            with_seeps=with_seeps,
            spectra_leads=self._spectra_leads(levels, lead_times),
            map_leads=_nearest_leads(lead_times),
            map_levels=self._map_levels(levels, lead_times),
            years=self._years(),
            skipna=request.skipna,
            warnings=tuple(self._warnings),
            notice=next(filter(None, notices), attributes.get(NOTICE_ATTRIBUTE, "")),
        )

    def _stop(self) -> None:
        if self._problems:
            raise DataError("\n".join(self._problems))

    def _check_grids(self) -> None:
        truth = self._truth.archive
        others = {str(a.path): a.grid for a in self._sources.forecasts.values()}
        if self._sources.climatology is not None:
            others[str(self._sources.climatology.path)] = self._sources.climatology.grid
        differing = [f"{path} is on {grid}" for path, grid in others.items()
                     if not grid.is_close(truth.grid)]  # fmt: skip
        if differing:
            self._problems.append(
                f"grids differ: {'; '.join(differing)}; the truth {truth.path} is on {truth.grid}; "
                "regrid all with --resolution LONxLAT, for example 240x121 or 64x32"
            )

    def _choose_fields(self) -> dict[str, tuple[float, ...]]:
        """Variables and levels that are scored."""
        truth = self._truth.archive
        own = self._archive if self._archive is not None else truth
        offered = {name: one.levels for name, one in own.variables.items()}
        wanted = self._narrowed(offered)
        if self._archive is not None and not self._request.variables:
            lacking = [name for name in wanted if name not in truth.variables]
            if lacking and len(lacking) < len(wanted):
                self._warnings.append(
                    f"not scored, for the truth {truth.path} has none: {', '.join(lacking)}"
                )
                wanted = {name: one for name, one in wanted.items() if name not in lacking}
        chosen = {}
        for name, levels in wanted.items():
            if name not in truth.variables:
                self._problems.append(
                    f"missing {name} in the truth {truth.path}; it has {', '.join(truth.variables)}"
                )
                continue
            held = truth.variables[name].levels
            missing = [level for level in levels if level not in held]
            if bool(held) != bool(levels):
                self._problems.append(f"{name} has levels in one of forecast and truth only")
            elif missing and not self._request.allow_missing:
                self._problems.append(
                    f"missing levels of {name} in the truth {truth.path}: {list_hpa(missing)}; it "
                    f"has {list_hpa(held)}; choose with --levels or {ALLOW_TEXT}"
                )
            else:
                chosen[name] = tuple(level for level in levels if level in held)
        return {
            name: one for name, one in chosen.items() if one or not truth.variables[name].levels
        }

    def _narrowed(self, offered: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
        """What `--variables` and `--levels` leave of the forecast's fields."""
        wanted = dict(offered)
        if self._request.variables:
            try:
                wanted = choose_variables(self._request.variables, offered)
            except ForecastError as error:
                self._problems.append(str(error))
        if self._request.levels is not None:
            for name, levels in list(wanted.items()):
                missing = [one for one in self._request.levels if one not in levels]
                if levels and missing:
                    self._problems.append(
                        f"missing levels of {name} in the forecast: {list_hpa(missing)}; it has "
                        f"{list_hpa(levels)}"
                    )
                wanted[name] = tuple(one for one in levels if one in self._request.levels)
        return wanted

    def _choose_times(self, levels: dict[str, tuple[float, ...]]) -> tuple[Times, Spans]:
        """Initial and lead times of the score."""
        request = self._request
        if self._archive is not None:
            variables = [self._archive.variables[n] for n in levels if n in self._archive.variables]
            inits = [one.init_times[one.exists.any(axis=1)] for one in variables]
            leads = [one.lead_times[one.exists.any(axis=0)] for one in variables]
        else:
            inits = [self._truth.times[name] for name in levels if name in self._truth.times]
            leads = [np.array(request.lead_times or (), dtype="timedelta64[s]")]
            if request.lead_times is None:
                self._problems.append(f"--forecast {self._baseline}: missing --lead-times")
        empty_times = np.array([], dtype="datetime64[s]")
        init_times = np.unique(np.concatenate([*inits, empty_times]))
        lead_times = np.unique(np.concatenate([*leads, np.array([], dtype="timedelta64[s]")]))
        has_any = bool(init_times.size)
        init_times = self._within(init_times)
        if has_any and not init_times.size:
            self._problems.append(
                "no initial times left: the forecast starts "
                f"{describe_period(np.concatenate(inits))}"
            )
        if request.lead_times is not None and self._archive is not None:
            wanted = np.array(sorted(set(request.lead_times)), dtype="timedelta64[s]")
            missing = [hours_of(one) for one in wanted if one not in lead_times]
            if missing:
                self._problems.append(
                    f"missing lead times in the forecast: {list_numbers(missing)} h; it has "
                    f"{list_numbers([hours_of(one) for one in lead_times])} h"
                )
            lead_times = wanted
        if (lead_times % _HOUR != _ZERO).any():
            self._problems.append("lead times must be whole hours; choose with --lead-times")
        return init_times, lead_times

    def _within(self, times: Times) -> Times:
        request = self._request
        if request.init_times is not None:
            times = times[(times >= request.init_times.start) & (times <= request.init_times.end)]
        if request.init_hours is not None:
            of_day = (times - times.astype("datetime64[D]")) / _HOUR
            times = times[np.isin(of_day, request.init_hours)]
        return times

    def _check_sources(
        self,
        levels: dict[str, tuple[float, ...]],
        models: Sequence[ModelPlan],
        inits: Times,
        leads: Spans,
    ) -> None:
        """Checks the climatology and the units of everything."""
        used = np.zeros((inits.size, leads.size), dtype=bool)
        for model in models:
            for mask in model.pairs.values():
                used |= mask
        checks = SourceChecks(self._sources, levels, is_forced=self._request.force)
        checks.check_climatology(np.unique((inits[:, None] + leads[None, :])[used]))
        checks.check_units()
        self._problems += checks.problems
        self._warnings += checks.warnings

    def _choose_regions(self, has_land: bool) -> tuple[str, ...]:
        wanted = self._request.regions
        if wanted is None:
            names = [name for name, one in REGIONS.items() if has_land or not one.is_land]
            if not has_land:
                self._warnings.append(
                    f"no land regions: missing {LAND_MASK} in the truth {self._truth.archive.path}"
                )
            return tuple(names)
        unknown = [name for name in wanted if name not in REGIONS]
        if unknown:
            self._problems.append(
                f"no such regions: {', '.join(unknown)}; there are {', '.join(REGIONS)}"
            )
        elif not has_land and any(REGIONS[name].is_land for name in wanted):
            self._problems.append(
                f"missing {LAND_MASK}, which land regions need, in the truth "
                f"{self._truth.archive.path}"
            )
        return tuple(wanted)

    def _spectra_leads(self, levels: dict[str, tuple[float, ...]], leads: Spans) -> tuple[int, ...]:
        """All lead times, or a few where the sums would be large."""
        if not self._request.with_spectra or not _is_circle(self._truth.archive.grid.longitudes):
            return ()
        rows, columns = self._truth.archive.grid.shape
        fields = sum(max(1, len(one)) for one in levels.values())
        size = fields * rows * (columns // 2 + 1) * 8
        if size * leads.size <= SPECTRA_BYTES:
            return tuple(range(leads.size))
        few = _nearest_leads(leads)
        return few[: max(1, SPECTRA_BYTES // size)] if size * len(few) > SPECTRA_BYTES else few

    def _map_levels(self, levels: dict[str, tuple[float, ...]], leads: Spans) -> dict[str, int]:
        found = {}
        for name, held in levels.items():
            if name in HEADLINE_SURFACE and not held:
                found[name] = 0
            elif name in HEADLINE_LEVELS_HPA and held:
                wanted = HEADLINE_LEVELS_HPA[name]
                found[name] = int(np.argmin([abs(level - wanted) for level in held]))
        if not found:
            found = dict.fromkeys(list(levels)[:4], 0)
        rows, columns = self._truth.archive.grid.shape
        size = rows * columns * 16 * max(1, len(_nearest_leads(leads)))
        return dict(list(found.items())[: max(1, MAP_BYTES // size)])

    def _years(self) -> tuple[int, ...]:
        years = self._request.climatology_years
        return tuple(range(years[0], years[1] + 1)) if years is not None else ()


def _nearest_leads(leads: Spans) -> tuple[int, ...]:
    """Places of the lead times nearest to the headline ones, each once."""
    if not leads.size:
        return ()
    hours = leads / _HOUR
    return tuple(sorted({int(np.argmin(np.abs(hours - one))) for one in HEADLINE_LEADS_H}))


def _is_circle(longitudes: np.ndarray) -> bool:
    spacing = np.diff(longitudes)
    if longitudes.size < 2:
        return False
    is_even = np.ptp(spacing) < 1e-2 * spacing.mean()
    return bool(is_even and abs(spacing.mean() * longitudes.size - 360.0) < 0.5 * spacing.mean())
