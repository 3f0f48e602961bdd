"""Statistics on disk: one netCDF file a model, written in pieces and read in parts."""

from pathlib import Path
from types import TracebackType
from typing import Self

import netCDF4
import numpy as np
import numpy.typing as npt

from jigsaw_forecast.errors import DataError
from jigsaw_forecast.verify.pieces import Piece, statistic_names
from jigsaw_forecast.verify.request import ModelPlan, ScorePlan

Array64 = npt.NDArray[np.float64]
FOLDER = "statistics"
_DIMS = ("statistic", "init_time", "region", "lead_time")
_INITS_A_CHUNK = 16
_EPOCH = np.datetime64("1970-01-01T00:00:00", "s")


class StatisticsWriter:
    """Writes the statistics of one model, piece by piece, whatever their order."""

    def __init__(self, path: Path, plan: ScorePlan, model: ModelPlan) -> None:
        """Creates the file with coordinates, and variables full of NaN with count zero."""
        self._names = statistic_names(plan, model)
        init_times = plan.init_times
        self._model = model.name
        self._file = netCDF4.Dataset(path, "w", format="NETCDF4")
        levels = sorted({level for held in plan.levels.values() for level in held})
        self._levels = {
            name: [levels.index(one) for one in held] for name, held in plan.levels.items()
        }
        sizes = (len(self._names), init_times.size, len(plan.regions), plan.lead_times.size)
        for dim, size in zip(_DIMS, sizes, strict=True):
            self._file.createDimension(dim, size)
        if levels:
            self._file.createDimension("level", len(levels))
            self._coordinate("level", "i4", np.array(levels, dtype=np.int32), units="hPa")
        self._strings("statistic", self._names)
        self._strings("region", plan.regions)
        seconds = (init_times - _EPOCH).astype(np.int64)
        units = "seconds since 1970-01-01T00:00:00"
        self._coordinate("init_time", "i8", seconds, units=units, calendar="proleptic_gregorian")
        self._coordinate(
            "lead_time", "i8", np.array(plan.lead_hours), long_name="lead time in hours"
        )
        for name, held in plan.levels.items():
            dims = (*_DIMS, "level") if held else _DIMS
            chunks = (
                1,
                min(sizes[1], _INITS_A_CHUNK),
                *sizes[2:],
                *((len(levels),) if held else ()),
            )
            array = self._file.createVariable(
                name, "f8", dims, fill_value=np.nan, chunksizes=chunks
            )
            array.units = plan.units[name]

    def _coordinate(
        self, name: str, kind: str, values: npt.NDArray[np.generic], **attrs: str
    ) -> None:
        array = self._file.createVariable(name, kind, (name,))
        array[:] = values
        array.setncatts(attrs)

    def _strings(self, name: str, values: tuple[str, ...]) -> None:
        array = self._file.createVariable(name, str, (name,))
        for place, value in enumerate(values):
            array[place] = value

    def add(self, piece: Piece, places: list[int]) -> None:
        """Writes the statistics of a piece.

        Args:
            piece: With statistics of this model.
            places: Of its initial times in the file.
        """
        for (model, variable), table in piece.statistics.items():
            if model != self._model:
                continue
            array = self._file.variables[variable]
            levels = self._levels[variable]
            if not levels:
                full = table[..., 0]
            else:
                full = np.full((*table.shape[:4], array.shape[-1]), np.nan)
                full[-1] = 0.0  # the count of levels that this variable does not have
                full[..., levels] = table
            if places == list(range(places[0], places[0] + len(places))):
                array[:, places[0] : places[0] + len(places)] = full
                continue
            for row, place in enumerate(places):
                array[:, place] = full[:, row]

    def __enter__(self) -> Self:
        """The open file."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        """Closes the file."""
        self._file.close()


class StatisticsFile:
    """Reads statistics back, one variable and statistic at a time.

    Attributes:
        path: The file.
        names: Statistics that it has.
        init_times: datetime64[s].
        regions: Names.
        lead_hours: Lead times in hours.
        levels: Pressure levels, hPa; empty where there are none.
        variables: Names of variables.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file.

        Raises:
            DataError: It is no such file.
        """
        self.path = path
        try:
            self._file = netCDF4.Dataset(path, "r")
            self._file.set_auto_mask(False)
            self.names = tuple(str(one) for one in self._file.variables["statistic"][:])
            self.regions = tuple(str(one) for one in self._file.variables["region"][:])
            seconds = self._file.variables["init_time"][:].astype("timedelta64[s]")
            self.lead_hours = [int(one) for one in self._file.variables["lead_time"][:]]
            held = self._file.variables.get("level")
        except (OSError, KeyError) as fault:
            raise DataError(f"{path} holds no statistics of a score: {fault}") from None
        self.init_times: npt.NDArray[np.datetime64] = _EPOCH + seconds
        self.levels = tuple(float(one) for one in held[:]) if held is not None else ()
        self.variables = tuple(
            name for name, one in self._file.variables.items() if one.dimensions[:4] == _DIMS
        )

    def has_levels(self, variable: str) -> bool:
        """Whether a variable lies on pressure levels."""
        return "level" in self._file.variables[variable].dimensions

    def read(self, variable: str, statistic: str, inits: slice = slice(None)) -> Array64 | None:
        """One statistic, shape [I, R, L, levels or 1], None where it is not there."""
        if statistic not in self.names:
            return None
        array = self._file.variables[variable]
        values = np.asarray(array[self.names.index(statistic), inits], dtype=np.float64)
        return values if self.has_levels(variable) else values[..., None]

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
