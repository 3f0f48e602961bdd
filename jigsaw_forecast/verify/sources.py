"""Opens the files of a score and puts them on one grid."""

from dataclasses import dataclass
from pathlib import Path

from jigsaw_forecast.errors import DataError, ForecastError
from jigsaw_forecast.grid import Grid
from jigsaw_forecast.verify.archive import Archive, TimeSeries
from jigsaw_forecast.verify.baselines import BASELINES
from jigsaw_forecast.verify.climatology_file import ClimatologyFile
from jigsaw_forecast.verify.opening import open_archive
from jigsaw_forecast.verify.regridding import RegriddedArchive, Regridder
from jigsaw_forecast.verify.request import FORECAST, ScorePlan, ScoreRequest


@dataclass
class Sources:
    """Everything opened that a score reads, on the grid of the score.

    Attributes:
        truth: Analyses.
        climatology: Where one is given.
        forecasts: Archives of the models from files, by name.
    """

    truth: TimeSeries
    climatology: ClimatologyFile | None
    forecasts: dict[str, Archive]


def open_sources(
    truth: tuple[Path, ...],
    climatology: Path | None,
    forecasts: dict[str, tuple[Path, ...]],
    resolution: Grid | None,
) -> Sources:
    """Opens all files.

    Raises:
        ForecastError: What cannot be opened or regridded; all of it is listed.
    """
    problems: list[str] = []

    def opened(paths: tuple[Path, ...]) -> Archive | None:
        try:
            archive = open_archive(paths)
            return RegriddedArchive(archive, resolution) if resolution is not None else archive
        except ForecastError as error:
            problems.append(str(error))
            return None

    analyses = opened(truth)
    found = {name: opened(paths) for name, paths in forecasts.items()}
    climate = None
    if climatology is not None:
        try:
            climate = ClimatologyFile(climatology)
            if resolution is not None:
                regridder = Regridder(climate.grid, resolution)
                if not climate.grid.is_close(regridder.grid):
                    climate.set_regridder(regridder, regridder.grid)
        except ForecastError as error:
            problems.append(str(error))
    if analyses is not None and analyses.members:
        problems.append(
            f"{analyses.path} has members {list(analyses.members)}: the truth must be one "
            "analysis; choose one member"
        )
    if problems or analyses is None:
        raise DataError("\n".join(dict.fromkeys(problems)))  # one file may be several sources
    return Sources(TimeSeries(analyses), climate, {k: v for k, v in found.items() if v is not None})


def reopen_sources(plan: ScorePlan) -> Sources:
    """Opens again what a plan was made of, in another process."""
    forecasts = {model.name: model.paths for model in plan.models if model.paths}
    return open_sources(plan.truth, plan.climatology, forecasts, plan.resolution)


def request_sources(request: ScoreRequest) -> Sources:
    """Opens what a request names; comparisons with a truth of their own are left out."""
    forecasts: dict[str, tuple[Path, ...]] = {}
    if not is_baseline(request.forecast):
        forecasts[FORECAST] = request.forecast
    forecasts |= {
        name: (path,) for name, path in request.compare.items() if name not in request.compare_truth
    }
    return open_sources(request.truth, request.climatology, forecasts, request.resolution)


def is_baseline(forecast: tuple[Path, ...]) -> bool:
    """Whether the forecast is one that is made of the truth, such as `persistence`."""
    return len(forecast) == 1 and str(forecast[0]) in BASELINES and not forecast[0].exists()
