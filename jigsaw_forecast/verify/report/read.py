"""What a scoring left in its folder, read for the report; what is absent is said, not raised."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from jigsaw_forecast.errors import DataError
from jigsaw_forecast.verify.report.quantities import Quantity, quantities_of

FloatArray = npt.NDArray[np.float64]

SCORES, PROTOCOL = "scores.nc", "protocol.json"
SPECTRA, RANKS = "spectra.nc", "rank_histogram.nc"
MAIN = "forecast"
BASELINES = ("persistence", "climatology", "probabilistic-climatology")


@dataclass(frozen=True)
class Model:
    """One scored forecast.

    Attributes:
        name: Name in the folder's files.
        title: What the report calls it.
        kind: `forecast`, `baseline` or `compare`.
        scores: Metrics, read into memory.
        statistics: File of statistics for each initial time in the folder, or None.
        maps: File of mean error maps in the folder, or None.
        facts: Its entry in the protocol, empty without one.
    """

    name: str
    title: str
    kind: str
    scores: xr.Dataset
    statistics: str | None
    maps: str | None
    facts: Mapping[str, Any]

    @property
    def is_baseline(self) -> bool:
        """Whether it is persistence or climatology."""
        return self.kind == "baseline"

    @property
    def warning(self) -> str:
        """Why a comparison with it was forced, empty where it is fair."""
        if self.facts.get("comparable", True):
            return ""
        return str(self.facts.get("comparison") or "not comparable")

    @property
    def num_init_times(self) -> tuple[int, int] | None:
        """Fewest and most initial times in the means of a lead time; None where not stated."""
        if "num_init_times" not in self.scores.coords:
            return None
        counts = self.scores["num_init_times"].values
        return int(counts.min()), int(counts.max())

    def values(
        self, quantity: Quantity, metric: str, region: str, hours: Iterable[float]
    ) -> FloatArray:
        """A metric by lead time, shape of `hours`; NaN where there is none."""
        wanted = {"metric": metric, "region": region} | quantity.place()
        series: dict[float, float] = {}
        if quantity.variable in self.scores:
            found = self.scores[quantity.variable]
            places = {name: _place(found, name, value) for name, value in wanted.items()}
            if None not in places.values() and {*found.dims} == {*wanted, "lead_time"}:
                values = found.isel(places).values
                series = dict(zip(found["lead_time"].values.tolist(), values, strict=True))
        return np.array([series.get(float(hour), np.nan) for hour in hours], dtype=np.float64)


def _place(data: xr.DataArray, dim: str, value: object) -> int | None:
    if dim not in data.dims:
        return None
    places = np.flatnonzero(data[dim].values == value)
    return int(places[0]) if places.size else None


@dataclass(frozen=True)
class Scoring:
    """All of a folder.

    Attributes:
        folder: Where it is.
        models: The scored forecast first.
        protocol: What was scored against what, empty where the file is absent.
        left_out: Why parts are missing, one sentence each; the report adds to it.
    """

    folder: Path
    models: tuple[Model, ...]
    protocol: Mapping[str, Any]
    left_out: list[str] = field(default_factory=list)

    @property
    def main(self) -> Model:
        """The scored forecast."""
        return self.models[0]

    @property
    def others(self) -> tuple[Model, ...]:
        """Compared forecasts, then baselines."""
        compared = [model for model in self.models[1:] if not model.is_baseline]
        return (*compared, *(model for model in self.models[1:] if model.is_baseline))

    @property
    def hours(self) -> FloatArray:
        """Lead times of the scored forecast in hours, ascending."""
        return np.sort(np.atleast_1d(self.main.scores["lead_time"].values)).astype(np.float64)

    @property
    def regions(self) -> list[str]:
        """Regions of the scored forecast."""
        return [str(name) for name in np.atleast_1d(self.main.scores["region"].values)]

    @property
    def region(self) -> str:
        """The region of tables and curves: the whole globe, or else the first one."""
        return "global" if "global" in self.regions else self.regions[0]

    @property
    def quantities(self) -> list[Quantity]:
        """What the forecast has a number for."""
        return [one for one in quantities_of(self.main.scores) if has_values(self.main, one)]

    def open(self, name: str) -> xr.Dataset | None:
        """A further file of the folder, lazily; None, said in `left_out`, where it is no use."""
        path = self.folder / name
        if not path.is_file():
            return None
        try:
            return xr.open_dataset(path)
        except (OSError, ValueError) as error:
            self.left_out.append(f"{name} cannot be read ({error}).")
            return None


def has_values(model: Model, quantity: Quantity) -> bool:
    """Whether any metric of a quantity is a number."""
    values = model.scores[quantity.variable].sel(quantity.place())
    return bool(np.isfinite(values.values).any())


def read_scoring(folder: Path) -> Scoring:
    """Reads protocol and scores.

    Raises:
        DataError: There are no scores of the forecast, or they are no scores.
    """
    left_out: list[str] = []
    protocol = _read_protocol(folder / PROTOCOL, left_out)
    entries = [one for one in protocol.get("models", []) if isinstance(one, dict)]
    if not entries:
        entries = _find_entries(folder)
    main = _read_scores(folder / SCORES)
    models = [_model(folder, entries[0] if entries else {}, main, MAIN)]
    for entry in entries[1:]:
        name = str(entry.get("name", ""))
        try:
            scores = _read_scores(folder / str(entry.get("scores") or f"scores_{name}.nc"))
        except DataError as error:
            left_out.append(f"{name} is left out: {error}.")
            continue
        models.append(_model(folder, entry, scores, name))
    return Scoring(folder, tuple(models), protocol, left_out)


def _read_protocol(path: Path, left_out: list[str]) -> Mapping[str, Any]:
    try:
        protocol = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        left_out.append(f"The protocol: missing {path.name}.")
        return {}
    except (OSError, ValueError) as error:
        left_out.append(f"The protocol: {path.name} cannot be read ({error}).")
        return {}
    return protocol if isinstance(protocol, dict) else {}


def _find_entries(folder: Path) -> list[dict[str, Any]]:
    """Models by their files, where no protocol names them."""
    names = [path.stem.removeprefix("scores_") for path in sorted(folder.glob("scores_*.nc"))]
    entries: list[dict[str, Any]] = [{"name": MAIN, "kind": "forecast"}]
    for name in sorted(names, key=lambda one: (one not in BASELINES, one)):
        entries.append({"name": name, "kind": "baseline" if name in BASELINES else "compare"})
    return entries


def _read_scores(path: Path) -> xr.Dataset:
    if not path.is_file():
        raise DataError(f"missing {path}")
    try:
        with xr.open_dataset(path) as data:
            scores = data.load()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    lacking = [name for name in ("metric", "region", "lead_time") if name not in scores.coords]
    if lacking:
        raise DataError(f"{path} holds no scores: missing dims {', '.join(lacking)}")
    if scores["lead_time"].dtype.kind == "m":  # hours by the contract, but others may decode
        hours = scores["lead_time"].values / np.timedelta64(1, "h")
        scores = scores.assign_coords(lead_time=hours)
    return scores.sortby("lead_time")


def _model(folder: Path, entry: Mapping[str, Any], scores: xr.Dataset, name: str) -> Model:
    kind = str(entry.get("kind", "forecast"))
    # the scored forecast is called by its file, the others by the names that they were given
    title = str(entry.get("label") or name) if name == MAIN else name
    statistics = str(entry.get("statistics") or f"statistics/{name}.nc")
    maps = str(entry.get("maps") or f"maps_{name}.nc")
    return Model(
        name,
        title,
        kind,
        scores,
        statistics if (folder / statistics).is_file() else None,
        maps if (folder / maps).is_file() else None,
        entry,
    )
