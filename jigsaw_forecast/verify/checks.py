"""Checks that the files of a score go together before anything is computed."""

from collections.abc import Mapping

import numpy as np

from jigsaw_forecast.verify.archive import AnyMaps, Times
from jigsaw_forecast.verify.field_choice import list_hpa
from jigsaw_forecast.verify.kernels import DRY_THRESHOLDS_M
from jigsaw_forecast.verify.sources import Sources
from jigsaw_forecast.verify.units import differing_units, implausible_units


class SourceChecks:
    """Compares forecasts and climatology with the truth.

    Attributes:
        problems: What is wrong.
        warnings: What the user should know.
    """

    def __init__(
        self, sources: Sources, levels: Mapping[str, tuple[float, ...]], is_forced: bool
    ) -> None:
        """Takes the open files.

        Args:
            sources: The files.
            levels: Variables that are scored with their levels.
            is_forced: Whether numbers that look like other units are let through.
        """
        self._sources = sources
        self._levels = levels
        self._is_forced = is_forced
        self.problems: list[str] = []
        self.warnings: list[str] = []

    def check_climatology(self, times: Times) -> None:
        """Looks for the days, variables and levels that valid times need."""
        climatology, levels = self._sources.climatology, self._levels
        if climatology is None:
            return
        lacking = climatology.missing_days(times)
        if lacking:
            self.problems.append(
                f"missing days in the climatology {climatology.path}: {', '.join(lacking)}"
            )
        without = [name for name in levels if not climatology.has(name)]
        if without:
            self.warnings.append(
                f"no ACC for {', '.join(without)}: not in the climatology {climatology.path}"
            )
        for name, wanted in levels.items():
            missing = [one for one in wanted if one not in climatology.levels.get(name, wanted)]
            if missing:
                self.problems.append(
                    f"missing levels of {name} in the climatology {climatology.path}: "
                    f"{list_hpa(missing)}; it has {list_hpa(climatology.levels[name])}"
                )
        precipitation = [name for name in levels if name in DRY_THRESHOLDS_M]
        if any(not climatology.has_seeps(name) for name in precipitation):
            self.warnings.append(
                f"no SEEPS for {', '.join(precipitation)}: the climatology {climatology.path} "
                "lacks seeps_threshold and seeps_dry_fraction, which `data climatology --seeps` "
                "makes, or is regridded"
            )

    def check_units(self) -> None:
        """Compares units as said and as a map of each field shows them."""
        truth = self._sources.truth.archive
        climatology = self._sources.climatology
        for name in self._levels:
            expected = truth.variables[name].units
            said = {
                str(a.path): a.variables[name].units
                for a in self._sources.forecasts.values()
                if name in a.variables
            }
            if climatology is not None and climatology.has(name):
                said[str(climatology.path)] = climatology.units[name]
            for path, units in said.items():
                why = differing_units(name, units, expected)
                if why:
                    self.problems.append(
                        f"units of {name} differ: {path} has {why} of the truth {truth.path}; "
                        "convert one of them"
                    )
            if not any(f"units of {name} differ" in one for one in self.problems):
                self._check_numbers(name, self._levels[name])

    def _check_numbers(self, name: str, levels: tuple[float, ...]) -> None:
        truth = self._sources.truth.archive.variables[name]
        times = self._sources.truth.times[name]
        if not times.size:
            return
        level = levels[0] if levels else 0.0
        place = truth.levels.index(level) if levels else 0
        expected = self._sources.truth.read(name, times[0], [place])[0]
        for archive in self._sources.forecasts.values():
            own = archive.variables.get(name)
            if own is None or (levels and level not in own.levels) or not own.exists.any():
                continue
            # a short lead time, beside the truth of its time where that is there; of what adds
            # up from nothing, a long one
            there = np.flatnonzero(own.exists.any(axis=0))
            lead = int(there[-1] if name.startswith("total_precipitation") else there[0])
            init = int(np.argmax(own.exists[:, lead]))
            at = own.levels.index(level) if levels else 0
            found = archive.read(name, init, [lead], [at])[0, :, 0].mean(axis=0)
            valid = own.init_times[init] + own.lead_times[lead]
            other = (
                self._sources.truth.read(name, valid, [place])[0]
                if self._sources.truth.has(name, valid)
                else expected
            )
            self._add_implausible(name, level, str(archive.path), found, other)
        climatology = self._sources.climatology
        if climatology is None or not climatology.has(name) or climatology.missing_days(times[:1]):
            return
        if not levels or level in climatology.levels[name]:
            mean = climatology.read(name, times[0], [level] if levels else [])[0]
            self._add_implausible(name, level, str(climatology.path), mean, expected)

    def _add_implausible(
        self, name: str, level: float, path: str, found: AnyMaps, expected: AnyMaps
    ) -> None:
        why = implausible_units(name, level, found, expected)
        if why and not self._is_forced:
            at = f" at {level:g} hPa" if level else ""
            self.problems.append(
                f"units of {name}{at} differ between {path} and the truth "
                f"{self._sources.truth.archive.path}: {why}; convert one of them, or add --force "
                "where the numbers are right"
            )
