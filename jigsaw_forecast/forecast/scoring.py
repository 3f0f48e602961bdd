"""Scores a run against truth while it goes on, from the whole maps that its ranks hold anyway.

The sums are those of `score`, so that the scores are those of the stored forecast. On resuming, the
lead times of the earlier run are not at hand: then `score` is the way.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from jigsaw_forecast.errors import DataError, OutputError
from jigsaw_forecast.fields import Field
from jigsaw_forecast.forecast.product import OutputSpec, Slot
from jigsaw_forecast.parallel.collectives import all_reduce_sum, together
from jigsaw_forecast.parallel.mesh import Mesh
from jigsaw_forecast.state import State
from jigsaw_forecast.verify.archive import ArchiveGrid, TimeSeries
from jigsaw_forecast.verify.online import OnlineScorer, OnlineSetting
from jigsaw_forecast.verify.opening import open_archive
from jigsaw_forecast.verify.score import write_scores

_log = logging.getLogger(__name__)
SCORES_SUFFIX = ".scores"
_LAND = "land_sea_mask"


def scores_path(product: Path) -> Path:
    """`NAME.scores`: the folder of the scores that a run makes itself."""
    return product.with_name(product.name + SCORES_SUFFIX)


class TruthScorer:
    """This rank's share in the scores of a run.

    Attributes:
        fields: What is scored: written fields that the truth has.
        output: Folder of the scores.
    """

    def __init__(
        self, truth: Path, spec: OutputSpec, output: Path, notice: str, *, overwrite: bool
    ) -> None:
        """Opens the truth and compares it with what will be written.

        Raises:
            DataError: The truth is on another grid, or has no field or no time of the forecast.
            OutputError: The folder holds a score already.
        """
        self.output = output
        self._overwrite = overwrite
        self._series = TimeSeries(open_archive([truth]))
        self._check(truth, spec)
        variables = self._series.archive.variables
        self.fields = tuple(field for field in spec.fields if self._has(field))
        levels = {
            name: tuple(
                float(field.level_hpa)
                for field in sorted(self.fields)
                if field.variable == name and field.level_hpa
            )
            for name in dict.fromkeys(field.variable for field in self.fields)
        }
        land = self._series.archive.static(_LAND)
        self._scorer = OnlineScorer(
            OnlineSetting(
                latitudes=spec.grid.latitudes,
                longitudes=spec.grid.longitudes,
                levels=levels,
                units={name: variables[name].units for name in levels},
                init_times=spec.init_times,
                lead_times=spec.lead_times,
                truth=truth,
                forecast=output.with_suffix(""),
                land=None if land is None else np.asarray(land, np.float64),
                notice=notice,
            )
        )
        self._levels = levels

    def add(self, maps: State) -> None:
        """Adds what this rank holds of one lead time; a map that the truth lacks is left out."""
        for variable, levels in self._levels.items():
            rows = [i for i, field in enumerate(maps.fields) if field.variable == variable]
            rows = [i for i in rows if maps.fields[i] in self.fields]
            if not rows or not self._series.has(variable, maps.valid_time):
                continue
            held = self._series.archive.variables[variable].levels
            hpa = [float(maps.fields[i].level_hpa) for i in rows]
            truth = self._series.read(
                variable, maps.valid_time, [held.index(p) for p in hpa] if held else [0]
            )
            self._scorer.add(
                variable,
                maps.init_time,
                maps.lead_time,
                maps.data[rows].numpy(),
                truth,
                levels=[levels.index(p) for p in hpa] if held else [0],
            )

    def finish(self, mesh: Mesh) -> None:
        """Adds up over the ranks and writes the scores on the first.

        Raises:
            OutputError: They cannot be written.

        Communication:
            An all-reduce of each variable's sums over every axis.
        """

        def add_up(values: np.ndarray) -> np.ndarray:
            tensor = torch.from_numpy(np.ascontiguousarray(values)).to(mesh.device)
            axes = (mesh.domain, mesh.tensor, mesh.data)
            return all_reduce_sum(tensor, axes).cpu().numpy()

        self._scorer.reduce(add_up)
        together(mesh, lambda: self._write() if mesh.rank == 0 else None)

    def _write(self) -> None:
        write_scores(
            self.output,
            self._scorer.final_plan(),
            self._scorer.piece(),
            with_report=True,
            overwrite=self._overwrite,
        )

    def _has(self, field: Field) -> bool:
        variable = self._series.archive.variables.get(field.variable)
        if variable is None or bool(variable.levels) != bool(field.level_hpa):
            return False
        return not field.level_hpa or float(field.level_hpa) in variable.levels

    def _check(self, truth: Path, spec: OutputSpec) -> None:
        problems = []
        grid = ArchiveGrid(spec.grid.latitudes, spec.grid.longitudes)
        found = self._series.archive.grid
        if not found.is_close(grid):
            problems.append(
                f"it is on {found}, the forecast on {grid}; score from the stored forecast with "
                "`score --resolution`"
            )
        lacking = [field for field in spec.fields if not self._has(field)]
        if len(lacking) == len(spec.fields):
            problems.append(f"missing all of {_list(spec.fields)}")
        elif lacking:
            _log.info("not scored, for the truth has none: %s", _list(lacking))
        valid = {slot.init_time + slot.lead_time for slot in spec.slots}
        times = {time for one in self._series.times.values() for time in one}
        if not valid & times:
            problems.append(
                f"missing all valid times from {min(valid)} to {max(valid)}"
                + (f"; it has {min(times)} to {max(times)}" if times else "")
            )
        if problems:
            raise DataError(f"--truth {truth}: " + "; ".join(problems))
        if (self.output / "protocol.json").exists() and not self._overwrite:
            raise OutputError(
                f"{self.output} holds a score; add --overwrite to replace it, or choose another "
                "--output"
            )


def is_complete(slots: Sequence[Slot], made: Sequence[Slot]) -> bool:
    """Whether a run has made every lead time itself, so that its scores are those of the whole."""
    return set(slots) <= set(made)


def _list(fields: Sequence[Field]) -> str:
    names = [str(field) for field in fields]
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more
