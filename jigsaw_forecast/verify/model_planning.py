"""Plans the models of a score: which pairs each has, which it lacks, and what is refused."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jigsaw_forecast.verify.archive import Archive, Mask, Spans, Times
from jigsaw_forecast.verify.baselines import CLIMATOLOGY, PERSISTENCE, PROBABILISTIC
from jigsaw_forecast.verify.field_choice import list_numbers
from jigsaw_forecast.verify.pairs import existing_pairs
from jigsaw_forecast.verify.request import FORECAST, Missing, ModelPlan, ScoreRequest
from jigsaw_forecast.verify.sources import Sources
from jigsaw_forecast.verify.times import describe_period, hours_of, list_all

_LACKS = "the truth lacks "
ALLOW_TEXT = "add --allow-missing to score what there is"


class ModelPlanner:
    """Plans the forecast, the baselines and the comparisons.

    Attributes:
        problems: What is wrong.
        warnings: What the user should know.
    """

    def __init__(
        self, request: ScoreRequest, sources: Sources, years: tuple[int, ...], baseline: str
    ) -> None:
        """Takes the open files.

        Args:
            request: What is asked for.
            sources: Its files.
            years: Members of the probabilistic climatology.
            baseline: The baseline that stands for the forecast, empty for a forecast from files.
        """
        self._request = request
        self._sources = sources
        self._years = years
        self._baseline = baseline
        self.problems: list[str] = []
        self.warnings: list[str] = []

    def plan(
        self, levels: dict[str, tuple[float, ...]], inits: Times, leads: Spans
    ) -> list[ModelPlan]:
        """The forecast, baselines and comparisons with their pairs."""
        has_truth = {
            name: np.isin(inits[:, None] + leads[None, :], self._sources.truth.times[name])
            for name in levels
        }
        models = []
        if FORECAST in self._sources.forecasts:
            models.append(self._file_model(FORECAST, "forecast", self._request.forecast, has_truth,
                                           inits, leads))  # fmt: skip
        else:
            models.append(self._baseline_model(self._baseline, FORECAST, has_truth, inits, leads))
        for name in self._request.baselines:
            if name == self._baseline or not self._can_make(name):
                continue
            models.append(self._baseline_model(name, name, has_truth, inits, leads))
        for name in self._sources.forecasts:
            if name != FORECAST:
                paths = (self._request.compare[name],)
                models.append(self._file_model(name, "compare", paths, has_truth, inits, leads))
        return models

    def _can_make(self, name: str) -> bool:
        if name == CLIMATOLOGY and self._sources.climatology is None:
            self.warnings.append(
                "no ACC, SEEPS or climatology baseline without --climatology; make one with "
                "`jigsaw-forecast data climatology`"
            )
            return False
        if name == PROBABILISTIC and self._request.climatology_years is None:
            self.problems.append(f"the baseline {name} needs --climatology-years START/END")
        return True

    def _file_model(
        self,
        name: str,
        kind: str,
        paths: tuple[Path, ...],
        has_truth: dict[str, Mask],
        inits: Times,
        leads: Spans,
    ) -> ModelPlan:
        archive = self._sources.forecasts[name]
        pairs: dict[str, Mask] = {}
        missing: list[Missing] = []
        lost_forecast: dict[np.datetime64, set[float]] = {}
        lost_truth: set[np.datetime64] = set()
        notes = []
        for variable, truth_there in has_truth.items():
            if variable not in archive.variables:
                notes.append(f"{variable}: not in {archive.path}")
                pairs[variable] = np.zeros_like(truth_there)
                continue
            if archive.variables[variable].note:
                notes.append(f"{variable}: {archive.variables[variable].note}")
            there = existing_pairs(archive, variable, inits, leads)
            pairs[variable] = there & truth_there
            for i, j in np.argwhere(~pairs[variable]):
                if not there[i, j]:
                    lost_forecast.setdefault(inits[i], set()).add(hours_of(leads[j]))
                    why = f"{archive.path} lacks it"
                else:
                    lost_truth.add(inits[i] + leads[j])
                    why = f"{_LACKS}{inits[i] + leads[j]}"
                missing.append(Missing(variable, inits[i], leads[j], why))
        if not any(mask.any() for mask in pairs.values()) and has_truth:
            self._no_overlap(name, archive, has_truth)
        elif not self._request.allow_missing:
            self._refuse_missing(archive, lost_forecast, lost_truth, kind)
        return ModelPlan(
            name=name,
            kind=kind,
            paths=paths,
            pairs=pairs,
            num_members=len(archive.members),
            missing=tuple(missing),
            attributes=dict(archive.attributes),
            notes=tuple(notes),
        )

    def _no_overlap(self, name: str, archive: Archive, has_truth: dict[str, Mask]) -> None:
        times = [self._sources.truth.times[v] for v in has_truth]
        starts = [archive.variables[v].init_times for v in has_truth if v in archive.variables]
        ends = [
            archive.variables[v].init_times + archive.variables[v].lead_times.max()
            for v in has_truth
            if v in archive.variables
        ]
        self.problems.append(
            f"no overlap in time: {name} {archive.path} is valid "
            f"{describe_period(np.concatenate([*starts, *ends]))}, the truth "
            f"{self._sources.truth.archive.path} {describe_period(np.concatenate(times))}"
        )

    def _refuse_missing(
        self,
        archive: Archive,
        forecast: dict[np.datetime64, set[float]],
        truth: set[np.datetime64],
        kind: str,
    ) -> None:
        if truth:
            path = self._sources.truth.archive.path
            self.problems.append(
                f"missing valid times in the truth {path}: {list_all(truth)}; {ALLOW_TEXT}"
            )
        if forecast:
            lines = [
                f"{init}: {list_numbers(sorted(hours))} h"
                for init, hours in sorted(forecast.items())
            ]
            what = "is not complete" if kind == "forecast" else "lacks pairs that are scored"
            self.problems.append(
                f"the forecast {archive.path} {what}: missing lead times {'; '.join(lines)}; "
                f"{ALLOW_TEXT}"
            )

    def _baseline_model(
        self, baseline: str, name: str, has_truth: dict[str, Mask], inits: Times, leads: Spans
    ) -> ModelPlan:
        """A baseline's pairs; those that do not exist are left out and reported."""
        pairs: dict[str, Mask] = {}
        missing: list[Missing] = []
        climatology = self._sources.climatology
        for variable, truth_there in has_truth.items():
            there = truth_there.copy()
            if baseline == PERSISTENCE:
                there &= np.isin(inits, self._sources.truth.times[variable])[:, None]
            if baseline == CLIMATOLOGY and (climatology is None or not climatology.has(variable)):
                there[:] = False
            pairs[variable] = there
            for i, j in np.argwhere(~there):
                lacking = inits[i] if truth_there[i, j] else inits[i] + leads[j]
                missing.append(Missing(variable, inits[i], leads[j], f"{_LACKS}{lacking}"))
        if missing and baseline == PERSISTENCE:
            self._report_gaps(baseline, missing)
        members = len(self._years) if baseline == PROBABILISTIC else 0
        kind = "baseline" if name == baseline else "forecast"
        return ModelPlan(
            name=name, kind=kind, paths=(), pairs=pairs, num_members=members,
            missing=tuple(missing), attributes={"baseline": baseline},
        )  # fmt: skip

    def _report_gaps(self, baseline: str, missing: Sequence[Missing]) -> None:
        """Says which analyses a baseline lacks, those within the record one by one."""
        lacking = {np.datetime64(m.why.removeprefix(_LACKS), "s") for m in missing}
        held = np.concatenate([times for times in self._sources.truth.times.values() if times.size])
        inside = {time for time in lacking if held.min() <= time <= held.max()}
        parts = [f"has a gap at {list_all(inside)}"] if inside else []
        if len(lacking) > len(inside):
            parts.append(f"covers {describe_period(held)} only")
        self.warnings.append(
            f"{baseline}: {len(missing)} pairs of variable, initial and lead time do not exist and "
            f"are left out: the truth {self._sources.truth.archive.path} {' and '.join(parts)}"
        )
