"""What a score is asked for, and what it will do: both travel to worker processes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from jigsaw_forecast.data.weather_store import Period
from jigsaw_forecast.grid import Grid
from jigsaw_forecast.verify.archive import Mask, Spans, Times
from jigsaw_forecast.verify.baselines import CLIMATOLOGY, PERSISTENCE

FORECAST = "forecast"  # name of the model that is scored, beside those it is compared with
DEFAULT_BASELINES = (PERSISTENCE, CLIMATOLOGY)


@dataclass(frozen=True)
class ScoreRequest:
    """What the user asks for.

    Attributes:
        forecast: Files or stores, or the name of a baseline as the only element.
        truth: Files or stores of analyses.
        output: Folder to write.
        climatology: Store or file, for ACC, SEEPS and the climatology baseline.
        compare: Other forecasts by name.
        compare_truth: Another truth for some of them, by name.
        init_times: Period that initial times are taken from.
        init_hours: Hours of the day that initial times are taken from.
        lead_times: Those wanted, all by default.
        variables: Names such as `z500`, `2t` or a WeatherBench name; all by default.
        levels: Pressure levels wanted, hPa.
        regions: Names of regions; all by default.
        resolution: Grid to regrid everything to.
        baselines: Which are made.
        climatology_years: First and last year of the probabilistic climatology.
        skipna: Whether means leave missing points out.
        allow_missing: Whether pairs that do not exist are left out instead of refused.
        force: Whether comparisons that are not like for like are made, and labelled.
        with_spectra: Whether spectra are made.
        with_report: Whether the report is drawn.
        workers: Processes, None to choose.
        resume: Whether to go on with what an earlier run left.
        overwrite: Whether an earlier score in the folder is replaced.
    """

    forecast: tuple[Path, ...]
    truth: tuple[Path, ...]
    output: Path
    climatology: Path | None = None
    compare: Mapping[str, Path] = field(default_factory=dict)
    compare_truth: Mapping[str, Path] = field(default_factory=dict)
    init_times: Period | None = None
    init_hours: tuple[int, ...] | None = None
    lead_times: tuple[np.timedelta64, ...] | None = None
    variables: str | None = None
    levels: tuple[float, ...] | None = None
    regions: tuple[str, ...] | None = None
    resolution: Grid | None = None
    baselines: tuple[str, ...] = DEFAULT_BASELINES
    climatology_years: tuple[int, int] | None = None
    skipna: bool = False
    allow_missing: bool = False
    force: bool = False
    with_spectra: bool = True
    with_report: bool = True
    workers: int | None = None
    resume: bool = False
    overwrite: bool = False
    command: tuple[str, ...] = ()


@dataclass(frozen=True)
class Missing:
    """A pair that is not scored.

    Attributes:
        variable: Whose, or empty for all.
        init_time: Initial time.
        lead_time: Lead time.
        why: What lacks it.
    """

    variable: str
    init_time: np.datetime64
    lead_time: np.timedelta64
    why: str


@dataclass(frozen=True, eq=False)
class ModelPlan:
    """One forecast to be scored.

    Attributes:
        name: `forecast`, a baseline's name or that of `--compare`.
        kind: `forecast`, `baseline` or `compare`.
        paths: Its files; empty for a baseline.
        pairs: By variable, which pairs are scored, shape [I, L].
        num_members: 0 for a single forecast.
        missing: Pairs that are not scored.
        attributes: Provenance.
        notes: What must be known about it.
        comparison: Why it is not comparable with `forecast`, otherwise empty.
    """

    name: str
    kind: str
    paths: tuple[Path, ...]
    pairs: Mapping[str, Mask]
    num_members: int = 0
    missing: tuple[Missing, ...] = ()
    attributes: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    comparison: str = ""

    @property
    def baseline(self) -> str:
        """Which baseline it is, empty for a forecast from files."""
        return "" if self.paths else (self.attributes.get("baseline") or self.name)


@dataclass(frozen=True, eq=False)
class ScorePlan:
    """What is read and computed: all models against one truth on one grid.

    Attributes:
        models: The scored forecast first.
        truth: Files of the truth.
        climatology: Its file.
        resolution: Grid that everything is regridded to, None for the grid of the files.
        grid_name: `64x32`.
        latitudes: Degrees north, shape [Y].
        longitudes: Degrees east, shape [X].
        land: Fraction of land, shape [Y, X].
        levels: By variable, those scored; empty for a single level.
        units: By variable.
        init_times: Shape [I].
        lead_times: Shape [L].
        regions: Names.
        with_acc: Variables that have a climatology.
        with_seeps: Precipitation variables for which SEEPS is made.
        spectra_leads: Places on `lead_times` for which spectra are made; none without spectra.
        map_leads: Places on `lead_times` for which bias maps are made.
        map_levels: By variable, place on its levels of which a bias map is made.
        years: Members of the probabilistic climatology.
        skipna: Policy on missing values.
        warnings: What the user should know.
        notice: What must be said wherever the scores are shown.
    """

    models: tuple[ModelPlan, ...]
    truth: tuple[Path, ...]
    climatology: Path | None
    resolution: Grid | None
    grid_name: str
    latitudes: npt.NDArray[np.float64]
    longitudes: npt.NDArray[np.float64]
    land: npt.NDArray[np.float64] | None
    levels: Mapping[str, tuple[float, ...]]
    units: Mapping[str, str]
    init_times: Times
    lead_times: Spans
    regions: tuple[str, ...]
    with_acc: tuple[str, ...]
    with_seeps: tuple[str, ...]
    spectra_leads: tuple[int, ...]
    map_leads: tuple[int, ...]
    map_levels: Mapping[str, int]
    years: tuple[int, ...] = ()
    skipna: bool = False
    warnings: tuple[str, ...] = ()
    notice: str = ""

    @property
    def lead_hours(self) -> list[int]:
        """Lead times in hours."""
        return [int(lead / np.timedelta64(1, "h")) for lead in self.lead_times]

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of what is scored, without wind vectors."""
        return tuple(self.levels)
